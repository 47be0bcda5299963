# %% [markdown]
# # A VAE and its certificate
#
# A variational autoencoder gives a lower bound on log p(x). How far below is it? Three answers, each stronger than the
# one before: more draws, annealing, and a certificate by going backwards. Then: what the code says, and data with gaps.
# Run it whole (`python tutorials/05_vae_and_its_certificate.py`), or cell by cell; `--smoke` is quick.

# %%
import sys
import tempfile
from pathlib import Path

import numpy as np

import probgen as pg

SMOKE = "--smoke" in sys.argv
STEPS = 50 if SMOKE else 3000

# %% [markdown]
# ## Digits
#
# 8 x 8 pixels of 17 levels. The event says so, and the VAE puts a mass on every level (a discretised logistic), so its
# numbers are log-probabilities, not densities of grey values.

# %%
digits = pg.datasets.load("digits")
train, test = digits.split(seed=0)
test = test[:8] if SMOKE else test[:200]
vae = pg.VAE.for_event(digits.event).fit(train, steps=STEPS, seed=0)
print(vae)
print("trained to", round(vae.report.objective[-1], 2), "nats a held-out row, in", vae.report.steps, "steps")

# %% [markdown]
# ## More draws, less below
#
# The ELBO averages log weights, IWAE takes the log of the average weight. Both lie below log p(x) in expectation.

# %%
for estimator in (pg.ELBO(64), pg.IWAE(10), pg.IWAE(500)):
    print(f"{estimator!r:20}", vae.log_prob(test, by=estimator, seed=0).mean())

# %% [markdown]
# Without `by=` the answer climbs a ladder, row by row: draws while they are enough, then annealing from the guide to
# the posterior. A pilot, which never enters the estimate, decides whether a standard error may be printed.

# %%
answer = vae.log_prob(test, seed=0)
print(answer.mean())
print("by", answer.by)
annealed = answer.diagnostics["temperatures"] > 1
print(f"{annealed.sum()} of {len(test)} rows needed annealing; {np.isfinite(answer.stderr).sum()} have an error")
print(answer.bits_per_dim(), f"(pixels drawn blindly: {np.log2(17):.3f})")

# %% [markdown]
# ## The certificate
#
# On rows that the model draws itself, the code that made a row is an exact draw of its posterior. Annealing from there
# back to the guide bounds log p(x) from above (bidirectional Monte Carlo): the gap between the two bounds says how far
# the estimator falls short, at most. Real rows whose pilots look worse than all of those have no certificate.

# %%
gap = pg.bdmc(vae, test, rows=4 if SMOKE else 100, by=pg.AIS(chains=8, temperatures=20 if SMOKE else 100), seed=0)
print(gap)

# %% [markdown]
# ## What the code says
#
# Latents that the decoder ignores, what a row's code tells, how far the codes lie from the prior that samples are drawn
# from, and what it costs that one network serves all rows.

# %%
print(vae.diagnose(test, rows=4 if SMOKE else 100, seed=0))
with tempfile.TemporaryDirectory() as folder:
    picture = vae.plot(test, Path(folder) / "vae.png")
    print("drawn:", picture.name, picture.stat().st_size // 1024, "KiB")

# %% [markdown]
# A prior that is learned comes nearer to the codes. (`prior="flow"` is another; it needs the extra `probgen[flow]`.)

# %%
vamp = pg.VAE.for_event(digits.event, prior="vamp", pseudo_inputs=50).fit(train, steps=STEPS, seed=0)
for name, model in {"standard normal": vae, "vamp": vamp}.items():
    found = model.diagnose(test, rows=0, seed=0)
    bound = model.log_prob(test, by=pg.IWAE(200), seed=0).mean()
    print(f"{name:16} mismatch {found.mismatch[0]:6.2f} nats, bound {bound}")

# %% [markdown]
# ## Between two digits

# %%
path = vae.interpolate(test[:1], test[1:2], steps=4)
for line in range(0, 8, 2):
    print("   ".join("".join(" .:*#"[int(v) // 4] for v in image[line]) for image in path))

# %% [markdown]
# ## Tables with gaps
#
# Each column by its own type; what is missing is integrated out. Take the species of every other iris away: the model
# still scores the row, and knows what the species would be.

# %%
iris = pg.datasets.load("iris")
flowers = pg.VAE(pg.events.Table(iris.event.columns), latent_dim=2, hidden=(64,)).fit(
    iris.x, steps=100 if SMOKE else 1500, seed=0
)
blind = {**iris.x, "species": np.where(np.arange(150) % 2, iris.x["species"], None)}
print("whole rows: ", flowers.log_prob(iris.x, by=pg.IWAE(500), seed=0).mean())
print("with gaps:  ", flowers.log_prob(blind, by=pg.IWAE(500), seed=0).mean())
guessed = flowers.reconstruct(blind)["species"]
print(f"species guessed right where taken away: {np.mean((guessed == iris.x['species'])[::2]):.0%}")

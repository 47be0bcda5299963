# %% [markdown]
# # A GAN refuses
#
# A generative adversarial network draws samples and has no likelihood. Asked for one, it refuses and says why. What can
# be had instead: samples, conditional samples of a table, the likelihood of another model (the generator seen through
# noise) with a figure for how far the bound falls short, and a kernel estimate that comes with a warning.
# Run it whole (`python tutorials/07_gan.py`), or cell by cell; `--smoke` is quick.

# %%
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

import probgen as pg

SMOKE = "--smoke" in sys.argv
STEPS = 50 if SMOKE else 6000
ROWS = 10 if SMOKE else 100

# %% [markdown]
# ## Eight gaussians
#
# Two networks: a generator, and a discriminator that tells its rows from the data's. The default loss compares them in
# pairs and penalises steep slopes on both (R1 and R2), which keeps the game stable.

# %%
data = pg.datasets.load("eight_gaussians")
gan = pg.GAN.for_event(data.event).fit(data.x, steps=STEPS, seed=0)
draws = gan.sample(4000, seed=1)
angle = np.arctan2(draws[:, 1], draws[:, 0]) % (2 * np.pi)
print("share of the draws at each of the eight:", np.bincount((angle / (np.pi / 4)).round().astype(int) % 8) / 4000)

# %% [markdown]
# ## The refusal

# %%
answer = gan.log_prob(data.x)
print(answer)
print("why:    ", answer.reason)
print("instead:", answer.instead)
try:
    answer.sum()
except pg.errors.LikelihoodUnavailable as refusal:
    print("reading a number from it raises", type(refusal).__name__)

# %% [markdown]
# ## Another model that has a likelihood
#
# G(z) + N(0, s^2 I). Annealing bounds its log-likelihood from below, and the target says whose number it is. How far
# the bound falls short is measured on rows that the noisy model draws itself, where annealing backwards bounds from
# above. The smaller s, the harder; and numbers at different s compare with nothing.

# %%
ais = pg.AIS(chains=16, temperatures=20 if SMOKE else 300)
for s in (0.3, 0.1):
    noisy = gan.with_noise(s)
    print(noisy.log_prob(data.x[:ROWS], by=ais, seed=0).mean(), "of", noisy.target)
    print("   ", noisy.gap(data.x[:ROWS], rows=ROWS, by=ais, seed=0))

# %% [markdown]
# ## Why a kernel estimate must not rank models
#
# The truth is known here. As the kernels widen, the estimate for the GAN climbs, and with it that for true samples:
# what it ranks is the width. The library computes it only under its name, and warns.

# %%
print("truth:", round(float(data.log_density(data.x[:500]).mean()), 3), "nats a row")
for h in (0.05, 0.1, 0.2):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parzen = gan.parzen(data.x[:500], bandwidth=h, draws=500 if SMOKE else 5000, seed=0)
    print(f"bandwidth {h}: {parzen.nats.mean():.3f}   ({caught[0].category.__name__})")

# %% [markdown]
# ## Tables, and rare categories
#
# Numbers are standardised within a bump of their column, categories are drawn; in training each batch asks for a
# category first, rare levels more often than they come. `given=` takes columns as observed.

# %%
iris = pg.datasets.load("iris")
table = pg.GAN.for_event(iris.event).fit(iris.x, steps=30 if SMOKE else 1500, seed=0)
for species in iris.event.columns["species"].levels:
    some = iris.event.check(table.sample(300, given={"species": species}, seed=0)).x.numpy()
    true = iris.event.check(iris.x).x.numpy()
    true = true[true[:, -1] == iris.event.columns["species"].levels.index(species)]
    print(f"{species:12} means drawn {some.mean(0)[:4].round(2)}, of the data {true.mean(0)[:4].round(2)}")

# %% [markdown]
# ## Digits

# %%
digits = pg.datasets.load("digits")
images = pg.GAN.for_event(digits.event).fit(digits.x, steps=10 if SMOKE else 3000, seed=0)
where = Path(tempfile.mkdtemp()) / "digits.png"
pg.plots.samples({"data": digits.x[:64], "GAN": images.sample(64, seed=0)}, where)
print("picture:", where)

# %% [markdown]
# # What kind of number is a likelihood?
#
# Three generative models answer "how probable is this data?". A coin answers exactly. A VAE answers with a lower bound.
# A GAN can't answer. Run it whole (`python tutorials/01_what_kind_of_number.py`), or cell by cell; `--smoke` is quick.

# %%
import math
import sys

import numpy as np

import probgen as pg

SMOKE = "--smoke" in sys.argv
STEPS = 40 if SMOKE else 2000

# %% [markdown]
# ## A coin: exact
#
# 40 tosses, 27 heads. The family `Independent` on two levels is a coin whose bias is estimated (with one imaginary
# toss, half heads and half tails). Its log-likelihood is a sum of logarithms, nothing is approximated.

# %%
tosses = np.array([1] * 27 + [0] * 13)
coin = pg.Independent(pg.events.Array(levels=2)).fit(tosses)
answer = coin.log_prob(tosses)
print(answer.sum())

p = (27 + 0.5) / (40 + 1)
by_hand = 27 * math.log(p) + 13 * math.log(1 - p)
print(f"by hand: {by_hand:.4f} nats")
assert abs(answer.sum().value - by_hand) < 1e-9

# %% [markdown]
# ## A mixture and a VAE on the same points: exact, and a lower bound
#
# Eight normals on a circle. Their true density is known, so both answers can be held against it.

# %%
circle = pg.datasets.eight_gaussians(n=160 if SMOKE else 2000)
train, test = circle.split(seed=0)

mixture = pg.Mixture(circle.event, components=8).fit(train, seed=0)
vae = pg.VAE(circle.event, latent_dim=2, hidden=(128, 128)).fit(train, steps=STEPS, seed=0)

exact, bound = mixture.log_prob(test), vae.log_prob(test, seed=0)
print("truth  ", f"{circle.log_density(test).mean():.4f} nats/row")
print("mixture", exact.mean())
print("vae    ", bound.mean())
print("        which lies", bound.mean().bias)

# %% [markdown]
# The VAE's density is an integral over its latent code. Averaging over draws from its guide gives a number that is
# below the true logarithm on average: more draws, less below. So the same model has many lower bounds.

# %%
for estimator in (pg.ELBO(samples=50), pg.IWAE(samples=5), pg.IWAE(samples=500)):
    print(f"{estimator!r:22}", vae.log_prob(test, by=estimator, seed=0).mean())

# %% [markdown]
# Numbers of different kinds can be subtracted only where the result still claims something.
# Exact minus a lower bound is an upper bound on the log ratio. Lower minus lower bounds nothing, and is refused.

# %%
print("mixture - vae:", (exact - bound).mean())
try:
    bound - vae.log_prob(test, by=pg.ELBO(), seed=0)
except pg.errors.Incomparable as refusal:
    print("vae - vae:", refusal)

# %% [markdown]
# ## A GAN: no likelihood
#
# It draws samples, and a table of likelihoods should show an empty cell with the reason in it.

# %%
gan = pg.GAN(circle.event, latent_dim=2, hidden=(128, 128)).fit(train, steps=STEPS, seed=0)
print("three samples:", gan.sample(3, seed=0).round(2).tolist())
try:
    print(gan.log_prob(test).nats)
except pg.errors.LikelihoodUnavailable as refusal:
    print("gan:", refusal)

# %% [markdown]
# ## Side by side

# %%
print(pg.compare({"mixture": mixture, "vae": vae, "gan": gan}, test))

# %% [markdown]
# # Diffusion: one network, two likelihoods
#
# A diffusion model is called implicit, yet its network defines two distributions, each with a number. The reverse chain
# has a variational lower bound (target p^SDE). The probability flow has a density by an integral (target p^ODE). They
# are different distributions, and probgen refuses to subtract them.
# Run it whole (`python tutorials/08_diffusion_two_likelihoods.py`), or cell by cell; `--smoke` is quick.

# %%
import sys

import numpy as np

import probgen as pg

SMOKE = "--smoke" in sys.argv
STEPS = 50 if SMOKE else 3000

# %% [markdown]
# ## Eight gaussians, whose true density is known

# %%
circle = pg.datasets.eight_gaussians(n=400 if SMOKE else 4000)
train, test = circle.split(seed=0)
test = test[:24] if SMOKE else test[:400]
model = pg.Diffusion.for_event(circle.event).fit(train, steps=STEPS, seed=0)

flow = model.log_prob(test, by=pg.ProbabilityFlow(), seed=0)
bound = model.log_prob(test, by=pg.VariationalBound(), seed=0)
print("truth       ", f"{circle.log_density(test).mean():.4f} nats/row")
print("p^ODE       ", flow.mean())
print("p^SDE, bound", bound.mean())
try:
    flow - bound
except pg.errors.Incomparable as refusal:
    print("subtracting them:", refusal)

# %% [markdown]
# ## When is the integral exact?
#
# The trace of the Jacobian is exact for few coordinates; the rest is the solver's error, found by doubling the steps. A
# row is called exact only where that error is under the tolerance. With Hutchinson's trace, which many coordinates
# need, the number is an estimate with a standard error.

# %%
coarse = model.log_prob(test, by=pg.ProbabilityFlow(steps=4, most=4), seed=0)
print("4 steps: ", {str(kind) for kind in coarse.kinds}, "largest error", coarse.diagnostics["solver_error"].max())
fine = flow.diagnostics
print("default: ", {str(kind) for kind in flow.kinds}, "largest error", fine["solver_error"].max())
print("calls of the network, a row:", int(fine["evaluations"].mean()))
noisy = model.log_prob(test, by=pg.ProbabilityFlow(trace="hutchinson", probes=4), seed=0)
print("Hutchinson:", noisy.mean())

# %% [markdown]
# ## What samples are drawn from
#
# A sampler of few steps draws from neither: it names its own target. Two-sample tests say whether the difference shows.

# %%
for options in ({"sampler": "ab2", "steps": 5}, {"sampler": "ab2", "steps": 20}, {"sampler": "ancestral"}):
    drawn = model.sample(len(test), seed=0, **options)
    found = pg.two_sample(test, drawn, tests=["mmd", "c2st"], permutations=100, seed=0)
    accuracy, real = found["c2st"].value, found["c2st"].floor
    shown = f"C2ST {accuracy:.3f} (real rows: {real:.3f}), MMD p {found['mmd'].pvalue:.3f}"
    print(f"{model.sample_target(**options):28}", shown)

# %% [markdown]
# ## Integers: a bound on a mass
#
# Digits have 17 levels. The chain ends in a discrete decoder, so the variational bound is on a probability, and bits a
# pixel mean something. A density of raw integers would be unbounded; asking for it is refused.

# %%
digits = pg.datasets.load("digits")
train, test = digits.split(seed=0)
test = test[:3] if SMOKE else test[:100]
pixels = pg.Diffusion.for_event(digits.event).fit(train, steps=15 if SMOKE else 1000, seed=0)
answer = pixels.log_prob(test, seed=0)
print(answer.kind, answer.target, answer.bits_per_dim())

alone = pg.Independent(digits.event).fit(train).log_prob(test)
print("pixels alone:", alone.bits_per_dim())
print("share of ink:", np.mean(test) / 16, "samples:", np.mean(pixels.sample(20, seed=0, steps=10)) / 16)

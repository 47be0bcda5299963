# %% [markdown]
# # Explicit against implicit
#
# Overviews sort generative models into explicit ones, which have a density, and implicit ones, which only sample. The
# kind of a likelihood belongs to the answer, not to the class: one data set, every family, and what each can say.
# Run it whole (`python tutorials/09_explicit_against_implicit.py`), or cell by cell; `--smoke` is quick.

# %%
import sys

import probgen as pg

SMOKE = "--smoke" in sys.argv
STEPS = 40 if SMOKE else 2500

# %%
circle = pg.datasets.eight_gaussians(n=200 if SMOKE else 3000)
train, test = circle.split(seed=0)
test = test[:20] if SMOKE else test[:500]

# %% [markdown]
# ## What they are called, and what they answer

# %%
CALLED = {
    "Mixture": "explicit",
    "KernelDensity": "explicit",
    "Flow": "explicit",
    "VAE": "explicit",
    "Diffusion": "implicit",
    "GAN": "implicit",
}
models = {}
for name in CALLED:
    family = getattr(pg, name)
    options = {} if name in ("Mixture", "KernelDensity") else {"steps": STEPS}
    models[name] = family.for_event(circle.event).fit(train, seed=0, **options)

# %%
truth = circle.log_density(test).mean()
print(f"{'family':14} {'is called':10} {'answers':12} {'about':8} nats/row (truth {truth:.3f})")
for name, model in models.items():
    answer = model.log_prob(test, seed=0)
    number = "-" if answer.refused.any() else f"{answer.mean().value:.3f}"
    print(f"{name:14} {CALLED[name]:10} {answer.kind!s:12} {answer.target:8} {number}")

# %% [markdown]
# A VAE, called explicit, has no density that anybody can compute: it answers with a lower bound. A diffusion model,
# called implicit, has two. An autoregressive language model is often filed under implicit, and is exact.
#
# ## One fair ranking
#
# Likelihoods rank those that have one, within one kind of claim. Proper scores rank all of them by samples alone, on
# the same rows, with paired errors. Tests against real rows say whether a difference can be seen at all.

# %%
print(pg.compare(models, test))

# %% [markdown]
# ## The same, pair by pair

# %%
scores = {name: pg.scores.energy(model, test, seed=0) for name, model in models.items()}
best = min(scores, key=lambda name: scores[name].mean)
for name, score in scores.items():
    print(f"{name:14} {score.mean:.4f}" + ("" if name == best else f"  less {best}: {score - scores[best]}"))

# %% [markdown]
# Forcing a number out of the GAN is possible, and its name says what it is: the likelihood of the generator's output
# with noise, a lower bound by annealing, and the gap on rows that it drew itself.

# %%
noisy = models["GAN"].with_noise(0.2)
print(noisy.log_prob(test[:20], by=pg.AIS(chains=16, temperatures=20 if SMOKE else 200), seed=0))

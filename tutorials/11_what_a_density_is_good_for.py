# %% [markdown]
# # What a density is good for
#
# A model that says how probable a row is can also say what a missing cell may be, which rows are odd and which of
# their cells to blame, and it can make more rows. Each of these is a question to one fitted model, and each answer
# says what it rests on. Run it whole (`python tutorials/11_what_a_density_is_good_for.py`), or cell by cell; `--smoke`
# is quick.

# %%
import sys

import numpy as np
import pandas as pd
from scipy import stats

import probgen as pg
from probgen.evaluate.uses.impute import pool

SMOKE = "--smoke" in sys.argv
N = 600 if SMOKE else 3000

# %% [markdown]
# ## A table with a truth
#
# A height, a weight that follows it, a sport, and a wage that has nothing to do with them.

# %%
rng = np.random.default_rng(0)
sport = rng.choice(["rowing", "gymnastics"], size=N, p=[0.6, 0.4])
height = rng.normal(np.where(sport == "rowing", 188, 166), 6)
weight = 0.9 * (height - 100) + rng.normal(0, 5, N)
people = pd.DataFrame({"height": height, "weight": weight, "sport": sport, "wage": np.exp(rng.normal(3, 0.4, N))})
train, calibration, test = people[: N // 2], people[N // 2 : 3 * N // 4], people[3 * N // 4 :]
network = pg.BayesianNetwork.learn(train)
print(network.edges)

# %% [markdown]
# ## Gaps
#
# Every draw completes the rows from p(missing | observed); what is known stays. A network and a mixture draw exactly,
# other families with an exact likelihood by weights whose effective number is told, and a VAE or a GAN is refused by
# name.

# %%
gaps = test.copy()
gaps.loc[gaps.index[::2], "weight"] = np.nan
gaps.loc[gaps.index[::3], "sport"] = None
completed = pg.impute(network, gaps, n=20, seed=0)
print(completed)
print(completed[0].head(3))

# %% [markdown]
# One completion pretends to know more than it does. Twenty, pooled by Rubin's rules, do not: the mean weight, with its
# standard error, against what a fill with the column's mean would claim.

# %%
means = np.array([[frame["weight"].mean(), frame["weight"].var() / len(frame)] for frame in completed])
value, error, freedom = pool(means[:, 0], means[:, 1])
filled = gaps["weight"].fillna(gaps["weight"].mean())
print(f"pooled {value:.2f} ± {error:.2f} ({freedom:.0f} degrees of freedom), truth {test['weight'].mean():.2f}")
print(f"filled with the mean {filled.mean():.2f} ± {filled.std() / np.sqrt(len(filled)):.2f}")

# %% [markdown]
# ## Odd rows
#
# Five rows are spoiled: a weight that would be usual for another height. Each column alone looks fine. The p-values
# compare with rows that neither the fit nor the test has seen, and hold whatever the model; the flags keep the share
# of false ones among them at a tenth. A p-value is never below one over the calibration rows, so few of those can't
# flag one row among thousands, and the answer says so.

# %%
spoiled = test[:40].copy()
short = spoiled.index[(spoiled["sport"] == "gymnastics")][:5]
spoiled.loc[short, "weight"] = 85.0 + np.arange(5)
found = pg.anomalies(network, spoiled, calibration=calibration, alpha=0.1)
print(found)
print("planted, and flagged:", found.flagged[spoiled.index.isin(short)].sum(), "of 5; in all:", found.flagged.sum())
print("planted among the first five:", len(set(short) & set(found.keys[found.order[:5]])))

# %% [markdown]
# The same threshold in scikit-learn's clothes: `Scorer` is an estimator like any other, with `score_samples` a row
# each, `predict` for classes or anomalies, and a warning where a scaler in front would change the units of its
# numbers.

# %%
scorer = pg.Scorer(network, contamination=0.02, refit=False).fit(calibration)
print("flagged of the good rows:", (scorer.predict(test) == -1).mean())
print("flagged of the spoiled ones:", (scorer.predict(spoiled.loc[short]) == -1).mean())

# %% [markdown]
# ## More rows
#
# Draws of a model can teach a learner that has seen few real rows; whether they do is measured on rows that nobody has
# learnt from. A model that knows nothing of the question does harm, and the answer says that, too.

# %%
few = train.iloc[:60]
small = pg.BayesianNetwork(network.event, edges=[("sport", "height"), ("height", "weight")]).fit(few)
print(pg.augment(small, few, "sport", n=600, test=test, learner="linear"))
print(pg.augment(pg.Independent(network.event).fit(few), few, "sport", n=600, test=test, learner="linear"))

# %% [markdown]
# ## Units
#
# A family with one scale for all columns suffers from centimetres beside thousands. `Standardize` fits it on
# standardised columns and keeps the Jacobian, so its log-likelihood is about the data as they are, and may be
# compared.

# %%
numbers = train[["height", "weight", "wage"]] * [1, 1, 1000]
event = pg.events.infer(numbers)
sphere = {"components": 4, "emission": pg.emissions.Normal(3, "spherical")}
held = test[["height", "weight", "wage"]] * [1, 1, 1000]
plain = pg.Mixture(event, **sphere).fit(numbers, seed=0)
print("as they are: ", plain.log_prob(held).mean())
print("standardised:", pg.Standardize(event, "Mixture", **sphere).fit(numbers, seed=0).log_prob(held).mean())

# %% [markdown]
# ## Somebody else's density
#
# scikit-learn, zuko, torch, or two functions: after `wrap` they answer the same questions.

# %%
theirs = stats.multivariate_normal(numbers.mean(), numbers.cov(), seed=0)


def sample(n, random_state):
    return theirs.rvs(n, random_state=random_state)


wrapped = pg.wrap((sample, theirs.logpdf), event=event)
print(wrapped.log_prob(held).mean())
print(pg.impute(wrapped, held.assign(weight=np.nan).iloc[:3], seed=0)[0])

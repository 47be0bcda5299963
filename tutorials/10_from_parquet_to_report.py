# %% [markdown]
# # From a Parquet file to a report
#
# 2500 people answered eight yes-or-no questions. A hidden Markov model reads the answers as a sequence, a Bayesian
# network as a table, a VAE as a vector: three libraries and some 175 lines, elsewhere. Here the whole comparison is
# one cell of at most twelve statements, which a test counts. Run it whole (`python
# tutorials/10_from_parquet_to_report.py`), or cell by cell; `--smoke` is quick. It leaves what it writes in the folder
# you run it from.

# %%
import sys
from pathlib import Path

import numpy as np

SMOKE = "--smoke" in sys.argv
STEPS, N = (60, 700) if SMOKE else (3000, 2500)

# %% [markdown]
# ## The data
#
# Stand-ins for a file of your own. A mood goes up and down along the questionnaire, and two answers depend on an
# earlier one directly, so no family is the truth.

# %%
rng = np.random.default_rng(0)
mood = np.cumsum(rng.random((N, 8)) < 0.25, axis=1) + rng.integers(2, size=(N, 1))
answers = (rng.random((N, 8)) < np.where(mood % 2 == 1, 0.85, 0.2)).astype(int)
answers[:, 5] = np.where(rng.random(N) < 0.9, answers[:, 0], answers[:, 5])
answers[:, 7] = np.where(rng.random(N) < 0.8, 1 - answers[:, 2], answers[:, 7])
np.savetxt("answers.csv", answers, fmt="%d", delimiter=",", header=",".join("abcdefgh"), comments="")
__import__("pandas").read_csv("answers.csv").to_parquet("answers.parquet")

# %% the comparison
import pandas as pd

import probgen as pg

rows = pd.read_parquet("answers.parquet")
train, test = rows[: -N // 5], rows[-N // 5 :]
bn = pg.BayesianNetwork.learn(train)
vae = pg.VAE.for_event(bn.event).fit(train, seed=0, steps=STEPS)
hmm = pg.HMM(pg.events.Series(levels=2), 3).fit(list(train.to_numpy()), seed=0)
steps = hmm.log_prob(list(test.to_numpy())).replace(event=None, measure=bn.event.measure)
table = pg.compare({"network": bn, "vae": vae, "hmm": steps}, test)
pg.report(table, "report.html", models={"network": bn, "vae": vae}, data=test, overwrite=True)
pg.score_table(bn, "answers.parquet", "scores.parquet", overwrite=True)

# %% [markdown]
# The network and the HMM are exact, the VAE gives a lower bound, and the table says so: what is claimed of two models
# is what their kinds allow. The HMM scored the same eight answers, in order, as a sequence: that it may stand beside
# the tables is said by hand, in `steps`, because nothing can check it. `report.html` is one page that asks nothing of
# any host; `scores.parquet` has a row a row, with the kind of each number.

# %%
print(table)
print(pd.read_parquet("scores.parquet").head(3))

# %% [markdown]
# ## One more line for each further family

# %%
mixture = pg.Mixture.for_event(bn.event, components=4).fit(train, seed=0)
print(pg.compare({"network": bn, "mixture": mixture, "hmm": steps}, test, samples=False))

# %% [markdown]
# ## A folder of Parquet files
#
# Each file is a partition, scored by worker processes or by Dask; memory is bounded by batches, not by the data. The
# scores do not depend on how the rows are cut.

# %%
folder = Path("answers")
folder.mkdir(exist_ok=True)
for i, part in enumerate(np.array_split(np.arange(len(rows)), 3)):
    rows.iloc[part].to_parquet(folder / f"part-{i}.parquet")
print(pg.score_table(bn, folder, "scores", workers=1, overwrite=True))
parts = pd.concat([pd.read_parquet(path) for path in sorted(Path("scores").glob("*.parquet"))])
whole = pd.read_parquet("scores.parquet")
print("largest difference, cut or whole:", abs(parts["log_prob"].to_numpy() - whole["log_prob"].to_numpy()).max())

# %% [markdown]
# ## Parameters that are not known
#
# Point fits are compared on held-out rows. With draws from the posterior every row can be left out of its own fit by
# weights (PSIS-LOO), on the training rows themselves; and ArviZ reads the draws and the pointwise likelihoods.

# %%
some = train[:150]
bayes = pg.Mixture.for_event(bn.event, components=1).fit(some, seed=0, method="laplace")
print(pg.loo(bayes, some))
print(pg.to_arviz(bayes, some))

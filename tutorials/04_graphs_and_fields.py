# %% [markdown]
# # Graphs and fields
#
# Where does a graph come from, and what if there are no directions? First a network is learned from rows alone, and we
# look at how sure its edges are. Then Markov fields: p(x) = f(x) / Z, where f is easy and the sum Z over all
# configurations is not, so that their likelihoods come in every kind. Run it whole
# (`python tutorials/04_graphs_and_fields.py`), or cell by cell; `--smoke` is quick.

# %%
import sys

import numpy as np

import probgen as pg
from probgen import RAISE, LinearChainCRF, LoopyBP, MarkovField, PartitionAIS, PartitionReverseAIS, TreeReweighted

SMOKE = "--smoke" in sys.argv

# %% [markdown]
# ## A graph from rows
#
# Six variables, a known graph, and rows drawn from it. `learn` searches the graph (tabu search over BIC) and then
# counts the tables. Arrows between the same variables may point either way without changing any probability: the
# equivalence class says which directions the data can tell.

# %%
truth = pg.BayesianNetwork.from_tables(
    {
        "season": {"dry": 0.6, "wet": 0.4},
        "sprinkler": ("season", {"dry": {"off": 0.3, "on": 0.7}, "wet": {"off": 0.9, "on": 0.1}}),
        "rain": ("season", {"dry": {"no": 0.9, "yes": 0.1}, "wet": {"no": 0.3, "yes": 0.7}}),
        "grass": (
            ["sprinkler", "rain"],
            {
                ("off", "no"): {"dry": 0.95, "wet": 0.05},
                ("off", "yes"): {"dry": 0.2, "wet": 0.8},
                ("on", "no"): {"dry": 0.1, "wet": 0.9},
                ("on", "yes"): {"dry": 0.02, "wet": 0.98},
            },
        ),
        "slippery": ("grass", {"dry": {"no": 0.99, "yes": 0.01}, "wet": {"no": 0.4, "yes": 0.6}}),
        "mood": {"bad": 0.3, "good": 0.7},
    }
)
rows = truth.sample(500 if SMOKE else 5000, seed=0)
learned = pg.BayesianNetwork.learn(rows, bootstrap=2 if SMOKE else 50, prior="bdeu", seed=0)
print("edges:", learned.edges)
print("edges too many, missing or reversed:", learned.structure.distance(truth.edges))
directed, undirected = learned.cpdag()
print("directions that the data tell:", directed, "and those that they do not:", undirected)
for edge in learned.edges:
    print(edge, f"in {learned.structure.strengths[edge]:.0%} of the bootstrap's graphs, either way")

# %% [markdown]
# How good is it? By rows that it has not seen, beside the truth and beside no edges at all. And because the graph was
# learned, `do` refuses an effect that differs within the equivalence class, unless we say that we trust the arrows.

# %%
fresh = truth.sample(2000, seed=1)
alone = pg.BayesianNetwork(learned.event).fit(rows, prior="bdeu", seed=0)
for name, net in (("truth", truth), ("learned", learned), ("no edges", alone)):
    print(f"{name:9s}", net.log_prob(fresh).mean())
try:
    learned.do({"season": "wet"})
except pg.errors.StructureError as refusal:
    print(refusal)
print(learned.do({"season": "wet"}, assume_graph=True).marginals()["grass"])

# %% [markdown]
# # Fields
#
# The first is small enough for exact sums.

# %% [markdown]
# ## Four people who do or do not agree
#
# Log-potentials by the names of their variables. Neighbours like to hold the same opinion, except one pair.

# %%
agree, differ = np.eye(2), -np.eye(2)
circle = MarkovField(
    {
        ("ann", "bob"): 2 * agree,
        ("bob", "eve"): agree,
        ("eve", "dan"): differ,
        ("dan", "ann"): agree,
        ("ann",): [0, 0.5],
    },
    levels=dict.fromkeys(("ann", "bob", "eve", "dan"), ("no", "yes")),
)
print(circle.plan.cost())
print("log Z =", float(circle.log_partition()))
print(circle.log_prob({"ann": ["yes", None], "bob": ["yes", "no"], "eve": ["yes", None], "dan": ["no", None]}).nats)
print("given dan says yes:", circle.marginals({"dan": "yes"})["ann"])
print("most probable:", circle.mpe({"dan": ["no"]}))

# %% [markdown]
# ## A magnet: beyond what can be summed
#
# 16 x 16 spins take 44 million table entries, 20 x 20 more than a billion: `plan.cost()` says so before anything runs,
# and `log_prob` refuses. Bounds remain. Z from above gives log p from below, and the other way round.

# %%
side = 6 if SMOKE else 20
magnet = MarkovField.ising(side, side, coupling=0.3, field=0.05)
print(magnet.plan.cost())
spins = magnet.sample(3, seed=0, method="gibbs", sweeps=100)
print(magnet.sample_target(method="gibbs", sweeps=100))
print(magnet.log_prob(spins))
for estimator in (TreeReweighted(), PartitionAIS(temperatures=50), LoopyBP()):
    print(magnet.log_prob(spins, by=estimator, seed=0).mean(), "by", estimator)
ours = magnet.marginals({"x0_0": -1}, by=LoopyBP())
print(ours, ours["x0_1"])

# %% [markdown]
# ## A restricted Boltzmann machine of digits: bracketed
#
# 64 pixels, and hidden units that nobody sees. It is trained by persistent chains, which never compute the likelihood.
# With few hidden units log Z can still be summed (over their 2^10 configurations), so the bracket can be checked.

# %%
images = (pg.datasets.digits().x.reshape(-1, 64) > 8).astype(float)
images = images[np.random.default_rng(0).permutation(len(images))]
train, held = images[:1500], images[1500:1600]
rbm = MarkovField.rbm(64, 10).fit(train, method="persistent", steps=20 if SMOKE else 3000, learning_rate=0.02, seed=0)
print(rbm.report.notes[0])

temperatures = 8 if SMOKE else 500
print("lower, surely:        ", rbm.log_prob(held, by=TreeReweighted(60, 2, 32)).mean())
print("lower, in expectation:", rbm.log_prob(held, by=PartitionReverseAIS(temperatures=temperatures), seed=0).mean())
print("exact:                ", rbm.log_prob(held).mean())
print("upper, in expectation:", rbm.log_prob(held, by=PartitionAIS(temperatures=temperatures), seed=0).mean())

# %% [markdown]
# The reverse chains must start at exact draws: only that makes their number a bound. Where no exact draw is to be had
# there is `RAISE`, a lower bound on the probability that the annealing chain itself ends at a row. That is another
# distribution, and the answer says so.

# %%
print(rbm.log_prob(held, by=RAISE(chains=5, temperatures=temperatures), seed=0))

# %% [markdown]
# ## Labels of a sequence: a conditional random field
#
# p(labels | inputs): the recursions of hidden Markov models, each sequence with its own Z. Some labels may be missing.

# %%
rng = np.random.default_rng(0)
states = [np.cumsum(rng.random(30) < 0.15) % 2 for _ in range(40)]
inputs = [np.stack([s + rng.normal(size=30), np.ones(30)], 1) for s in states]
labels = [np.where(rng.random(30) < 0.5, np.nan, s) for s in states]
crf = LinearChainCRF(pg.events.Series(levels=2), context=pg.events.Series((2,), missing=False))
crf.fit(labels[:30], given=inputs[:30], seed=0, l2=1e-3)
print(crf.log_prob(states[30:], given=inputs[30:]).mean())
right = np.mean([(a == b).mean() for a, b in zip(crf.decode(given=inputs[30:]), states[30:], strict=True)])
print(f"{right:.0%} of labels right")

# %% [markdown]
# # Bayesian networks: a clinic's patients, with gaps in their records
#
# A network says how each variable depends on a few others. Its likelihood is exact, also where cells are missing: they
# are summed out. Run it whole (`python tutorials/03_bayesian_network.py`), or cell by cell; `--smoke` is quick. It
# leaves two pictures behind, `asia.png` and `patient.png` in the folder you run it from.

# %%
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import torch

import probgen as pg

SMOKE = "--smoke" in sys.argv
ROWS = 500 if SMOKE else 5000

# %% [markdown]
# ## A network by hand
#
# The chest clinic of Lauritzen and Spiegelhalter (1988). A visit to Asia raises the risk of tuberculosis, smoking that
# of lung cancer and bronchitis; an X-ray sees either disease of the lung; shortness of breath (dyspnoea) has three
# possible causes. Each variable has its levels and a row of probabilities for every combination of its parents.

# %%
clinic = pg.BayesianNetwork.from_tables(
    {
        "asia": {"no": 0.99, "yes": 0.01},
        "smoke": {"no": 0.5, "yes": 0.5},
        "tub": ("asia", {"no": {"no": 0.99, "yes": 0.01}, "yes": {"no": 0.95, "yes": 0.05}}),
        "lung": ("smoke", {"no": {"no": 0.99, "yes": 0.01}, "yes": {"no": 0.9, "yes": 0.1}}),
        "bronc": ("smoke", {"no": {"no": 0.7, "yes": 0.3}, "yes": {"no": 0.4, "yes": 0.6}}),
        "either": (
            ("tub", "lung"),
            {
                ("no", "no"): {"no": 1.0, "yes": 0.0},
                ("no", "yes"): {"no": 0.0, "yes": 1.0},
                ("yes", "no"): {"no": 0.0, "yes": 1.0},
                ("yes", "yes"): {"no": 0.0, "yes": 1.0},
            },
        ),
        "xray": ("either", {"no": {"no": 0.95, "yes": 0.05}, "yes": {"no": 0.02, "yes": 0.98}}),
        "dysp": (
            ("bronc", "either"),
            {
                ("no", "no"): {"no": 0.9, "yes": 0.1},
                ("no", "yes"): {"no": 0.3, "yes": 0.7},
                ("yes", "no"): {"no": 0.2, "yes": 0.8},
                ("yes", "yes"): {"no": 0.1, "yes": 0.9},
            },
        ),
    }
)
print("variables:", clinic.variables)
print("drawn:", clinic.plot("asia.png"))

# %% [markdown]
# ## Rows with gaps
#
# Three patients. The first record is complete. The second lacks most cells: its log-probability is that of the cells
# that are there. This takes the gaps as missing at random: that a cell is missing says nothing about its value beyond
# what the other cells say. The third record contradicts itself: lung cancer, but neither of the two diseases.

# %%
patients = {
    "asia": ["no", None, "no"],
    "smoke": ["yes", "yes", "no"],
    "tub": ["no", None, "no"],
    "lung": ["no", None, "yes"],
    "bronc": ["yes", None, "no"],
    "either": ["no", None, "no"],
    "xray": ["no", "yes", "no"],
    "dysp": ["yes", None, "no"],
}
scores = clinic.log_prob(patients)
for row, (nats, kind) in enumerate(zip(scores.nats, scores.kinds, strict=True)):
    print(f"patient {row}: {nats:.4f} nats, {kind}")

by_hand = np.log([0.99, 0.5, 0.99, 0.9, 0.6, 1.0, 0.95, 0.8]).sum()
assert abs(scores.nats[0] - by_hand) < 1e-12
p_tub = 0.99 * 0.01 + 0.01 * 0.05
p_sick = 1 - (1 - p_tub) * (1 - 0.1)  # of a smoker
p_xray = p_sick * 0.98 + (1 - p_sick) * 0.05
assert abs(scores.nats[1] - np.log(0.5 * p_xray)) < 1e-12

# %% [markdown]
# The impossible row has log-probability -inf, and that is an answer: the model excludes it. A posterior given an
# impossible event does not exist, so the same row is refused when asked for one. (Some libraries return numbers here.)

# %%
try:
    clinic.marginals({name: [values[2]] for name, values in patients.items()})
except pg.errors.ZeroEvidenceError as refusal:
    print("refused:", refusal)

# %% [markdown]
# ## What is the matter with the second patient?
#
# Marginals are exact posteriors of each variable; the most probable explanation (MPE) is one joint completion, which
# need not consist of the likeliest single values. Draws complete the record at random, in proportion to the posterior.

# %%
found = clinic.marginals({"smoke": "yes", "xray": "yes"})
for name in ("tub", "lung", "bronc", "dysp"):
    print(f"p({name} = yes | smoker, abnormal X-ray) = {found[name][0, 1]:.4f}")
print("drawn:", clinic.plot("patient.png", marginals=found))
best = clinic.mpe({"smoke": ["yes"], "xray": ["yes"]})
print("most probable record:", {name: str(values[0]) for name, values in best.items()})
draws = clinic.sample(ROWS, given={"smoke": "yes", "xray": "yes"}, seed=0)
share = draws["lung"].to_pylist().count("yes") / ROWS
print(f"lung cancer in {share:.3f} of {ROWS} draws, the posterior says {found['lung'][0, 1]:.3f}")

# %% [markdown]
# Which questions need no numbers at all? The graph alone answers some. Asia and smoking tell nothing about each other,
# until the X-ray is known: then one explains the other away.

# %%
print("asia and smoke apart:", clinic.d_separated("asia", "smoke"))
print("given the X-ray:", clinic.d_separated("asia", "smoke", given="xray"))
print("all that tells about lung cancer directly:", clinic.markov_blanket("lung"))

# %% [markdown]
# ## What will it cost?
#
# Sums over missing cells run over tables, whose sizes are known before anything runs. A row over the limit is refused
# with a count, not tried.

# %%
print("clinic:", clinic.plan.cost())
try:
    from importlib.resources import files

    shipped = files("pgmpy") / "utils" / "example_models"
    for name in ("alarm", "insurance", "water"):
        print(f"{name}:", pg.BayesianNetwork.load_file(str(shipped / f"{name}.bif.gz")).plan.cost())
except (ModuleNotFoundError, pg.errors.StoreError) as lacking:
    print("the networks that ship with pgmpy are not here:", lacking)

# %% [markdown]
# ## Learning from records with gaps
#
# Drawn records, 30 % of the cells lost. Without gaps learning is counting; with them it is EM, which drops no row. One
# imaginary case a cell keeps what was never seen possible. Scores are of new rows: the truth can't be beaten but by
# chance, and `Independent`, which knows no edges, says what the edges are worth.

# %%
rng = np.random.default_rng(0)
records = clinic.sample(ROWS, seed=1)
drawn = {name: np.array(records[name].to_pylist(), dtype=object) for name in clinic.variables}
for column in drawn.values():
    column[rng.random(ROWS) < 0.3] = None
complete = sum(all(column[i] is not None for column in drawn.values()) for i in range(ROWS))
print(f"{complete} of {ROWS} rows are complete")

test = clinic.sample(ROWS, seed=2)
learner = pg.BayesianNetwork(clinic.event, clinic.edges)
learner.fit(drawn, prior="dirichlet", strength=0.5, seed=0, progress=False)
print(f"EM stopped after {learner.report.steps} iterations: {learner.report.stopped}")
alone = pg.BayesianNetwork(clinic.event).fit(drawn, prior="dirichlet", strength=0.5, seed=0, progress=False)
for name, model in {"truth": clinic, "learned": learner, "no edges": alone}.items():
    print(f"{name:9}", model.log_prob(test).mean())

# %% [markdown]
# A variable that was never observed can be learned too: here one of two levels that is to explain what X-ray, dyspnoea
# and smoking have in common. Symmetric starts would never leave their symmetry, so several random ones are tried; which
# level is called which means nothing.

# %%
event = pg.events.Table({name: pg.events.Category(("no", "yes")) for name in ("class", "xray", "dysp", "smoke")})
hidden = pg.BayesianNetwork(event, [("class", "xray"), ("class", "dysp"), ("class", "smoke")])
seen = {name: drawn[name] for name in ("xray", "dysp", "smoke")} | {"class": np.full(ROWS, None, dtype=object)}
hidden.fit(seen, seed=0, restarts=3, progress=False, max_iter=50 if SMOKE else 500, prior="dirichlet", strength=0.5)
print("starts reached, in nats a row:", np.round(hidden.report.optima, 4))
for name in ("class", "xray", "dysp", "smoke"):
    print(f"p({name} | class)\n" if name != "class" else "p(class)", end=" ")
    print(hidden.conditional(name).natural()["probs"].detach().numpy().round(3))

# %% [markdown]
# ## Exact, a lower bound, or nothing
#
# Reals join as linear Gaussians given categories, exactly, with gaps too. A category that depends on a *missing* real
# has no closed sum: those rows get a lower bound by drawing the real, typed so, and it never mixes unmarked with the
# exact ones. More draws lift it.

# %%
mixed = pg.BayesianNetwork(
    pg.events.Table(
        {
            "smoke": pg.events.Category(("no", "yes")),
            "capacity": pg.events.Real("litre"),
            "dysp": pg.events.Category(("no", "yes")),
        }
    ),
    [("smoke", "capacity"), ("capacity", "dysp")],
)
smoke = rng.random(ROWS) < 0.5
capacity = rng.normal(4.5 - 0.6 * smoke, 0.5)
dysp = rng.random(ROWS) < 1 / (1 + np.exp(4 * (capacity - 3.8)))
words = np.array(["no", "yes"], dtype=object)
mixed.fit({"smoke": words[smoke.astype(int)], "capacity": capacity, "dysp": words[dysp.astype(int)]}, seed=0)
rows = {"smoke": ["yes", "yes", None], "capacity": [3.5, None, 3.5], "dysp": ["yes", "yes", None]}
answer = mixed.log_prob(rows, seed=0)
for row, (nats, kind) in enumerate(zip(answer.nats, answer.kinds, strict=True)):
    print(f"row {row}: {nats:.4f} nats, {kind}")
print(answer.by)

# %% [markdown]
# ## Seeing and doing
#
# Among those who are seen to be short of breath, more smoke. *Making* somebody short of breath makes nobody smoke:
# `do` cuts the edges into what is set. The answer is as good as the arrows are true, and no data alone can tell that:
# on a learned graph effects that data leave open are refused.

# %%
seen_dysp = clinic.marginals({"dysp": "yes"})["smoke"][0, 1]
done_dysp = clinic.do({"dysp": "yes"}).marginals()["smoke"][0, 1]
print(f"p(smoke | dysp) = {seen_dysp:.4f}, p(smoke | do(dysp)) = {done_dysp:.4f}")
for level in ("no", "yes"):
    print(f"p(lung | do(smoke = {level})) = {clinic.do({'smoke': level}).marginals()['lung'][0, 1]:.4f}")

# %% [markdown]
# A counterfactual asks about this one patient: she took the drug and got well; would she have without? A table leaves
# that open, for it does not say how the same chance would have fallen. Without a mechanism there are bounds;
# with one that you name there is a number, which rests on an assumption that no data can test.

# %%
trial = pg.BayesianNetwork.from_tables(
    {
        "drug": {"no": 0.5, "yes": 0.5},
        "well": ("drug", {"no": {"no": 0.7, "yes": 0.3}, "yes": {"no": 0.4, "yes": 0.6}}),
    }
)
patient = {"drug": "yes", "well": "yes"}
bounds = trial.counterfactual(patient, do={"drug": "no"})
print(f"well all the same: between {bounds.lower['well'][0, 1]:.3f} and {bounds.upper['well'][0, 1]:.3f}")
named = trial.counterfactual(patient, do={"drug": "no"}, mechanism="gumbel-max", seed=0)
print(f"under Gumbel-max: {named['well'][0, 1]:.3f} ± {named.stderr['well'][0, 1]:.3f} ({named.kinds[0]})")

# %% [markdown]
# ## The same network as a Pyro program
#
# `clinic.model` has one sample site a node. Cells that are missing are enumerated, whatever the pattern, so Pyro's own
# sum is the same number, slower: it is the check on the clique tree, and the door to guides and larger programs.

# %%
x = clinic.event.check({name: values[:2] for name, values in patients.items()}).x
by_pyro = -pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).loss(clinic.model, lambda *args: None, x)
print(f"Pyro: {by_pyro:.10f}, the clique tree: {scores.nats[:2].sum():.10f}")
assert abs(by_pyro - scores.nats[:2].sum()) < 1e-9


# %% [markdown]
# The other way round: a discrete program becomes a network, its parents found by following what each site's
# distribution was computed from. Sites that come and go, or that are continuous, are refused by name.


# %%
def sprinkler():
    rain = pyro.sample("rain", dist.Bernoulli(torch.tensor(0.2, dtype=torch.float64)))
    on = torch.tensor([0.4, 0.01], dtype=torch.float64)[rain.long()]
    on = pyro.sample("sprinkler", dist.Bernoulli(on))
    wet = torch.tensor([[0.0, 0.8], [0.9, 0.99]], dtype=torch.float64)[on.long(), rain.long()]
    pyro.sample("wet", dist.Bernoulli(wet))


garden = pg.BayesianNetwork.from_pyro(sprinkler)
print("edges:", garden.edges)
print(f"p(rain | wet) = {garden.marginals({'wet': 1})['rain'][0, 1]:.4f}")

# %% [markdown]
# # Hidden Markov models: earthquakes and melodies
#
# A sequence is explained by a hidden state that moves now and then. The likelihood is exact: the states are summed out.
# Run it whole (`python tutorials/02_hidden_markov.py`), or cell by cell; `--smoke` is quick. It leaves one file behind,
# `earthquakes.png` in the folder you run it from.

# %%
import sys

import numpy as np

import probgen as pg
from probgen import emissions, transitions
from probgen.evaluate.paired import error_of_total

SMOKE = "--smoke" in sys.argv
RESTARTS = 1 if SMOKE else 10

# %% [markdown]
# ## 107 years of strong earthquakes
#
# Counts of magnitude 7 or more, 1900 to 2006. Given the state, a year's count is Poisson. EM climbs from several starts
# and the best is kept; the report says how far apart their optima are. The numbers of the states mean nothing: another
# start may number them in another order.

# %%
quakes = pg.datasets.load("earthquakes")
counts = quakes.x[0]
hmm = pg.HMM(states=3, emission=emissions.Poisson()).fit(counts, seed=0, restarts=RESTARTS)
print(hmm.log_prob(counts))
print(f"{RESTARTS} starts reached, in nats a year:", np.round(hmm.report.optima, 4))
for name, value in hmm.parameters_by_name().items():
    print(f"{name}:\n{np.round(value, 3)}")

# %% [markdown]
# Which state was each year in? The most probable path as a whole (Viterbi), and beside it the probability of that state
# in that year, given all the data. The picture shows the path as a ground, and the moves as arrows.

# %%
path = hmm.decode(counts)[0]
share = hmm.posterior(counts).marginals[0]
for year in (1900, 1943, 1950, 1976):
    k = path[year - 1900]
    print(f"{year}: {counts[year - 1900]} earthquakes, state {k}, probability {share[year - 1900, k]:.2f}")
print("drawn:", hmm.plot(counts, "earthquakes.png"))

# %% [markdown]
# ## How sure are the parameters?
#
# Standard errors come from the observed information. With three states some moves were never needed: their optimum is
# zero, on the boundary, where no such error exists, and it says so. Two states have an interior optimum.

# %%
try:
    hmm.standard_errors(counts)
except pg.errors.ParameterError as refusal:
    print("three states:", refusal)
two = pg.HMM(states=2, emission=emissions.Poisson()).fit(counts, seed=0, tol=1e-12, max_iter=5000)
errors = two.standard_errors(counts)
for k, (rate, error) in enumerate(zip(two.parameters_by_name()["rate"][:, 0], errors["rate"][:, 0], strict=True)):
    print(f"state {k}: {rate:.2f} ± {error:.2f} earthquakes a year")

# %% [markdown]
# ## What comes next?
#
# A forecast is a distribution: a mixture over the states at each step, with quantiles, a log-probability, and draws.

# %%
ahead = hmm.forecast(counts, 5)
low, middle, high = (ahead.quantile(q)[0, :, 0] for q in (0.05, 0.5, 0.95))
for s in range(5):
    print(f"{2007 + s}: median {middle[s]:.0f}, 90 % between {low[s]:.0f} and {high[s]:.0f}")
print("five years of 20 each:", ahead.log_prob(np.full(5, 20)).sum())

# %% [markdown]
# ## How many states?
#
# More states always fit better. The honest question is how well the model predicts years it has not seen: fit on the
# years before an origin, score the years up to the next one, each given all years before it, move on. The differences
# are paired, year by year; their error is Newey and West's, as years that follow each other are not independent.

# %%
origins = range(67, 107, 20 if SMOKE else 5)
ends = [*origins[1:], 107]


def rolling(fit):
    """One-step-ahead log-probabilities of the years from the first origin on, each from a fit on earlier years only."""
    scores = []
    for origin, end in zip(origins, ends, strict=True):
        model = fit(counts[:origin])
        scores.append(model.log_prob_steps(counts[:end]).nats[origin:])
    return np.concatenate(scores)


def states(k):
    return lambda past: pg.HMM(states=k, emission=emissions.Poisson()).fit(past, seed=0, restarts=RESTARTS)


ahead_of_time = {f"HMM({k})": rolling(states(k)) for k in (1, 2, 3, 4)}
best = max(ahead_of_time, key=lambda name: ahead_of_time[name].sum())
n = len(ahead_of_time[best])
print(f"{n} years scored one step ahead; the best is {best}")
near = []
for name, scores in ahead_of_time.items():
    difference = scores - ahead_of_time[best]
    total, error = difference.sum(), error_of_total(difference, [n])
    if name != best and abs(total) < max(4.0, 2 * error):
        near.append(name)
    print(f"{name}: {scores.sum():.1f} nats" + f", difference {total:.1f} ± {error:.1f}" * (name != best))
if near:
    print(f"Less than 4 nats or two errors from {best}, so not distinguishable from it: {', '.join(near)}.")
if n < 100:
    print(f"107 counts can't rank much: {n} scored years are fewer than the 100 from which such errors can be trusted.")

# %% [markdown]
# ## States that last
#
# In a Markov chain the time spent in a state is geometric: one year is always the likeliest. Explicit durations lift
# that. A chain may also start where it stays in the long run, or have moves that can't happen. Lower BIC is better; it
# charges each free parameter, and differences of a few units say little.

# %%
variants = {
    "Markov": transitions.Markov(),
    "stationary start": transitions.Markov("stationary"),
    "states in a circle": transitions.Markov(allowed=transitions.cyclic(3)),
    "negative-binomial durations": transitions.Durations(phases=3),
}
for name, moves in variants.items():
    m = pg.HMM(states=3, emission=emissions.Poisson(), transitions=moves).fit(counts, seed=0, restarts=RESTARTS)
    print(f"{name:28} {m.log_likelihood:.2f} nats, {m.n_params} parameters, BIC {m.bic():.1f}")

# %% [markdown]
# ## Melodies
#
# 39 tunes; a note is a pitch code and a duration in sixteenths. Given the state the two are independent, so all that
# ties them together, and one note to the next, is the hidden state. Whole tunes are held out.

# %%
tunes = pg.datasets.load("melodies")
train, test = tunes.split(test=0.25, seed=0)
models = {"Independent": pg.Independent(tunes.event).fit(train)}
for k in (2, 4) if SMOKE else (2, 4, 8, 16):
    models[f"HMM({k})"] = pg.HMM(tunes.event, states=k).fit(train, seed=0, restarts=2, max_iter=10 if SMOKE else 200)
print(pg.compare(models, test))

# %% [markdown]
# The hidden Markov model that predicts best, in its own words: what each state prefers, and a tune it makes up.

# %%
scores = {name: model.log_prob(test).sum().value for name, model in models.items() if name != "Independent"}
favourite = max(scores, key=scores.__getitem__)
player = models[favourite]
NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def spelled(note):
    pitch, duration = (int(v) for v in note)
    return ("rest" if pitch == 0 else NAMES[(pitch + 51) % 12] + str((pitch + 51) // 12 - 1)) + f"/{duration}"


print(f"{favourite}; a note is written pitch/duration in sixteenths")
for k, (pitches, durations) in enumerate(player.parameters_by_name()["probs"]):
    likeliest = [f"{spelled((pitch, durations.argmax()))} ({pitches[pitch]:.2f})" for pitch in (-pitches).argsort()[:3]]
    print(f"state {k} prefers {', '.join(likeliest)}")
print("a new tune:", " ".join(spelled(note) for note in player.sample(1, seed=1, length=16)[0]))

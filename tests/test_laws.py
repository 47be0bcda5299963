"""Laws that every family obeys. A family joins by being listed in store.FAMILIES; where a law says nothing about one,
the reason stands in DOES_NOT_APPLY."""

import ast
import contextlib
import copy
import inspect
import itertools
import math
import random
import warnings

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats

from probgen import store
from probgen.errors import DataError, NotFittedError, ParameterError, ProbgenError, ShapeError, StructureError
from probgen.estimate import ELBO, IWAE, Enumerate
from probgen.events import Array, Category, Count, Panel, Ragged, Real, Record, Series, Table, Text, arguments, row_hash
from probgen.logprob import Kind
from probgen.model import GenerativeModel, Latent, pyro_pair

ALPHA = 2e-6  # false-alarm rate of one statistical test; some fifty of them make 1e-4
QUICK = {
    "Diffusion": {"steps": 40, "batch_size": 64},
    "Flow": {"steps": 30, "batch_size": 64},
    "VAE": {"steps": 400, "learning_rate": 0.01},
    "GAN": {"steps": 30},
    "Mixture": {"restarts": 1},
    "HMM": {"restarts": 1, "max_iter": 25},
    "Standardize": {"restarts": 1, "max_iter": 25},
    "StateSpace": {"restarts": 1, "max_iter": 20},
    "LanguageModel": {"steps": 60},
}
BRIEF = {**QUICK, **{name: {**QUICK[name], "steps": 10} for name in ("Diffusion", "Flow", "GAN", "VAE")}}
SMALL = {
    "Diffusion": {"hidden": 16, "blocks": 1, "chain": 6},
    "Flow": {"layers": 2, "hidden": (16,), "bins": 5},
    "HMM": {"states": 2},
    "LanguageModel": {"layers": 1, "width": 16, "heads": 2, "pairs": 50, "window": 16, "precision": "double"},
    "VAE": {"latent_dim": 1, "hidden": (16,)},
    "GAN": {"latent_dim": 2, "hidden": (16,)},
    "Mixture": {"components": 3},
}
NO_DRAWS = {"Compressor": "a program that packs measures lengths, it draws nothing"}
DOES_NOT_APPLY = {
    ("samples", "Compressor"): NO_DRAWS["Compressor"],
    ("program trains", "Compressor"): "a program that packs has no parameters",
    ("exact", "VAE"): "a VAE gives lower bounds; they are held against quadrature instead",
    ("exact", "Diffusion"): "a density costs an integral: tests/test_diffusion.py integrates one, and sums its bound",
    ("exact", "GAN"): "a GAN has no likelihood",
    ("objective", "GAN"): "two players have no common objective that rises",
    ("program scores", "Diffusion"): "its latents are a chain: tests/test_diffusion.py holds its bound to its program",
    ("program scores", "GAN"): "its program has no density to condition on",
    ("program scores", "VAE"): "its latents are continuous: its hooks are held to its trace instead",
}


def gappy(rng, length):
    x = rng.normal(size=(length, 2)) + 3 * rng.integers(2)
    return np.where(rng.random((length, 2)) < 0.1, np.nan, x)


def draw_data():
    rng = np.random.default_rng(7)
    n = 150
    z = rng.normal(size=(n, 2))
    level = rng.integers(4, size=n)
    table = {
        "length": np.ma.MaskedArray(z[:, 0], rng.random(n) < 0.1),
        "colour": np.array(["red", "green", "blue"])[rng.integers(3, size=n)],
        "visits": rng.poisson(3.0, n),
    }
    columns = {"length": Real("cm"), "colour": Category(("red", "green", "blue", "never")), "visits": Count()}
    steps = {"tune": np.repeat(np.arange(30), 5), "value": z[:, 0].round(3), "colour": table["colour"]}
    pair = {"a": z[:, 0], "b": z[:, 0] * 0.5 + z[:, 1]}
    return {
        "real": (Array((2,)), z @ np.array([[1.0, 0.6], [0.0, 0.8]]) + 3.0 * (level[:, None] == 0)),
        "single": (Array(()), z[:, 0]),
        "levels": (
            Array((3,), levels=4),
            np.stack([level, (level + rng.integers(2, size=n)) % 4, rng.integers(4, size=n)], 1),
        ),
        "binary": (Array((2, 2), levels=2), (z[:, [0, 0, 0, 0]] + 0.1 * rng.normal(size=(n, 4)) > 0).reshape(n, 2, 2)),
        "rounded": (Array((2,), resolution=0.5, unit="cm"), np.round(2 * z) / 2),
        "positive": (Array((2,), support="positive"), np.exp(z)),
        "unit": (Array((2,), support="unit"), stats.norm.cdf(z)),
        "count": (Array((1,), support="count"), rng.poisson(4.0, (n, 1))),
        "table": (Table(columns), table),
        "categories": (
            Table({"u": Category((0, 1, 2)), "w": Category(("no", "yes"))}),
            {"u": np.minimum(level, 2), "w": np.where(level + rng.integers(2, size=n) > 1, "yes", "no")},
        ),
        "mixed": (
            Table({"length": Real("cm"), "colour": columns["colour"], "visits": Count()}, missing=False),
            {name: values[:60] for name, values in {**table, "length": z[:, 0]}.items()},
        ),
        "reals": (Table({"a": Real(), "b": Real()}, missing=False), pair),
        "series": (Series(levels=3), [rng.choice(3, p=(0.7, 0.2, 0.1), size=1 + i % 7) for i in range(n)]),
        "real series": (Series((2,)), [gappy(rng, 1 + i % 4) for i in range(60)]),
        "rounded series": (Series(resolution=0.5), [np.round(2 * rng.normal(size=1 + i % 6)) / 2 for i in range(40)]),
        "count series": (Series(support="count"), [rng.poisson(3.0 + i % 4, size=1 + i % 9) for i in range(40)]),
        "panel": (Panel({"value": Real(), "colour": columns["colour"]}, sequence="tune"), steps),
        "text": (Text(), [" ".join(["one", "two", "three"][: 1 + i % 3]) + str(i % 5) for i in range(30)]),
        "record": (Record(a=Array((2,)), b=Text()), {"a": z[:2], "b": ["x", "y"]}),
    }


DATA = draw_data()
NO_GAPS = {
    "Diffusion": "its network knows whole rows only: rows with gaps are refused",
    "Flow": "the marginal of some cells of a flow has no closed form: rows with gaps are refused",
}
WITH_GAPS = {"table"}
CASES = [
    (f, e)
    for f in store.FAMILIES
    for e in DATA
    if store.family(f).suits(DATA[e][0]) is None and not (f in NO_GAPS and e in WITH_GAPS)
]
_fitted = {}


def unfitted(family, event):
    """A small model for that event."""
    return store.family(family).for_event(DATA[event][0], **SMALL.get(family, {}))


# Not the class: a flow is exact on reals and a latent-variable model on rounded cells
LATENT = [case for case in CASES if isinstance(unfitted(*case), Latent)]


def fitted(family, event):
    """A quickly fitted model, made once."""
    if (family, event) not in _fitted:
        made = unfitted(family, event)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _fitted[family, event] = made.fit(DATA[event][1], seed=3, **QUICK.get(family, {}))
    return _fitted[family, event]


OF_THE_EXACT = {"exact", "program scores"}  # latent cases are held to quadrature and to their traces instead


def every(law, events=None):
    """The (family, event) pairs that a law speaks about."""
    chosen = [c for c in CASES if (law, c[0]) not in DOES_NOT_APPLY and (events is None or c[1] in events)]
    chosen = [c for c in chosen if law not in OF_THE_EXACT or c not in LATENT]
    assert chosen, law
    return pytest.mark.parametrize(("family", "event"), chosen, ids=[f"{f}-{e}" for f, e in chosen])


def rows_of(event, checked, rows):
    """Some rows in a form that the event takes."""
    x = checked.x
    if isinstance(event, Panel | Text):
        return event.restore(x[torch.as_tensor(rows)], "dict")
    if isinstance(x, Ragged):
        return [part.numpy() for part in x[torch.as_tensor(rows)].split()]
    if isinstance(event, Table):
        return event.restore(x[torch.as_tensor(rows)], "dict")
    return x[torch.as_tensor(rows)].numpy()


def few(event, n=12):
    """The first rows of a data set, in a form that its event takes: enough for the laws on bits, copies and state."""
    about, x = DATA[event]
    checked = about.check(x)
    return rows_of(about, checked, np.arange(min(n, len(checked))))


def briefly_fitted(family, event, made=None):
    """A fit long enough to be one, for the laws that its quality says nothing about."""
    return (made or unfitted(family, event)).fit(DATA[event][1], seed=3, **BRIEF.get(family, {}))


def numbers(lp):
    """Nats, or the refusal's text: what two answers must agree in."""
    return lp.reason if lp.refused.any() else lp.nats


def tolerance(model):
    return 1e-12 if all(p.dtype == torch.float64 for p in model.parameters()) else 1e-5


def draws(model, n, seed=0):
    """What a model draws; of one that draws nothing, that it says so."""
    if type(model).__name__ not in NO_DRAWS:
        return str(model.sample(n, seed=seed))
    with pytest.raises(StructureError, match="a model that draws"):
        model.sample(n, seed=seed)
    return f"refused {seed}"


def test_every_family_is_tried_on_some_event_and_every_exemption_is_of_a_family():
    assert {f for f, _ in CASES} == set(store.FAMILIES)
    assert {f for _, f in DOES_NOT_APPLY} <= set(store.FAMILIES)
    assert NO_GAPS.keys() <= set(store.FAMILIES)


@pytest.mark.parametrize("family", NO_GAPS)
def test_a_family_that_can_not_integrate_gaps_out_names_the_first_by_row_and_column(family):
    x = DATA["table"][1]
    row = int(np.ma.getmaskarray(x["length"]).argmax())
    model = unfitted(family, "table").fit({**x, "length": DATA["single"][1]}, seed=0, **QUICK.get(family, {}))
    for verb in (model.log_prob, unfitted(family, "table").fit):
        with pytest.raises(DataError, match=f"Row {row}, column length is missing") as caught:
            verb(x)
        assert caught.value.wanted
        assert caught.value.do


def test_a_flow_is_exact_on_reals_and_a_latent_model_where_cells_are_rounded():
    on = {e for f, e in LATENT if f == "Flow"}
    assert on == {"levels", "binary", "rounded", "count", "categories", "mixed"}
    assert {e for f, e in CASES if f == "Flow"} - on == {"real", "single", "positive", "unit", "reals"}


@pytest.mark.parametrize("family", store.FAMILIES)
def test_a_family_says_why_it_does_not_suit_an_event(family):
    for event, _ in DATA.values():
        why = store.family(family).suits(event)
        if why is not None:
            assert len(why) > 10
            with pytest.raises(StructureError, match="does not suit"):
                store.family(family)(event)


@every("samples")
def test_samples_pass_the_events_check(family, event):
    model = fitted(family, event)
    assert len(model.event.check(model.sample(40, seed=1))) == 40


@every("numbers")
def test_there_is_one_number_a_row_or_a_refusal(family, event):
    x = few(event, 40)
    lp = fitted(family, event).log_prob(x, seed=1)
    assert len(lp) == len(DATA[event][0].check(x))
    if lp.refused.any():
        assert lp.refused.all()
        assert len(lp.reason) > 20
        assert len(lp.instead) > 20
    else:
        assert not np.isnan(lp.nats).any()
        assert not np.isposinf(lp.nats).any()
        assert lp.measure == DATA[event][0].measure


@every("slices")
def test_batch_order_and_slicing_do_not_matter(family, event):
    model, about = fitted(family, event), DATA[event][0]
    x = few(event, 30 if family == "Diffusion" or (family, event) in LATENT else 150)
    whole = model.log_prob(x, seed=5)
    checked = about.check(x)
    for rows in (np.arange(len(checked))[::-1].copy(), np.array([17]), np.array([3, 3, len(checked) - 1, 4])):
        part = model.log_prob(rows_of(about, checked, rows), seed=5)
        if whole.refused.any():
            assert part.reason == whole.reason
        else:
            np.testing.assert_allclose(part.nats, whole.nats[rows], rtol=tolerance(model), atol=tolerance(model))


def all_outcomes(event):
    return np.array(list(itertools.product(*(range(n) for n in event.cell_levels)))).reshape(-1, *event.shape)


@every("exact", {"levels", "binary"})
def test_exact_masses_sum_to_one(family, event):
    nats = fitted(family, event).log_prob(all_outcomes(DATA[event][0])).nats
    assert np.exp(nats).sum() == pytest.approx(1, abs=1e-10)


def square(side):
    return np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)


def grid(low, high, n):
    return square(low + (high - low) * (np.arange(n) + 0.5) / n), (high - low) / n


def graded(reach, n):
    """Cells of a square, narrow around 0 and ever wider: their midpoints on the scale of asinh, and their areas."""
    end = math.asinh(reach)
    side = -end + 2 * end * (np.arange(n) + 0.5) / n
    return square(np.sinh(side)), square(np.cosh(side) * 2 * end / n).prod(1)


@every("exact", {"real"})
def test_exact_densities_integrate_to_one(family, event):
    # histograms have edges and Cauchy tails: the midpoint rule and the box leave the rest
    points, areas = graded(60.0, 240)
    total = np.exp(fitted(family, event).log_prob(points).nats) @ areas
    assert total == pytest.approx(1, abs=0.02)


@every("exact", {"rounded"})
def test_exact_interval_masses_sum_to_one(family, event):
    points = square(np.arange(-60, 61) * 0.5)
    assert np.exp(fitted(family, event).log_prob(points).nats).sum() == pytest.approx(1, abs=0.01)


@every("program scores")
def test_exact_is_the_enumerated_pyro_program(family, event):
    model = fitted(family, event)
    x = DATA[event][1]
    lp = model.log_prob(x)
    if isinstance(model.event, Series | Panel):
        assert lp.sum().value == pytest.approx(program_total(model, x), rel=1e-10)
        return
    np.testing.assert_allclose(model.log_prob(x, by=Enumerate()).nats, lp.nats, rtol=1e-9, atol=1e-9)


def program_total(model, x):
    """Of a program over sequences: its discrete states are summed out by Pyro."""
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # families without states have nothing to enumerate
        return -pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).loss(
            model.model, lambda *args: None, model.event.check(x).x
        )


SEQUENCES = {"series", "real series", "rounded series", "count series", "panel"}


@every("steps", SEQUENCES)
def test_one_step_ahead_scores_add_up_to_the_sequence(family, event):
    model, x = fitted(family, event), DATA[event][1]
    steps, whole = model.log_prob_steps(x), model.log_prob(x)
    lengths = model.event.check(x).x.lengths.tolist()
    totals = [part.sum() for part in np.split(steps.nats, np.cumsum(lengths)[:-1])]
    np.testing.assert_allclose(totals, whole.nats, rtol=1e-10, atol=1e-10)
    assert steps.of == "x_t|x_<t"
    assert int(steps.event.dims.sum()) == int(whole.event.dims.sum())


def all_series(length, levels):
    return np.array(list(itertools.product(range(levels), repeat=length)))


@every("exact", {"series"})
def test_masses_of_all_short_sequences_sum_to_one(family, event):
    nats = fitted(family, event).log_prob(list(all_series(4, 3))).nats
    assert np.exp(nats).sum() == pytest.approx(1, abs=1e-10)


@every("exact", {"series"})
def test_sampled_sequences_follow_the_masses_and_a_wrong_temperature_is_caught(family, event):
    model = fitted(family, event)
    p = np.exp(model.log_prob(list(all_series(4, 3))).nats)
    draws = np.stack(model.sample(enough(p), seed=11, length=4)).astype(int)
    counts = np.bincount(np.ravel_multi_index(draws.T, (3,) * 4), minlength=81)
    assert goodness(counts, p) > ALPHA
    assert goodness(counts, tempered(p)) < ALPHA


latent_cases = pytest.mark.parametrize(("family", "event"), LATENT, ids=[f"{f}-{e}" for f, e in LATENT])


@latent_cases
def test_the_hooks_of_a_latent_model_are_its_traces(family, event):
    model = copy.deepcopy(fitted(family, event)).double()
    x = model.event.check(DATA[event][1]).x[:20]
    noise = torch.randn(1, 20, model.latent_dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z, log_q = model._propose(x, None, noise)
    given_z = {"z": z[0].detach()}
    with pyro.validation_enabled(False):
        joint = poutine.trace(poutine.condition(model.model, given_z)).get_trace(x).log_prob_sum()
        guide = poutine.trace(poutine.condition(model.guide, given_z)).get_trace(x).log_prob_sum()
    assert float(model._log_joint(x, z, None).sum().detach()) == pytest.approx(float(joint.detach()), rel=1e-9)
    assert float(log_q.sum().detach()) == pytest.approx(float(guide.detach()), rel=1e-9)


def by_quadrature(model, x):
    """log p(x) of a model with up to four latent numbers, by the trapezoidal rule: an oracle without draws."""
    rows, back = torch.unique(x, dim=0, return_inverse=True)
    end, steps = {1: (9, 3000), 2: (5, 60), 3: (5, 16), 4: (5, 12)}[model.latent_dim]
    side = torch.linspace(-end, end, steps + 1, dtype=torch.float64)
    points = torch.cartesian_prod(*[side] * model.latent_dim).reshape(-1, 1, model.latent_dim)
    with torch.no_grad():
        joint = copy.deepcopy(model).double()._log_joint(rows, points.expand(-1, len(rows), -1), None)
    return (joint.logsumexp(0) + model.latent_dim * math.log(2 * end / steps))[back].numpy()


@latent_cases
def test_bounds_stand_in_order_below_the_truth(family, event):
    model, about = fitted(family, event), DATA[event][0]
    checked = about.check(DATA[event][1])
    first = np.unique(row_hash(checked.x), return_index=True)[1]  # equal rows share draws: each counts once a seed
    x, seeds = rows_of(about, checked, first), range(2, 2 + math.ceil(150 / len(first)))
    truth = np.tile(by_quadrature(model, checked.x[torch.as_tensor(first)]), len(seeds))
    ladder = []
    for by in (ELBO(200), IWAE(5), IWAE(200)):
        answers = [model.log_prob(x, by=by, seed=seed) for seed in seeds]
        assert all(lp.kind is Kind.LOWER for lp in answers)
        ladder.append(np.concatenate([lp.nats for lp in answers]))
    ladder.append(truth)
    for lower, upper in itertools.pairwise(ladder):
        assert one_sided_p(upper - lower) > ALPHA
    assert one_sided_p(ladder[2] - ladder[3] - 0.3) < ALPHA  # the twin: a bound 0.3 nats too high is caught


def one_sided_p(gain):
    """p-value of 'the mean gain is not below zero'."""
    error = gain.std(ddof=1) / math.sqrt(len(gain)) + 1e-6
    return stats.norm.cdf(gain.mean() / error)


def goodness(counts, probabilities):
    """Chi-square p-value of counts against cell probabilities; rare cells are pooled."""
    expected = counts.sum() * probabilities
    rare = expected < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], max(expected[rare].sum(), 1e-9))
    return stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), len(expected) - 1)


def masses(model, event):
    outcomes = all_outcomes(event)
    if isinstance(model, Latent):
        return np.exp(by_quadrature(model, event.check(outcomes).x))
    return np.exp(model.log_prob(outcomes).nats)


def tempered(probabilities):
    warm = probabilities**0.9
    return warm / warm.sum()


def enough(p):
    """Draws whose chi-square sees a wrong temperature: its mean exceeds the critical value by six of its deviations."""
    kept, q = p > 0, tempered(p)
    distance, degrees = ((p - q)[kept] ** 2 / q[kept]).sum(), len(p) - 1
    critical, n = stats.chi2.isf(ALPHA, degrees), 1000
    while degrees + n * distance - 6 * math.sqrt(2 * (degrees + 2 * n * distance)) < critical:
        n *= 2
    return n


WITH_MASSES = [c for c in CASES if c[1] in ("levels", "binary") and c[0] not in ("Diffusion", "GAN")]


@pytest.mark.parametrize(("family", "event"), WITH_MASSES, ids=[f"{f}-{e}" for f, e in WITH_MASSES])
def test_samples_follow_the_masses_and_a_wrong_temperature_is_caught(family, event):
    model, about = fitted(family, event), DATA[event][0]
    p = masses(model, about)
    draws = np.asarray(model.sample(n := enough(p), seed=11)).reshape(n, -1)
    codes = np.ravel_multi_index(draws.T.astype(int), about.cell_levels)
    counts = np.bincount(codes, minlength=math.prod(about.cell_levels))
    assert goodness(counts, p) > ALPHA
    assert goodness(counts, tempered(p)) < ALPHA


@every("exact", {"real", "reals"})
def test_samples_follow_the_density_and_a_wrong_temperature_is_caught(family, event):
    model = fitted(family, event)
    draws = model.event.check(model.sample(20_000, seed=12)).x.numpy()
    low, high, bins, fine = -4.0, 6.0, 8, 24
    points, step = grid(low, high, bins * fine)
    asked = points if event == "real" else {"a": points[:, 0], "b": points[:, 1]}
    p = np.exp(model.log_prob(asked).nats).reshape(bins, fine, bins, fine).sum((1, 3)).reshape(-1) * step**2
    assert p.sum() == pytest.approx(1, abs=0.02)  # the box holds nearly all; the law is tested inside it
    edges = np.linspace(low, high, bins + 1)
    counts = np.histogram2d(*draws.T, bins=[edges, edges])[0].reshape(-1)
    assert goodness(counts, p / p.sum()) > ALPHA
    assert goodness(counts, tempered(p)) < ALPHA


BAD = {
    "real": [(np.array([[1.0, np.nan]]), "row 0, column 1"), (np.array([[np.inf, 0]]), "inf"),
             (np.zeros((2, 3)), r"\(2, 3\)"), (np.zeros((0, 2)), "empty"), (np.array([["a", "b"]]), "'a'"),
             (np.zeros(2), r"\(2,\)")],
    "levels": [(np.array([[0, 1, 4]]), "row 0, column 2: 4"), (np.array([[0, 1, 0.5]]), "0.5"),
               (np.array([[0, -1, 0]]), "-1")],
    "rounded": [(np.array([[0.5, 0.3]]), "0.3")],
    "positive": [(np.array([[1.0, -2.0]]), "-2.0"), (np.array([[1.0, 0.0]]), "0.0")],
    "count": [(np.array([[-1]]), "-1"), (np.array([[1.5]]), "1.5")],
    "table": [({"length": [1.0], "colour": ["pink"], "visits": [1]}, "row 0, column colour: 'pink'"),
              ({"length": [1.0], "colour": ["red"]}, "visits"),
              ({"length": ["x"], "colour": ["red"], "visits": [1]}, "'x'")],
    "series": [([np.array([0, 3])], "3"), ([], "empty|rows")],
}  # fmt: skip


@every("bad input", set(BAD))
def test_bad_input_is_refused_by_name_in_both_verbs(family, event):
    model = fitted(family, event)
    for bad, named in BAD[event]:
        for verb in (model.log_prob, copy.deepcopy(model).fit):
            if family == "BayesianNetwork" and named == "visits" and verb == model.log_prob:
                continue  # what rows to score lack is missing; a fit wants every column
            with pytest.raises(DataError, match=named) as caught:
                verb(bad)
            assert caught.value.wanted


@every("gaps", {"real", "reals"})
def test_gaps_are_integrated_out_or_refused_by_row(family, event):
    model = fitted(family, event)
    if event == "real":
        with pytest.raises(DataError, match="row 1, column 0"):
            model.log_prob([[0.0, 1.0], [None, 2.0]])
    else:
        with pytest.raises(DataError, match="column a"):
            model.log_prob({"a": [1.0, None], "b": [1.0, 2.0]})


@every("save")
def test_saved_and_loaded_models_give_the_same_bits(family, event, tmp_path):
    model = fitted(family, event)
    again = store.load(store.save(model, tmp_path / "m"))
    assert repr(again) == repr(model)
    assert again.report == model.report
    x = few(event)
    np.testing.assert_array_equal(numbers(again.log_prob(x, seed=4)), numbers(model.log_prob(x, seed=4)))
    assert draws(again, 5, seed=4) == draws(model, 5, seed=4)


@every("seeds")
def test_the_same_seed_gives_the_same_answer(family, event):
    model, twin, x = briefly_fitted(family, event), briefly_fitted(family, event), few(event)
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
    assert draws(model, 9, seed=1) == draws(twin, 9, seed=1)
    assert draws(model, 9, seed=1) != draws(model, 9, seed=2)
    np.testing.assert_array_equal(numbers(model.log_prob(x, seed=1)), numbers(twin.log_prob(x, seed=1)))


@every("deepcopy")
def test_a_deep_copy_works_after_every_verb(family, event):
    fresh = unfitted(family, event)
    model = copy.deepcopy(briefly_fitted(family, event, copy.deepcopy(fresh)))
    draws(model, 2)
    model.log_prob(few(event))
    assert repr(copy.deepcopy(model)) == repr(fresh)


def process_state():
    """What a library must leave as it was."""
    return (
        torch.get_rng_state().numpy().tobytes(),
        np.random.get_state()[1].tobytes(),  # noqa: NPY002
        random.getstate(),
        len(pyro.get_param_store()),
        torch.distributions.Distribution._validate_args,
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        tuple(map(str, warnings.filters)),
        len(poutine.runtime._PYRO_STACK),
    )


@every("global state")
def test_no_verb_touches_global_state(family, event):
    x, before = few(event), process_state()
    model = briefly_fitted(family, event)
    draws(model, 3)
    model.log_prob(x)
    model.log_prob(x, by=IWAE(10))
    assert process_state() == before


@every("objective")
def test_fit_raises_its_own_objective(family, event):
    report = fitted(family, event).report
    assert len(report.objective) >= 2
    assert max(report.objective) > report.objective[0] or report.stopped in ("converged", "closed form")
    assert report.objective[-1] >= report.objective[0]
    assert report.seed == 3
    assert report.seconds > 0


@every("repr")
def test_the_repr_is_the_constructor_call(family, event):
    model = fitted(family, event)
    call = ast.parse(repr(model), mode="eval").body
    assert isinstance(call, ast.Call)
    assert call.func.id == family
    assert repr(type(model)(**arguments(model))) == repr(model)


@every("program trains")
def test_one_step_of_svi_through_pyro_pair_moves_the_parameters(family, event):
    model = copy.deepcopy(fitted(family, event))
    x = model.event.check(DATA[event][1]).x
    if family == "GAN":
        return one_step_through_the_generator(model)
    with torch.no_grad():  # away from the optimum, where gradients are zero
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    program, guide = pyro_pair(model, "law")
    pyro.clear_param_store()
    try:
        loss = (
            pyro.infer.TraceEnum_ELBO(max_plate_nesting=1) if not isinstance(model, Latent) else pyro.infer.Trace_ELBO()
        )
        svi = pyro.infer.SVI(program, guide, pyro.optim.SGD({"lr": 1e-4}), loss)
        with pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            svi.step(x)
        assert any(name.startswith("law") for name in pyro.get_param_store())
    finally:
        pyro.clear_param_store()
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert moved
    return None


def one_step_through_the_generator(model):
    """A GAN's program draws: its parameters get gradients through the draw."""
    model.model(n=4).to(torch.float32).sum()
    z = torch.randn(4, model.latent_dim)
    model._generate(z).sum().backward()
    assert all(p.grad is not None for p in model.generator.parameters())


@pytest.mark.parametrize("family", store.FAMILIES)
def test_a_family_is_final_and_keeps_the_verbs(family):
    made = store.family(family)
    with pytest.raises(TypeError, match="final"):
        type("Mine", (made,), {})
    assert made.fit is GenerativeModel.fit
    assert made.log_prob is GenerativeModel.log_prob


def test_verbs_can_not_be_overridden_nor_submodules_bear_their_names():
    with pytest.raises(TypeError, match="verbs are final"):
        type("Mine", (GenerativeModel,), {"fit": lambda self: self})
    with pytest.raises(StructureError, match="sample"):
        fitted("Mixture", "real").sample = 3


@every("arguments")
def test_wrong_arguments_are_refused(family, event):
    fresh = unfitted(family, event)
    for verb in (lambda: fresh.sample(3), lambda: fresh.log_prob(DATA[event][1])):
        with pytest.raises(NotFittedError, match="fit"):
            verb()
    model = fitted(family, event)
    for n in (0, -3, 2.5, "2", True):
        with pytest.raises(ParameterError, match="n="):
            model.sample(n)
    with pytest.raises(ParameterError, match="seed"):
        model.sample(2, seed=-1)
    with pytest.raises(ParameterError, match="has no option 'stepz'"):
        model.fit(DATA[event][1], stepz=3)
    with pytest.raises(ParameterError, match="given"):
        model.log_prob(DATA[event][1], given=[1])
    with pytest.raises(ParameterError, match="by="):
        model.log_prob(DATA[event][1], by="iwae")


@every("foreign events")
def test_data_of_another_event_are_refused_not_crashed(family, event):
    model = fitted(family, event)
    for other, (about, x) in DATA.items():
        with contextlib.suppress(ProbgenError):
            assert len(model.log_prob(few(other, 5) if isinstance(about, Array | Table) else x)) > 0, other


def test_the_options_of_fit_are_keyword_only_and_documented():
    for name in store.FAMILIES:
        parameters = inspect.signature(store.family(name)._fit).parameters
        assert parameters["generator"].kind is inspect.Parameter.KEYWORD_ONLY
        if len(parameters) > 4:
            assert store.family(name)._fit.__doc__


def test_wrong_width_names_both_shapes():
    with pytest.raises(ShapeError, match=r"\(4, 3\).*\(n, 2\)"):
        fitted("Mixture", "real").log_prob(np.zeros((4, 3)))

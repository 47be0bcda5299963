"""LogProb: what kind of number comes out of which arithmetic, and that no refusal ever passes for a number."""

import copy
import itertools
import math
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probgen import errors
from probgen.errors import Incomparable, LikelihoodUnavailable, ParameterError, ProbgenError, ShapeError
from probgen.logprob import Fingerprint, Kind, LogProb, Summary, kinds, logprob
from probgen.logprob.kinds import weakest

searched = settings(derandomize=True, deadline=None, max_examples=80)
E, L, U, S = Kind.EXACT, Kind.LOWER, Kind.UPPER, Kind.ESTIMATE
KINDS = ["exact", "lower", "upper", "estimate", "score", "unavailable"]
LETTER = dict(zip("elusc?", KINDS, strict=True))
INF = math.inf
LN2 = math.log(2)


def lp(kinds, nats, **about):
    return LogProb(kinds, nats, **{"by": "test", **about})


def about(n, start=0, **changes):
    rows = np.arange(start, start + n)
    given = {
        "keys": rows, "content": rows.astype(np.uint64) * 7919, "dims": np.full(n, 4), "event": "Array(shape=(4,))",
        "measure": "counting",
    }  # fmt: skip
    return Fingerprint(**{**given, **changes})


def numbered(kind, n, **changes):
    nan = kind == "unavailable"
    return lp(
        kind, np.full(n, math.nan if nan else -1.0), reason="no density" * nan, instead="m.sample()" * nan, **changes
    )


def ends(a):
    """The rows' totals by iteration, or None where a LogProb can't be iterated."""
    try:
        rows = list(itertools.islice(iter(a), len(a) + 1))
    except TypeError:
        return None
    assert len(rows) == len(a), "iteration has no end"
    return [float(row.sum()) for row in rows]


def streams(*keys):
    return np.array(keys, dtype=np.uint64)


def same(a, b):
    """Every field of two LogProbs, NaN equal to NaN."""
    fields = {k: (a.__dict__[k], b.__dict__[k]) for k in a.__dict__ if k not in ("event", "diagnostics")}
    for name, (one, two) in fields.items():
        equal = np.array_equal(one, two, equal_nan=name in ("nats", "stderr")) if one is not None else two is None
        assert equal, (name, one, two)
    assert a.diagnostics.keys() == b.diagnostics.keys()
    assert all(np.array_equal(a.diagnostics[k], b.diagnostics[k], equal_nan=True) for k in a.diagnostics)
    assert (a.event is None) == (b.event is None)
    if a.event is not None:
        for name, one in vars(a.event).items():
            assert np.array_equal(one, vars(b.event)[name]), name


# The tables of kinds. Rows: the left number; columns: the right one, in the order of KINDS. "-" is a refusal.

PLUS = """
exact        e l u s - ?
lower        l l - s - ?
upper        u - u s - ?
estimate     s s s s - ?
score        - - - - c ?
unavailable  ? ? ? ? ? ?
"""
MINUS = """
exact        e u l s - ?
lower        l - l - - ?
upper        u u - - - ?
estimate     s - - s - ?
score        - - - - c ?
unavailable  ? ? ? ? ? ?
"""


def table(text):
    rows = [line.split() for line in text.strip().splitlines()]
    return [(a, b, LETTER.get(letter)) for a, *letters in rows for b, letter in zip(KINDS, letters, strict=True)]


def plus(a, b):
    return a.replace(of="x|y") + b.replace(of="y")


def minus(a, b):
    return a - b


CELLS = [("+", plus, *cell) for cell in table(PLUS)] + [("-", minus, *cell) for cell in table(MINUS)]


@pytest.mark.parametrize(("sign", "combine", "a", "b", "kind"), CELLS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_the_whole_table_of_kinds(sign, combine, a, b, kind):
    left, right = numbered(a, 2), numbered(b, 2)
    if kind is None:
        with pytest.raises(Incomparable) as caught:
            combine(left, right)
        assert caught.value.came
        assert caught.value.wanted
        return
    answer = combine(left, right)
    assert answer.kind == kind
    assert list(answer.kinds) == [kind, kind]
    assert answer.refused.all() == (kind == "unavailable")


def test_the_tables_have_a_cell_for_every_pair():
    assert len(CELLS) == 2 * len(Kind) ** 2
    assert list(Kind) == KINDS


# Soundness. Whole numbers, so that sums and differences are exact and no tolerance is needed.


def measured(truth, kinds, sizes):
    """Numbers of the given kinds about the truth: errors on the side that each kind allows."""
    side = {"exact": 0 * sizes, "lower": -abs(sizes), "upper": abs(sizes), "estimate": sizes}
    return truth + np.array([side[kind][i] for i, kind in enumerate(kinds)])


def unsound(answer, truth):
    """Rows whose error lies on a side that their kind excludes."""
    error = answer.__dict__["nats"] - truth
    excluded = {"exact": error != 0, "lower": error > 0, "upper": error < 0, "estimate": error != error}
    return sum(bool(excluded[kind][i]) for i, kind in enumerate(answer.kinds))


whole = st.integers(-50, 50)
row = st.tuples(st.sampled_from(KINDS[:4]), whole, whole)


@pytest.mark.parametrize(("combine", "op"), [(plus, np.add), (minus, np.subtract)])
@searched
@given(rows=st.lists(st.tuples(row, row), min_size=1, max_size=4))
def test_every_answer_has_its_error_on_the_side_it_claims(combine, op, rows):
    sides = [list(zip(*side, strict=True)) for side in zip(*rows, strict=True)]
    truths = [np.array(side[1], dtype=float) for side in sides]
    try:
        a, b = (lp(kinds, measured(t, kinds, np.array(e))) for (kinds, _, e), t in zip(sides, truths, strict=True))
        answer = combine(a, b)
    except Incomparable:  # which pairs may be refused: the table above
        return
    assert unsound(answer, op(*truths)) == 0


def violations(combine, op, n=200, seed=0):
    """Over every pair of kinds: unsound rows among n, with random errors."""
    rng, count = np.random.default_rng(seed), 0
    for pair in itertools.product(KINDS[:4], repeat=2):
        truths = rng.integers(-9, 9, (2, n)).astype(float)
        a, b = (lp(kind, measured(t, [kind] * n, rng.integers(-9, 9, n))) for kind, t in zip(pair, truths, strict=True))
        try:
            count += unsound(combine(a, b), op(*truths))
        except Incomparable:
            continue
    return count


def test_no_pair_of_kinds_is_unsound():
    assert violations(plus, np.add) == 0
    assert violations(minus, np.subtract) == 0


@pytest.mark.parametrize(
    ("pair", "claim"),
    [
        ((E, L), L),
        ((E, U), U),
        ((L, E), E),
        ((L, L), L),
        ((L, U), U),
        ((U, U), U),
        ((U, L), L),
        ((S, E), U),
        ((S, L), L),
    ],
)
def test_twin_a_wrong_cell_of_the_difference_table_is_detected(monkeypatch, pair, claim):
    monkeypatch.setitem(kinds._DIFFERENCE, pair, claim)
    assert violations(minus, np.subtract) > 50


def test_twin_a_sum_that_takes_the_strongest_kind_is_detected(monkeypatch):
    monkeypatch.setattr(logprob, "weakest", lambda claims: min(claims, key=kinds._STRENGTH.__getitem__))
    assert violations(plus, np.add) > 50


def test_twin_a_sum_that_lets_lower_meet_upper_is_detected(monkeypatch):
    monkeypatch.setattr(logprob, "weakest", lambda claims: max(claims, key=kinds._STRENGTH.__getitem__))
    assert violations(plus, np.add) > 50


def test_no_sound_claim_is_refused_among_bounds():
    """A difference is refused only where both sides of error occur, or a bound meets an estimate."""
    sides = {E: set(), L: {-1}, U: {1}}
    for a, b in itertools.product(sides, repeat=2):
        possible = sides[a] | {-side for side in sides[b]}
        assert ((a, b) in kinds._DIFFERENCE) == (len(possible) < 2)


def test_rows_may_differ_in_kind_and_each_keeps_its_own():
    answer = lp([E, E, S], [0.0, 0.0, 0.0]) - lp([L, E, E], [0.0, 0.0, 0.0])
    assert list(answer.kinds) == [U, E, S]
    assert answer.kind == S
    assert lp([E, L], [0.0, 0.0]).kind == L


@pytest.mark.parametrize("kinds", [("lower", "upper"), ("score", "exact"), ("score", "estimate")])
def test_rows_whose_kinds_never_mix_are_refused_at_birth_and_on_joining(kinds):
    with pytest.raises(Incomparable):
        lp(kinds, [0.0, 0.0])
    with pytest.raises(Incomparable):
        LogProb.concat([lp(kind, [0.0]) for kind in kinds])
    with pytest.raises(Incomparable):
        weakest([Kind(kind) for kind in kinds])


def test_a_difference_whose_rows_would_mix_lower_and_upper_is_refused():
    with pytest.raises(Incomparable):
        lp([E, L], [0.0, 0.0]) - lp([L, U], [0.0, 0.0])


# What may be combined


@pytest.mark.parametrize("combine", [plus, minus])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (numbered(E, 2), numbered(E, 3)),
        (numbered(E, 2), numbered(E, 1)),
        (numbered(E, 2, event=about(2)), numbered(E, 2, event=about(2, start=1))),
        (numbered(E, 2, event=about(2)), numbered(E, 2, event=about(2)[::-1])),
        (numbered(E, 2, target="p^ODE"), numbered(E, 2, target="G(z)+N(0,0.1^2)")),
    ],
    ids=["length", "one row is not broadcast", "other rows", "other order", "other target"],
)
def test_numbers_about_other_things_are_refused(combine, a, b):
    with pytest.raises(Incomparable) as caught:
        combine(a, b)
    assert caught.value.wanted


@pytest.mark.parametrize(
    ("field", "one", "two"),
    [
        ("of", "x", "x+u"),
        ("of", "x|y", "x"),
        ("measure", "counting", "lebesgue"),
        ("measure", "lebesgue(cm)", "lebesgue(m)"),
    ],
)
def test_a_ratio_needs_one_variable_and_one_measure(field, one, two):
    a, b = numbered(E, 2, **{field: one}), numbered(E, 2, **{field: two})
    with pytest.raises(Incomparable, match=field) as caught:
        a - b
    assert one in caught.value.came
    assert two in caught.value.came
    with pytest.raises(Incomparable, match=field):
        LogProb.concat([a, b])


def test_parts_with_other_targets_are_not_joined():
    with pytest.raises(Incomparable, match="target"):
        LogProb.concat([numbered(E, 1), numbered(E, 1, target="p^ODE")])


def test_a_ratio_against_another_target_says_so():
    ratio = numbered(E, 2, target="p^ODE") - numbered(E, 2)
    assert ratio.target == "p^ODE / p"
    assert (numbered(E, 2) - numbered(E, 2)).target == "p"


def test_a_ratio_is_no_density_and_joins_no_chain():
    ratio = numbered(E, 2, of="x|y", measure="lebesgue") - numbered(E, 2, of="x|y", measure="lebesgue")
    assert ratio.measure == "ratio"
    with pytest.raises(Incomparable):
        ratio + numbered(E, 2, of="y", measure="counting")
    with pytest.raises(Incomparable):
        ratio - numbered(E, 2, of="x|y", measure="lebesgue")


def test_equal_rows_under_other_keys_are_the_same_rows():
    renamed = about(2, keys=np.array(["p", "q"]))
    assert len(numbered(E, 2, event=about(2)) - numbered(E, 2, event=renamed)) == 2


@pytest.mark.parametrize("other", [1, 1.0, None, "x"], ids=repr)
def test_plain_numbers_are_no_log_probabilities(other):
    with pytest.raises(TypeError):
        numbered(E, 2) + other
    with pytest.raises(TypeError):
        numbered(E, 2) - other


def test_numpy_numbers_are_no_log_probabilities_either():
    ends(numbered(E, 2))  # NumPy walks along what it does not know: without an end it would never come back
    for combine in (lambda a: a + np.float64(2), lambda a: np.float64(2) - a, lambda a: a - np.zeros(2)):
        with pytest.raises(TypeError):
            combine(numbered(E, 2))


def test_the_builtin_sum_does_not_total_log_probabilities():
    with pytest.raises(TypeError):
        sum([numbered(E, 2), numbered(E, 2)])


@pytest.mark.parametrize(
    ("a", "b", "joint"),
    [
        ("x|y", "y", "x,y"),
        ("x|y,z", "y,z", "x,y,z"),
        ("x|z,y", "y,z", "x,y,z"),
        ("x|y,z", "y|z", "x,y|z"),
        ("x|y,z,w", "y|w,z", "x,y|w,z"),
        ("x,w|y", "y", "x,w,y"),
        ("x+u|y", "y", "x+u,y"),
    ],
)
def test_the_chain_rule_names_the_joint_variable_in_either_order(a, b, joint):
    for one, two in ((a, b), (b, a)):
        answer = lp(E, [-1.0, -2.0], of=one) + lp(E, [-4.0, -8.0], of=two)
        assert answer.of == joint
        assert answer.nats.tolist() == [-5.0, -10.0]


@pytest.mark.parametrize(
    ("a", "b"),
    [("x", "x"), ("x", "y"), ("x|y", "x"), ("x|y", "z"), ("x|y", "x|y"), ("x|y", "y|x"), ("x|y", "y|z"), ("x|y,z", "y"),
     ("x", "x|y"), ("x|y", "y,z"), ("", ""), ("x|y", "")],
)  # fmt: skip
def test_sums_that_no_chain_rule_allows_are_refused(a, b):
    for one, two in ((a, b), (b, a)):
        with pytest.raises(Incomparable, match=r"log p\("):
            lp(E, [0.0], of=one) + lp(E, [0.0], of=two)


def test_a_chain_of_three_is_the_same_from_either_end():
    x, y, z = lp(L, [-1.0], of="x|y,z"), lp(E, [-2.0], of="y|z"), lp(L, [-4.0], of="z")
    one, two = (x + y) + z, x + (y + z)
    assert (one.of, one.nats[0], one.kind) == (two.of, two.nats[0], two.kind) == ("x,y,z", -7.0, L)


@pytest.mark.parametrize(
    ("a", "b", "both"),
    [("counting", "counting", "counting"), ("lebesgue(cm)", "counting", "counting x lebesgue(cm)"),
     ("", "counting", "counting"),
     ("lebesgue(a) x counting(b)", "lebesgue(c)", "counting(b) x lebesgue(a) x lebesgue(c)")],
)  # fmt: skip
def test_the_measure_of_a_joint_is_canonical(a, b, both):
    one, two = lp(E, [0.0], of="x|y", measure=a), lp(E, [0.0], of="y", measure=b)
    assert (one + two).measure == (two + one).measure == both


def test_names_of_estimators_are_kept():
    a, b = lp(L, [0.0], by="IWAE(samples=64)", of="x|y"), lp(E, [0.0], by="Enumerate()", of="y")
    assert (a + b).by == "IWAE(samples=64) + Enumerate()"
    assert (a - b.replace(of="x|y")).by == "IWAE(samples=64) - Enumerate()"
    assert LogProb.concat([a, b.replace(of="x|y"), a]).by == "IWAE(samples=64) | Enumerate()"


# Impossible rows

level = st.sampled_from([-INF, -3.0, 0.0, 2.0])


@searched
@given(rows=st.lists(st.tuples(level, level), min_size=1, max_size=5))
def test_impossible_rows_never_become_nan(rows):
    a, b = (lp(E, list(side)) for side in zip(*rows, strict=True))
    total, ratio = plus(a, b), a - b
    assert total.nats.tolist() == [x + y for x, y in rows]
    assert ratio.refused.tolist() == [x == y == -INF for x, y in rows]
    kept = ratio[~ratio.refused].nats
    assert kept.tolist() == [x - y for x, y in rows if not x == y == -INF]
    assert "nan" not in repr(total)


def test_twin_a_subtraction_that_keeps_zero_over_zero_is_detected():
    with np.errstate(invalid="ignore"):
        kept = np.subtract([-INF], [-INF])
    with pytest.raises(ParameterError):
        lp(E, kept)


def test_zero_over_zero_is_refused_with_its_reason_and_the_other_rows_stay():
    ratio = lp(L, [-INF, -1.0]) - lp(E, [-INF, -3.0])
    assert list(ratio.kinds) == ["unavailable", "lower"]
    assert "impossible under both" in ratio.reason
    assert ratio.instead
    assert ratio[1].nats.tolist() == [2.0]
    with pytest.raises(LikelihoodUnavailable, match="1 of 2 rows"):
        _ = ratio.nats


def test_an_impossible_row_makes_the_total_minus_infinity_and_is_counted():
    s = lp(E, [-INF, -1.0, -INF]).mean()
    assert (s.value, s.impossible, s.n) == (-INF, 2, 3)
    assert math.isnan(s.between_rows)
    assert "2 impossible rows" in str(s)
    assert lp(E, [-INF, -1.0]).impossible.tolist() == [True, False]


def test_ratios_of_plus_and_minus_infinity_total_to_no_nan():
    ratio = lp(E, [-1.0, -INF]) - lp(E, [-INF, -1.0])
    assert ratio.nats.tolist() == [INF, -INF]
    assert "nan" not in repr(ratio)
    try:
        total = float(ratio.sum())
    except ProbgenError:
        return
    assert not math.isnan(total)


def test_an_impossible_row_has_an_infinite_code_length():
    for code in (lp(E, [-INF, -1.0], event=about(2, bytes=np.array([3, 4]))).bits_per_dim(),
                 lp(E, [-INF, -1.0], event=about(2, bytes=np.array([3, 4]))).bits_per_byte()):  # fmt: skip
        assert code.value == INF
        assert math.isnan(code.between_rows)


def test_a_log_likelihood_of_plus_infinity_is_refused_at_birth():
    with pytest.raises(ParameterError):
        lp(E, [INF, 0.0])


# Refusals


def refused(n=2, reason="a GAN has no density", instead="pg.compare(m)", **changes):
    return LogProb.refuse(n, reason, instead, **changes)


READS = {
    "nats": lambda r: r.nats,
    "sum": lambda r: r.sum(),
    "mean": lambda r: r.mean(),
    "bits_per_dim": lambda r: r.bits_per_dim(),
    "bits_per_byte": lambda r: r.bits_per_byte(),
    "float": lambda r: float(r.mean()),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("partly", [False, True])
def test_no_number_is_read_from_a_refusal(read, partly):
    texts = about(2, bytes=np.array([5, 6]))
    whole = refused(event=texts)
    r = LogProb.concat([whole, lp(E, [-1.0, -2.0], event=texts)]) if partly else whole
    with pytest.raises(LikelihoodUnavailable) as caught:
        read(r)
    assert "a GAN has no density" in caught.value.reason
    assert "pg.compare(m)" in caught.value.instead
    assert caught.value.code == "unavailable"
    assert ("2 of 4 rows" in str(caught.value)) == partly


def test_twin_a_guard_that_lets_nan_through_is_detected(monkeypatch):
    monkeypatch.setattr(logprob._Nats, "__get__", lambda self, lp, owner=None: lp.__dict__["nats"])
    with pytest.raises(pytest.fail.Exception):
        test_no_number_is_read_from_a_refusal(READS["sum"], False)


def test_the_advice_for_a_partial_refusal_works():
    r = LogProb.concat([refused(1), lp(E, [-1.0, -2.0])])
    with pytest.raises(LikelihoodUnavailable) as caught:
        _ = r.nats
    assert "lp[~lp.refused].nats" in caught.value.instead
    assert r[~r.refused].nats.tolist() == [-1.0, -2.0]
    assert r[1:].sum().value == -3.0


def test_a_refusal_survives_slicing_joining_and_arithmetic():
    r = refused(3)
    assert len(r[1:]) == 2
    assert r[[0]].refused.all()
    assert LogProb.concat([r, r]).reason == "a GAN has no density"
    ratio = lp(E, [-1.0, -2.0, -3.0]) - r
    assert ratio.refused.all()
    assert (ratio.reason, ratio.instead) == ("a GAN has no density", "pg.compare(m)")
    assert plus(r, lp(E, [-1.0, -2.0, -3.0])).refused.all()
    assert r.replace(by="somebody").by == "somebody"


@pytest.mark.parametrize("order", ["AB", "BA"])
def test_each_refused_row_keeps_its_own_reason_when_joined(order):
    joined = LogProb.concat([refused(1, f"reason {letter}", f"do {letter}") for letter in order])
    for text, letter in zip(joined.frame()["reason"].to_pylist(), order, strict=True):
        assert f"reason {letter}" in text


def test_a_reason_whose_rows_were_sliced_away_is_given_for_no_other_row():
    kept = LogProb.concat([refused(1, "reason A", "do a"), lp(E, [-1.0])])[1:]
    joined = LogProb.concat([kept, refused(1, "reason B", "do b")])
    assert "reason B" in joined.frame()["reason"].to_pylist()[1]
    ratio = kept - refused(1, "reason B", "do b")
    assert "reason B" in ratio.frame()["reason"].to_pylist()[0]


def test_zero_over_zero_beside_a_refusal_keeps_its_own_reason():
    a = LogProb.concat([refused(1, "reason A", "do a"), lp(E, [-INF])])
    reasons = (a - lp(E, [-1.0, -INF])).frame()["reason"].to_pylist()
    assert "reason A" in reasons[0]
    assert "impossible under both" in reasons[1]


@pytest.mark.parametrize(
    ("kinds", "nats", "changes"),
    [
        (E, [math.nan], {}),
        ([E, "unavailable"], [math.nan, -1.0], {"reason": "r", "instead": "i"}),
        ("unavailable", [-1.0], {"reason": "r", "instead": "i"}),
        ("unavailable", [-INF], {"reason": "r", "instead": "i"}),
        ("unavailable", [math.nan], {}),
        ("unavailable", [math.nan], {"reason": "r"}),
        ([E, E, E], [0.0, 0.0], {}),
        ("exactly", [0.0], {}),
        (E, [0.0], {"stderr": [-1.0]}),
    ],
    ids=["NaN", "NaN beside", "number in a refusal", "-inf in a refusal", "no reason", "no instead",
         "three kinds for two", "unknown kind", "negative error"],
)  # fmt: skip
def test_what_is_no_log_likelihood_is_refused_at_birth(kinds, nats, changes):
    with pytest.raises(ParameterError):
        lp(kinds, nats, **changes)


@pytest.mark.parametrize(
    ("nats", "changes"),
    [
        (-1.0, {}),
        ([[-1.0]], {}),
        ([-1.0], {"stderr": [0.1, 0.1]}),
        ([-1.0], {"diagnostics": {"ess": [1.0, 2.0]}}),
        ([-1.0], {"draws": streams(1, 2)}),
        ([-1.0], {"event": about(2)}),
    ],
    ids=["scalar", "matrix", "stderr", "diagnostics", "draws", "event"],
)
def test_shapes_that_do_not_fit_are_refused_at_birth(nats, changes):
    with pytest.raises(ShapeError):
        lp(E, nats, **changes)


def test_a_log_prob_is_frozen_and_keeps_its_own_copy():
    given_nats, errors_ = np.array([-1.0, -2.0]), np.array([0.1, 0.2])
    a = lp(E, given_nats, stderr=errors_)
    given_nats[0] = errors_[0] = 99.0
    assert a.nats[0] == -1.0
    assert a.stderr[0] == 0.1
    for name in ("nats", "kinds", "by"):
        with pytest.raises(AttributeError):
            setattr(a, name, None)


def test_torch_numbers_are_taken_with_their_gradients_dropped():
    a = lp(L, torch.tensor([-1.5, -2.5], requires_grad=True), stderr=torch.tensor([0.5, 0.5]))
    assert a.nats.dtype == a.stderr.dtype == np.float64
    assert a.nats.tolist() == [-1.5, -2.5]


# Monte Carlo errors


def simulated(stderr, draws, n=40_000, seed=1):
    """The standard deviation of a total whose rows move with their streams' draws."""
    keys, place = np.unique(draws, return_inverse=True)
    noise = np.random.default_rng(seed).normal(size=(n, len(keys)))
    return (noise[:, place] * np.asarray(stderr)).sum(axis=1).std()


WITHIN = 5 / math.sqrt(2 * 40_000)  # five standard errors of a standard deviation


@pytest.mark.parametrize("keys", [(1, 2, 3, 4), (1, 1, 1, 1), (1, 1, 2, 3), (9, 1, 9, 9)], ids=str)
def test_the_error_of_a_total_is_that_of_its_simulated_draws(keys):
    stderr = [0.5, 1.0, 2.0, 0.25]
    a = lp(L, [-1.0] * 4, stderr=stderr, draws=streams(*keys))
    assert a.sum().monte_carlo == pytest.approx(simulated(stderr, keys), rel=WITHIN)
    assert a.mean().monte_carlo == pytest.approx(a.sum().monte_carlo / 4, rel=1e-15)


def test_twin_shared_draws_in_quadrature_are_detected():
    stderr = [0.5, 1.0, 2.0, 0.25]
    forgotten = lp(L, [-1.0] * 4, stderr=stderr).sum().monte_carlo
    assert forgotten != pytest.approx(simulated(stderr, (9, 1, 9, 9)), rel=WITHIN)


def test_independent_rows_add_in_quadrature_and_shared_ones_linearly():
    assert lp(L, [0.0, 0.0], stderr=[3.0, 4.0]).sum().monte_carlo == 5.0
    assert lp(L, [0.0, 0.0], stderr=[3.0, 4.0], draws=streams(1, 2)).sum().monte_carlo == 5.0
    assert lp(L, [0.0, 0.0], stderr=[3.0, 4.0], draws=streams(1, 1)).sum().monte_carlo == 7.0


@pytest.mark.parametrize("combine", [plus, minus])
def test_two_numbers_on_shared_draws_add_linearly_and_else_in_quadrature(combine):
    kinds = (L, L) if combine is plus else (L, U)
    a = lp(kinds[0], [0.0, 0.0], stderr=[3.0, 3.0], draws=streams(1, 2))
    b = lp(kinds[1], [0.0, 0.0], stderr=[4.0, 4.0], draws=streams(1, 5))
    answer = combine(a, b)
    assert answer.stderr.tolist() == [7.0, 5.0]
    assert answer.sum().monte_carlo == pytest.approx(math.hypot(7, 5), rel=1e-15)
    assert combine(a.replace(draws=None), b).stderr.tolist() == [5.0, 5.0]


def test_rows_equal_in_both_streams_stay_shared_after_arithmetic():
    a = lp(L, [0.0, 0.0], stderr=[3.0, 3.0], draws=streams(1, 1), of="x|y")
    b = lp(L, [0.0, 0.0], stderr=[4.0, 4.0], draws=streams(2, 2), of="y")
    assert (a + b).sum().monte_carlo == 10.0


@pytest.mark.parametrize(
    ("one", "two"),
    [((1, 2), (3, 4)), ((1, 2), (1, 2)), ((1, 1), (2, 2)), ((1, 1), (1, 1)), ((1, 2), (3, 3)), ((1, 2), (2, 1))],
    ids=str,
)
def test_the_error_of_a_combined_total_covers_its_simulated_draws(one, two):
    """log p(x|y) + log p(y): rows may share the draws of one factor only (rows with one y), or of each other's."""
    a = lp(L, [0.0, 0.0], stderr=[0.5, 1.0], draws=streams(*one), of="x|y")
    b = lp(L, [0.0, 0.0], stderr=[2.0, 1.0], draws=streams(*two), of="y")
    truth = simulated([0.5, 1.0, 2.0, 1.0], one + two)
    assert (a + b).sum().monte_carlo >= truth * (1 - WITHIN)


def test_shared_draws_stay_shared_beside_rows_without_draws():
    shared = lp(L, [0.0, 0.0], stderr=[1.0, 1.0], draws=streams(3, 3))
    joined = LogProb.concat([shared, lp(E, [0.0])])
    assert shared.sum().monte_carlo == 2.0
    assert joined.sum().monte_carlo == 2.0


@pytest.mark.parametrize("dtype", [np.uint64, np.int64])
def test_streams_of_any_whole_type_combine(dtype):
    a = lp(L, [0.0, 0.0], stderr=[3.0, 3.0], draws=np.array([1, 2], dtype=dtype))
    b = lp(U, [0.0, 0.0], stderr=[4.0, 4.0], draws=np.array([5, 6], dtype=dtype))
    assert (a - b).sum().monte_carlo == pytest.approx(math.sqrt(50), rel=1e-15)


def test_what_is_not_random_has_no_monte_carlo_error():
    a = lp(E, [-1.0, -2.0])
    for s in (
        a.sum(),
        a.mean(),
        (a - a).sum(),
        LogProb.concat([a, a]).mean(),
        a.replace(event=about(2)).bits_per_dim(),
    ):
        assert s.monte_carlo is None
        assert "Monte Carlo" not in str(s)
    noisy = lp(L, [-1.0, -2.0], stderr=[0.5, 0.25])
    assert (a - noisy).stderr.tolist() == (noisy - a).stderr.tolist() == [0.5, 0.25]
    assert LogProb.concat([a, noisy]).stderr.tolist() == [0.0, 0.0, 0.5, 0.25]


@pytest.mark.parametrize("draws", [None, streams(1, 2), streams(1, 1)], ids=["no keys", "apart", "shared"])
def test_an_error_that_cannot_be_trusted_stays_nan(draws):
    a = lp(L, [-1.0, -2.0], stderr=[1.0, math.nan], draws=draws, event=about(2))
    b = lp(U, [-1.0, -2.0], stderr=[1.0, 1.0], draws=draws)
    assert np.isnan((a - b).stderr).tolist() == [False, True]
    for s in (a.sum(), a.mean(), a.bits_per_dim(), (a - b).sum(), LogProb.concat([a, a]).sum()):
        assert math.isnan(s.monte_carlo)
        assert "Monte Carlo ± ?" in str(s)


def test_between_rows_error_is_that_of_a_sample_mean():
    values = [-1.0, -3.0, -8.0]
    s, m = lp(E, values).sum(), lp(E, values).mean()
    assert s.value == -12.0
    assert m.value == -4.0
    assert m.between_rows == pytest.approx(np.std(values, ddof=1) / math.sqrt(3), rel=1e-15)
    assert s.between_rows == pytest.approx(np.std(values, ddof=1) * math.sqrt(3), rel=1e-15)
    assert math.isnan(lp(E, [-1.0]).mean().between_rows)


@pytest.mark.parametrize(("kind", "words"), [(E, "none"), (L, "below"), (U, "above"), (S, "unknown")])
def test_a_mean_keeps_its_kind_and_the_side_of_its_bias(kind, words):
    m = lp(kind, [-1.0] * 1000, stderr=[0.1] * 1000).mean()
    assert m.kind == kind
    assert words in m.bias
    assert float(m) == m.value == -1.0
    assert isinstance(m, Summary)


# Bits

TEXT = about(2, bytes=np.array([3, 5]), dims=np.array([2, 3]), measure="counting(bytes)")


def test_bits_are_those_computed_by_hand():
    a = lp(E, [-3.0, -9.0], stderr=[0.3, 0.4], event=about(2, dims=np.array([2, 4])), measure="counting")
    code = a.bits_per_dim()
    assert code.value == pytest.approx(12 / 6 / LN2, rel=1e-15)
    assert code.monte_carlo == pytest.approx(0.5 / 6 / LN2, rel=1e-15)
    residuals = np.array([3.0 - 2 * 2.0, 9.0 - 2 * 4.0])
    assert code.between_rows == pytest.approx(residuals.std(ddof=1) / math.sqrt(2) / 3 / LN2, rel=1e-14)
    assert code.unit == "bits/dim"
    letters = lp(E, [-3.0, -9.0], event=TEXT).bits_per_byte()
    assert letters.value == pytest.approx(12 / 8 / LN2, rel=1e-15)
    assert letters.unit == "bits/byte"


def test_a_uniform_byte_costs_eight_bits():
    a = lp(E, [-3 * math.log(256), -5 * math.log(256)], event=TEXT)
    assert a.bits_per_byte().value == pytest.approx(8, rel=1e-15)
    assert a.bits_per_byte().between_rows == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize(("kind", "flipped"), [(E, E), (L, U), (U, L), (S, S)])
def test_a_code_length_is_bounded_from_the_other_side(kind, flipped):
    for bits in (LogProb.bits_per_dim, LogProb.bits_per_byte):
        code = bits(lp(kind, [-5.0, -6.0], event=TEXT))
        assert code.kind == flipped
        truth = -(bits(lp(E, [-5.0, -6.0], event=TEXT)).value)
        off = {"exact": 0.0, "lower": -1.0, "upper": 1.0, "estimate": 1.0}[kind]
        error = bits(lp(kind, [-5.0 + off, -6.0], event=TEXT)).value + truth
        assert {"exact": error == 0, "lower": error < 0, "upper": error > 0, "estimate": True}[flipped]


@pytest.mark.parametrize("of", ["x", "x|y", "x,y"])
@pytest.mark.parametrize("measure", ["lebesgue", "lebesgue(cm)", "counting(sex) x lebesgue(age)"])
def test_whole_numbers_under_a_density_have_no_code_length(of, measure):
    with pytest.raises(Incomparable, match="density") as caught:
        lp(E, [-1.0, -2.0], of=of, measure=measure, event=about(2, integers=True)).bits_per_dim()
    assert "levels" in caught.value.do


@pytest.mark.parametrize(
    ("integers", "changes"),
    [(True, {"measure": "counting"}), (True, {"measure": "counting(0.1 cm)"}), (False, {"measure": "lebesgue"}),
     (True, {"measure": "lebesgue", "of": "x+u"})],
    ids=["levels", "resolution", "reals", "dequantised"],
)  # fmt: skip
def test_other_numbers_do_have_a_code_length(integers, changes):
    assert lp(E, [-1.0, -2.0], event=about(2, integers=integers), **changes).bits_per_dim().value > 0


def test_bits_need_a_fingerprint_and_text_for_bytes():
    with pytest.raises(Incomparable, match="fingerprint"):
        lp(E, [-1.0]).bits_per_dim()
    with pytest.raises(Incomparable, match="fingerprint"):
        lp(E, [-1.0]).bits_per_byte()
    with pytest.raises(Incomparable, match="text"):
        lp(E, [-1.0, -2.0], event=about(2)).bits_per_byte()


def test_data_without_one_observed_cell_have_no_bits_per_dimension():
    with pytest.raises(ProbgenError):
        lp(E, [0.0, 0.0], event=about(2, dims=np.array([0, 0]))).bits_per_dim()


def test_a_score_has_no_code_length():
    with pytest.raises(Incomparable):
        lp("score", [-1.0, -2.0], event=about(2)).bits_per_dim()


# Rows: slicing, joining, iterating, none at all

fields = st.fixed_dictionaries(
    {
        "kind": st.sampled_from([E, L, S, Kind.UNAVAILABLE]),
        "stderr": st.sampled_from([None, 0.5, math.nan]),
        "draws": st.sampled_from([None, 3]),
        "n": st.integers(0, 3),
        "event": st.booleans(),
        "ess": st.booleans(),
    }
)


def built(f, start=0):
    n, nan = f["n"], f["kind"] == "unavailable"
    return LogProb(
        f["kind"],
        np.full(n, math.nan) if nan else -1.0 - np.arange(start, start + n),
        by="one",
        stderr=None if f["stderr"] is None else np.full(n, f["stderr"]),
        draws=None if f["draws"] is None else np.full(n, f["draws"], dtype=np.uint64),
        event=about(n, start) if f["event"] else None,
        diagnostics={"ess": np.arange(n)} if f["ess"] else {},
        reason="why" * nan,
        instead="what" * nan,
    )


@searched
@given(parts=st.lists(fields, min_size=3, max_size=3))
def test_joining_is_associative(parts):
    a, b, c = (built(f, 10 * i) for i, f in enumerate(parts))
    flat = LogProb.concat([a, b, c])
    same(LogProb.concat([LogProb.concat([a, b]), c]), flat)
    same(LogProb.concat([a, LogProb.concat([b, c])]), flat)
    assert len(flat) == len(a) + len(b) + len(c)


def test_the_names_of_estimators_join_associatively():
    a, b = lp(E, [-1.0], by="A"), lp(E, [-1.0], by="B")
    assert LogProb.concat([LogProb.concat([a, b]), a]).by == LogProb.concat([a, b, a]).by
    assert LogProb.concat([a, LogProb.concat([a, b])]).by == LogProb.concat([a, a, b]).by


@searched
@given(f=fields, rows=st.integers(0, 7), cuts=st.tuples(st.integers(0, 7), st.integers(0, 7)))
def test_slices_put_together_again_are_the_whole(f, rows, cuts):
    a = built({**f, "n": rows})
    i, j = sorted(cuts)
    same(LogProb.concat([a[:i], a[i:j], a[j:]]), a)
    same(a[:j][i:], a[i:j])
    same(a[np.arange(rows)], a)
    same(a[np.arange(rows) < i], a[:i])


def test_rows_are_taken_in_every_field():
    a = lp([E, L, S], [-1.0, -2.0, -3.0], stderr=[0.1, 0.2, 0.3], draws=streams(7, 8, 9),
           event=about(3, bytes=np.arange(3)), diagnostics={"ess": [10, 20, 30]})  # fmt: skip
    for rows in ([2, 0], np.array([2, 0]), torch.tensor([2, 0]), slice(None, None, -2)):
        b = a[rows]
        assert list(b.kinds) == [S, E]
        assert b.nats.tolist() == [-3.0, -1.0]
        assert b.stderr.tolist() == [0.3, 0.1]
        assert b.draws.tolist() == [9, 7]
        assert b.diagnostics["ess"].tolist() == [30, 10]
        assert b.event.keys.tolist() == b.event.bytes.tolist() == [2, 0]
        assert b.event.content.tolist() == a.event.content[[2, 0]].tolist()
    assert a[-1].nats.tolist() == a[2].nats.tolist() == [-3.0]


def test_iteration_is_refused_or_gives_each_row_once():
    assert ends(lp(E, [-1.0, -2.0])) in (None, [-1.0, -2.0])


@pytest.mark.parametrize("i", [2, 100, -3])
def test_a_row_that_does_not_exist_is_an_index_error(i):
    with pytest.raises(IndexError):
        lp(E, [-1.0, -2.0])[i]


def test_no_rows_are_no_refusal():
    none = lp(E, [-1.0, -2.0])[:0]
    assert not none.refused.any()
    assert "unavailable" not in repr(none)
    assert none.frame().num_rows == 0
    assert none.sum().value == 0


def test_no_rows_have_no_mean():
    with pytest.raises(ProbgenError):
        lp(E, [-1.0], event=about(1))[:0].mean()
    with pytest.raises(ProbgenError):
        lp(E, [-1.0], event=about(1))[:0].bits_per_dim()


def test_joining_keeps_what_all_parts_know():
    a = lp(E, [-1.0], event=about(1), diagnostics={"ess": [1], "k": [0.5]})
    b = lp(E, [-2.0], event=about(1, 5), diagnostics={"ess": [2]})
    both = LogProb.concat([a, b])
    assert both.event.keys.tolist() == [0, 5]
    assert both.diagnostics.keys() == {"ess"}
    assert both.diagnostics["ess"].tolist() == [1, 2]
    assert LogProb.concat([a, b.replace(event=None)]).event is None
    mixed = LogProb.concat([a.replace(event=about(1, integers=True)), b])
    assert mixed.event.integers is False


# The frame and the repr


def test_a_frame_has_its_columns_types_and_nulls():
    keys = np.array(["p", "q", "r"])
    a = LogProb.concat([
        lp(L, [-1.0, -INF], stderr=[0.5, math.nan], by="IWAE(samples=9)", measure="counting"),
        refused(1, by="IWAE(samples=9)", measure="counting"),
    ]).replace(event=about(3, keys=keys))  # fmt: skip
    frame = a.frame()
    assert frame.column_names == ["row", "log_prob", "stderr", "kind", "by", "of", "target", "measure", "reason"]
    assert frame.to_pydict() == {
        "row": ["p", "q", "r"],
        "log_prob": [-1.0, -INF, None],
        "stderr": [0.5, None, None],
        "kind": ["lower", "lower", "unavailable"],
        "by": ["IWAE(samples=9)"] * 3,
        "of": ["x"] * 3,
        "target": ["p"] * 3,
        "measure": ["counting"] * 3,
        "reason": [None, None, "a GAN has no density"],
    }
    assert frame.schema.field("log_prob").type == frame.schema.field("stderr").type == pa.float64()
    assert frame.schema.field("kind").type == frame.schema.field("reason").type == pa.string()


def test_a_frame_without_errors_has_null_errors_and_numbers_its_rows():
    frame = lp(E, [-1.0, -2.0]).frame()
    assert frame["stderr"].null_count == frame["reason"].null_count == 2
    assert frame["stderr"].type == pa.float64()
    assert frame["row"].to_pylist() == [0, 1]
    assert refused(2).frame()["log_prob"].null_count == 2


@pytest.mark.parametrize("a", [lp(E, [-1.0]), lp(E, [-1.0])[:0], refused(1)], ids=["exact", "no rows", "refused"])
def test_the_schema_of_a_frame_does_not_depend_on_its_numbers(a):
    types = {f.name: f.type for f in a.frame().schema if f.name != "row"}
    assert types == dict.fromkeys(types, pa.string()) | {"log_prob": pa.float64(), "stderr": pa.float64()}


@pytest.mark.parametrize(
    ("a", "parts"),
    [
        (lp(L, [-1.0, -2.0], stderr=[0.1, 0.1], by="IWAE(samples=64)", measure="counting"),
         ["-1.5000 nats/row", "lower", "Monte Carlo ± 0.071", "between rows ± 0.5", "2 rows", "by IWAE(samples=64)",
          "of x under p", "measure counting"]),
        (lp(E, [3.0], by="", measure="lebesgue(cm)"),
         ["exact", "1 row;", "lebesgue(cm)", "density: may be > 0", "by the model"]),
        (refused(3), ["unavailable", "3 rows", "a GAN has no density", "instead: pg.compare(m)"]),
        (LogProb.concat([refused(1), lp(E, [-1.0, -2.0])]), ["3 rows", "1 refused: a GAN has no density", "-1.5000"]),
        (lp(E, [-INF, -1.0]), ["-inf", "1 impossible row"]),
    ],
    ids=["bound", "density", "refusal", "partly", "impossible"],
)  # fmt: skip
def test_the_repr_says_what_the_number_is(a, parts):
    assert [part for part in parts if part not in repr(a)] == []
    assert len(repr(a).splitlines()) == 1


# Copies


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        *(lambda a, p=p: pickle.loads(pickle.dumps(a, p)) for p in range(2, 6)),
        LogProb.replace,
    ],
    ids=["copy", "deepcopy", "pickle2", "pickle3", "pickle4", "pickle5", "replace"],
)
@pytest.mark.parametrize("partly", [False, True])
def test_copies_are_the_same_and_still_guard_their_numbers(copied, partly):
    a = lp([E, L], [-1.0, -INF], stderr=[0.1, math.nan], draws=streams(1, 2), event=TEXT, diagnostics={"ess": [3, 4]})
    a = LogProb.concat([a, refused(2, event=TEXT)]) if partly else a
    b = copied(a)
    same(a, b)
    assert repr(a) == repr(b)
    if partly:
        with pytest.raises(LikelihoodUnavailable):
            _ = b.nats


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))], ids=["deepcopy", "pickle"])
def test_a_deep_copy_shares_no_memory(copied):
    a = lp(E, [-1.0], event=about(1))
    b = copied(a)
    b.nats[0] = 5.0
    b.event.dims[0] = 99
    assert a.nats[0] == -1.0
    assert a.event.dims[0] == 4


# Errors

ERRORS = [
    *(getattr(errors, name)("what came", "what was wanted", "what to do") for name in errors.__all__
      if name not in ("nearest", "LikelihoodUnavailable", "MissingExtra")),
    LikelihoodUnavailable("what came", "what to do"),
    errors.MissingExtra("what came", "what to do"),
    errors.FitError("what came", "what was wanted", "what to do", step=7),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_every_error_tells_its_facts_and_survives_copying(error):
    assert isinstance(error, ProbgenError)
    for again in (error, pickle.loads(pickle.dumps(error)), copy.deepcopy(error), copy.copy(error)):
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert {**vars(again)} == {**vars(error)}
        assert "what came" in str(again)
        assert "what to do" in str(again)
        assert ("Wanted: what was wanted." in str(again)) == bool(error.wanted)
    assert ".." not in str(error)


def test_every_error_has_a_code_of_its_own():
    codes = [getattr(errors, name).code for name in errors.__all__ if name != "nearest"]
    assert len(set(codes)) == len(codes)
    assert "unavailable" in codes
    assert "incomparable" in codes


FAULTS = {
    "lower + upper": lambda: plus(numbered(L, 1), numbered(U, 1)),
    "lower - lower": lambda: numbered(L, 1) - numbered(L, 1),
    "score + exact": lambda: plus(numbered("score", 1), numbered(E, 1)),
    "score - exact": lambda: numbered("score", 1) - numbered(E, 1),
    "rows": lambda: numbered(E, 1) - numbered(E, 2),
    "target": lambda: numbered(E, 1, target="p^ODE") - numbered(E, 1, target="q"),
    "of": lambda: numbered(E, 1, of="y") - numbered(E, 1),
    "chain": lambda: numbered(E, 1) + numbered(E, 1),
    "no parts": lambda: LogProb.concat([]),
    "shape": lambda: lp(E, [[0.0]]),
    "diagnostics": lambda: lp(E, [0.0], diagnostics={"ess": [1, 2]}),
    "NaN": lambda: lp(E, [math.nan]),
    "no reason": lambda: lp("unavailable", [math.nan]),
    "no fingerprint": lambda: lp(E, [0.0]).bits_per_dim(),
    "no text": lambda: lp(E, [0.0, 0.0], event=about(2)).bits_per_byte(),
    "whole numbers": lambda: lp(E, [0.0], measure="lebesgue", event=about(1, integers=True)).bits_per_dim(),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_every_refusal_tells_three_facts(fault):
    with pytest.raises(ProbgenError) as caught:
        fault()
    error = caught.value
    assert error.code in {"incomparable", "parameter", "shape"}
    assert error.came
    assert error.wanted
    assert error.do


def test_reading_a_refusal_tells_reason_and_instead():
    with pytest.raises(LikelihoodUnavailable) as caught:
        _ = refused().nats
    assert (caught.value.reason, caught.value.instead) == ("a GAN has no density", "pg.compare(m)")
    assert str(caught.value) == "a GAN has no density. pg.compare(m)."

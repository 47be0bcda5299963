"""The contrastive model: what its similarities estimate, what it finds, and what it refuses."""

import copy

import numpy as np
import pytest
import torch

from probgen import datasets, store
from probgen.errors import DataError, Incomparable, NotFittedError, ParameterError, ShapeError, StructureError
from probgen.events import Array, Category, Real, Record, Series, Table, Text, Words
from probgen.logprob import Kind, LogProb
from probgen.models.contrastive import Contrastive
from probgen.models.contrastive.retrieval import recalls

SMALL = {"dim": 16, "hidden": (32,), "text": 16}
JOINT = np.array([[8, 1, 1, 2], [1, 6, 2, 1], [2, 1, 9, 1], [1, 3, 1, 10]]) / 50


@pytest.fixture(scope="module")
def digits():
    data = datasets.load("digit_words")
    train, held = data.split(0.2)
    model = Contrastive.for_event(data.event).fit(train, steps=220, seed=0, progress=False)
    return model, train, held


def few(held, n):
    return {name: part[:n] for name, part in held.items()}


# What is estimated


def spread_about_pmi(scores, joint):
    """Standard deviation, weighted by the joint, of scores less log p(a, b) / (p(a) p(b)): 0 where they differ by a
    constant."""
    pmi = np.log(joint) - np.log(joint.sum(1))[:, None] - np.log(joint.sum(0))
    off = scores - pmi
    return float(np.sqrt((joint * (off - (joint * off).sum()) ** 2).sum()))


def test_similarities_are_the_log_ratio_of_the_joint_to_its_margins_but_for_a_constant():
    rng = np.random.default_rng(0)
    cell = rng.choice(16, 20_000, p=JOINT.reshape(-1))
    event = Record(a=Array((), levels=4), b=Array((), levels=4))
    model = Contrastive(event, **SMALL)
    model.fit({"a": cell // 4, "b": cell % 4}, steps=500, batch_size=256, learning_rate=3e-3, seed=1, progress=False)
    scores = model.similarity(np.arange(4), np.arange(4))
    assert spread_about_pmi(scores, JOINT) < 0.12
    conditional = np.log(JOINT / JOINT.sum(0))  # the twin: a loss of one direction alone may have this optimum
    assert spread_about_pmi(conditional, JOINT) > 0.12
    told = model.classify(np.arange(4), np.arange(4), prior=JOINT.sum(0))
    assert np.abs(told - JOINT / JOINT.sum(1, keepdims=True)).max() < 0.06


def test_a_model_of_shuffled_pairs_finds_nothing_and_one_of_true_pairs_most(digits):
    model, train, held = digits
    twin = copy.deepcopy(model)
    order = np.random.default_rng(1).permutation(len(train["caption"]))
    twin.fit({**train, "caption": [train["caption"][i] for i in order]}, steps=60, seed=0, progress=False)
    right = np.array([list(dict.fromkeys(train["caption"])).index(c) for c in held["caption"]])
    found, none = (
        (m.classify(held["image"], list(dict.fromkeys(train["caption"]))).argmax(1) == right).mean()
        for m in (model, twin)
    )
    assert found > 0.55
    assert none < 0.2


# Answers


def test_scores_are_similarities_of_unit_codes_and_of_kind_score(digits):
    model, _, held = digits
    some = few(held, 30)
    answer = model.log_prob(some)
    codes = [model.encode(name, some[name]) for name in ("image", "caption")]
    assert np.allclose(np.linalg.norm(codes[0], axis=1), 1, atol=1e-6)
    assert np.allclose(answer.nats, (codes[0] * codes[1]).sum(1) / model.temperature, atol=1e-5)
    assert np.allclose(np.diag(model.similarity(some["image"], some["caption"])), answer.nats, atol=1e-4)
    assert answer.kind is Kind.SCORE
    with pytest.raises(Incomparable):
        answer.bits_per_dim()
    with pytest.raises(Incomparable):
        answer + LogProb(Kind.EXACT, np.zeros(30), by="twin", measure="similarity")


def test_scores_depend_neither_on_the_batch_nor_on_padding_nor_on_order(digits):
    model, _, held = digits
    some = few(held, 40)
    some["caption"] = [f"{c}{' and more' * (i % 5)}" for i, c in enumerate(some["caption"])]
    whole = model.log_prob(some).nats
    alone = [model.log_prob({name: part[i : i + 1] for name, part in some.items()}).nats[0] for i in range(40)]
    back = model.log_prob({name: part[::-1] for name, part in some.items()}).nats[::-1]
    assert np.allclose(whole, alone, rtol=0, atol=1e-4)
    assert np.allclose(whole, back, rtol=0, atol=1e-4)


def test_zero_shot_classes_are_probabilities_and_find_the_digit(digits):
    model, _, held = digits
    told = model.classify(held["image"], [f"a {word}" for word in datasets.questions("digit_words")[0].choices])
    assert np.allclose(told.sum(1), 1)
    right = datasets.questions("digit_words")[0].answer(held["caption"])
    chosen = [datasets.questions("digit_words")[0].choices[i] for i in told.argmax(1)]
    assert np.mean([a == b for a, b in zip(chosen, right, strict=True)]) > 0.6
    certain = model.classify(held["image"][:5], ["a thin one", "a bold two"], prior=[0, 3])
    assert (certain == [0, 1]).all()


def test_retrieval_counts_equal_candidates_once_and_stands_above_chance(digits):
    model, _, held = digits
    found = model.retrieve(held["image"], held["caption"], k=(1, 5, 20))
    way, back = "caption given image", "image given caption"
    assert found.pool[way] == found.queries[back] == 20
    assert found.recall[way][1] > 0.5
    assert found.recall[way][20] == 1.0
    assert found.chance[way] == pytest.approx({1: 0.05, 5: 0.25, 20: 1.0})
    assert found.recall[back][1] > 0.5 > found.chance[back][1]
    assert found.frame().num_rows == 6
    assert "caption given image" in str(found)


def test_recall_counts_ranks_and_takes_ties_against_the_model():
    scores = np.array([[3.0, 2, 1], [3, 2, 1], [0, 0, 0]])
    right = np.array([[True, False, False], [False, False, True], [True, False, False]])
    found, chance = recalls(scores, right, (1, 2, 3))
    assert found == {1: 1 / 3, 2: 1 / 3, 3: 1.0}
    assert chance == pytest.approx({1: 1 / 3, 2: 2 / 3, 3: 1.0})
    assert recalls(scores, np.array([[True, True, False]] * 3), (2,))[1] == pytest.approx({2: 1.0})
    for k in (0, True, 1.5):
        with pytest.raises(ParameterError, match="whole numbers"):
            recalls(scores, right, (k,))


# Other events


def test_tables_and_texts_pair_as_well():
    rng = np.random.default_rng(2)
    words = np.array(["low", "high"])[(wide := rng.normal(size=400)).__gt__(0).astype(int)]
    event = Record(row=Table({"x": Real(), "c": Category(("u", "v"))}), said=Text(Words.learn(["low", "high"] * 2)))
    x = {"row": {"x": wide, "c": np.array(["u", "v"])[rng.integers(2, size=400)]}, "said": words.tolist()}
    model = Contrastive.for_event(event, **SMALL).fit(x, steps=150, seed=0, progress=False)
    told = model.classify({"x": [-1.5, 1.5], "c": ["u", "v"]}, ["low", "high"])
    assert told.argmax(1).tolist() == [0, 1]


def test_large_images_get_convolutions():
    event = Record(caption=Text(), image=Array((16, 16), levels=2))
    model = Contrastive.for_event(event)
    assert model.channels == (32, 64)
    rng = np.random.default_rng(3)
    dark = rng.integers(2, size=60).astype(bool)
    x = {
        "caption": np.where(dark, "dark", "light").tolist(),
        "image": rng.random((60, 16, 16)) < 0.2 + 0.6 * dark[:, None, None],
    }
    model.fit(x, steps=25, batch_size=32, seed=0, progress=False)
    assert model.classify(["dark", "light"], np.stack([np.ones((16, 16)), np.zeros((16, 16))])).argmax(1).tolist() == [
        0,
        1,
    ]


# Missing parts and bad input


def test_rows_that_lack_a_part_are_refused_alone_and_teach_nothing(digits):
    model, train, _ = digits
    some = few(train, 80)
    gaps = {"image": some["image"], "caption": [None if i % 4 == 0 else c for i, c in enumerate(some["caption"])]}
    answer = model.log_prob(gaps)
    assert answer.refused.tolist() == [i % 4 == 0 for i in range(80)]
    assert "MultimodalVAE" in answer.instead
    assert np.allclose(answer[~answer.refused].nats, model.log_prob(some).nats[~answer.refused], atol=1e-4)
    twin = Contrastive(model.event, **SMALL).fit(gaps, steps=3, seed=0, progress=False)
    assert "20 rows lack a part and were left out" in twin.report.notes
    with pytest.raises(DataError, match="0 rows of 80 have both parts"):
        twin.fit({"image": some["image"], "caption": None}, steps=3)


def test_what_a_contrastive_model_can_not_do_says_what_can(digits):
    model, _, held = digits
    with pytest.raises(StructureError, match="MultimodalVAE draws"):
        model.sample(3)
    with pytest.raises(StructureError, match="only compares"):
        model.model()
    with pytest.raises(ParameterError, match="image, caption"):
        model.encode("picture", held["image"])
    with pytest.raises(ShapeError, match="as many of each"):
        model.retrieve(held["image"], held["caption"][:3])
    with pytest.raises(ShapeError, match="one number a candidate"):
        model.classify(held["image"], ["a"], prior=[1, 2])
    with pytest.raises(ParameterError, match="frequencies"):
        model.classify(held["image"], ["a", "b"], prior=[1, -1])
    with pytest.raises(NotFittedError):
        Contrastive(model.event).similarity(held["image"], held["caption"])


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (Array((2,)), "two parts"),
        (Record(a=Text()), "two parts"),
        (Record(a=Text(), b=Text(), c=Text()), "two parts"),
        (Record(a=Text(), b=Series()), "not Series"),
    ],
    ids=["array", "one", "three", "series"],
)
def test_other_events_do_not_suit(event, why):
    assert why in Contrastive.suits(event)
    with pytest.raises(StructureError, match="does not suit"):
        Contrastive(event)


@pytest.mark.parametrize("options", [{"dim": 0}, {"hidden": (3, -1)}, {"text": 2.5}, {"channels": (True,)}])
def test_sizes_are_whole_numbers(options):
    with pytest.raises(ParameterError, match="whole numbers"):
        Contrastive(Record(a=Text(), b=Text()), **options)


# The contract


def test_the_same_seed_gives_the_same_model_and_a_copy_the_same_scores(digits):
    model, train, held = digits
    one, two = (
        Contrastive(model.event, **SMALL).fit(few(train, 200), steps=8, seed=5, progress=False) for _ in range(2)
    )
    assert (one.log_prob(held).nats == two.log_prob(held).nats).all()
    assert (copy.deepcopy(one).log_prob(held).nats == one.log_prob(held).nats).all()
    assert one.report.objective[-1] > one.report.objective[0]
    assert repr(one) == f"Contrastive(event={model.event!r}, dim=16, hidden=(32,), text=16)"


def test_a_saved_model_gives_the_same_bits(digits, tmp_path):
    model, _, held = digits
    again = store.load(store.save(model, tmp_path / "m"))
    assert repr(again) == repr(model)
    assert (again.log_prob(held).nats == model.log_prob(held).nats).all()
    assert (again.classify(held["image"], ["a thin one"]) == 1).all()


def test_the_program_is_a_factor_of_the_similarities(digits):
    import pyro.poutine as poutine

    model, _, held = digits
    some = few(held, 12)
    with torch.no_grad():
        traced = poutine.trace(model.model).get_trace(model.event.check(some).x).log_prob_sum()
    assert float(traced) == pytest.approx(model.log_prob(some).sum().value, abs=1e-6)

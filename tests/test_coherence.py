"""Coherence: figures of hand-made models whose truth is known, judges that are learnt, and what is refused."""

import math

import numpy as np
import pytest

from probgen import datasets
from probgen.datasets import Question
from probgen.errors import DataError, ParameterError, ShapeError, StructureError
from probgen.evaluate.coherence import (
    Coherence,
    Figure,
    Judge,
    coherence,
    coherence_lines,
    coherence_of,
    read_by,
)
from probgen.events import Array, Category, Real, Record, Series, Table, Text
from probgen.logprob import Kind

WORDS = ("red", "green", "blue")
CLASS = Question("what is it?", WORDS, {f"a {word} thing": word for word in WORDS})
SURE = 5.0  # standard errors; a false alarm in a million runs


def picture(labels, rng):
    """Four numbers that say which of three classes it is, and two of noise."""
    codes = np.eye(4)[labels] * 4
    return np.concatenate([codes, np.zeros((len(labels), 2))], axis=1) + 0.1 * rng.normal(size=(len(labels), 6))


def read_picture(x):
    return [WORDS[i] if i < 3 else None for i in np.asarray(x)[:, :4].argmax(1)]


class Painter:
    """Draws pictures and captions that agree with a known probability.

    Arguments:
        joint, image, caption: Probability that the parts of a joint draw agree, that a drawn image or a drawn caption
            has the class of what is given.
        known: Probability that the posterior over captions puts on the right one.
    """

    event = Record(image=Array((6,)), caption=Text())

    def __init__(self, joint=0.8, image=0.9, caption=0.7, known=0.9):
        self.joint, self.image, self.worded, self.known = joint, image, caption, known
        self.asked = []

    def sample_target(self, **options):
        return "p of a painter"

    @staticmethod
    def changed(labels, right, rng):
        """Each label kept with that probability, else one of the two others."""
        return np.where(rng.random(len(labels)) < right, labels, (labels + rng.integers(1, 3, len(labels))) % 3)

    def sample(self, n, *, given=None, seed=None):
        rng = np.random.default_rng(seed)
        if given is None:
            labels = rng.integers(3, size=n)
            said = self.changed(labels, self.joint, rng)
            return {"image": picture(labels, rng), "caption": [f"a {WORDS[i]} thing" for i in said]}
        self.asked.append({name: len(part) for name, part in given.items()})
        if "image" in given:
            labels = np.array([WORDS.index(word) for word in read_picture(given["image"])])
            said = self.changed(labels, self.worded, rng)
            return {"image": given["image"][:, None], "caption": [[f"a {WORDS[i]} thing"] for i in said]}
        labels = np.array([WORDS.index(text.split()[1]) for text in given["caption"]])
        shown = self.changed(labels, self.image, rng)
        return {"image": picture(shown, rng)[:, None], "caption": [[text] for text in given["caption"]]}

    def posterior_over(self, part, choices, *, given, seed=None):
        labels = np.array([WORDS.index(word) for word in read_picture(given["image"])])
        seen = self.changed(labels, self.known, np.random.default_rng(seed))
        told = np.full((len(labels), len(choices)), 0.1)
        for i, k in enumerate(seen):
            told[i, list(choices).index(f"a {WORDS[k]} thing")] = 0.8
        return told


def real(n, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    return {"image": picture(labels, rng), "caption": [f"a {WORDS[i]} thing" for i in labels]}


def measured(model, n=4000, **options):
    options = {"judges": {"image": read_picture}, "draws": n, "rows": n, "asked": n, "tests": False, **options}
    return coherence(model, real(n), CLASS, **options)


def off(found, name, truth):
    """Distance of a figure from the truth, in standard errors of the truth."""
    return abs(found[name].share - truth) / math.sqrt(truth * (1 - truth) / found[name].n)


# Figures


def test_the_figures_of_a_known_model_are_its_probabilities():
    found = measured(Painter(), questions=[CLASS])
    truth = {"joint": 0.8, "image given caption": 0.9, "caption given image": 0.7, "caption given image: exact": 0.7}
    for name, share in {**truth, "caption given image: what is it?": 0.9}.items():
        assert off(found, name, share) < SURE, name
        assert found[name].n == 4000
        assert found[name].error == pytest.approx(math.sqrt(share * (1 - share) / 4000), rel=0.1)
    for name in ("joint", "image given caption", "caption given image"):
        assert found[name].real == 1.0  # these judges never err on real rows
    assert found["caption given image: what is it?"].real == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("joint", Painter(joint=0.7)),
        ("image given caption", Painter(image=0.8)),
        ("caption given image", Painter(caption=0.6)),
        ("caption given image: what is it?", Painter(known=0.8)),
    ],
)
def test_a_model_that_agrees_less_often_fails_the_same_check(name, twin):
    truth = {"joint": 0.8, "image given caption": 0.9, "caption given image": 0.7}.get(name, 0.9)
    assert off(measured(twin, questions=[CLASS]), name, truth) > SURE


def test_an_erring_judge_shows_in_the_figures_and_beside_them():
    """A judge that is right with probability 0.9 reads 0.9 of real pictures right, and 0.8 of pairs that always agree
    less one in ten: 0.9 x joint + 0.05 x (1 - joint)."""
    rng = np.random.default_rng(9)

    def erring(x):
        labels = np.array([WORDS.index(word) for word in read_picture(x)])
        return [WORDS[i] for i in Painter.changed(labels, 0.9, rng)]

    found = measured(Painter(), judges={"image": erring})
    assert found["image given caption"].real == pytest.approx(0.9, abs=0.025)
    assert found["joint"].real == pytest.approx(0.9, abs=0.025)
    assert off(found, "joint", 0.9 * 0.8 + 0.05 * 0.2) < SURE
    assert "right on" in found.judges["image"]


def test_a_text_that_says_nothing_agrees_with_nothing():
    class Silent(Painter):
        def sample(self, n, *, given=None, seed=None):
            drawn = super().sample(n, given=given, seed=seed)
            return {**drawn, "caption": ["hm"] * n if given is None else [["hm"]] * len(drawn["caption"])}

    found = measured(Silent(), n=50)
    assert found["joint"].share == found["caption given image"].share == found["caption given image: exact"].share == 0


def test_conditions_go_in_a_few_at_a_time_and_every_row_comes_back():
    model = Painter()
    found = measured(model, n=600)
    assert [next(iter(asked.values())) for asked in model.asked] == [250, 250, 100] * 2
    assert found.rows == 600


def test_rows_without_a_label_or_a_part_are_left_out_and_counted():
    x = real(100)
    labels = [None if i % 5 == 0 else text.split()[1] for i, text in enumerate(x["caption"])]
    x["caption"][1] = None
    judges = {"image": read_picture, "caption": lambda texts: [t.split()[1] for t in texts]}
    found = coherence(Painter(), x, labels, judges=judges, draws=50, tests=False)
    assert (found.rows, found.left) == (79, 21)
    assert "21 rows" in str(found)
    with pytest.raises(DataError, match="None of 100 rows"):
        coherence(Painter(), x, [None] * 100, judges=judges)


def test_three_parts_are_drawn_from_every_set_of_the_others():
    class Choir(Painter):
        event = Record(image=Array((6,)), caption=Text(), voice=Array((6,)))

        def sample(self, n, *, given=None, seed=None):
            rng = np.random.default_rng(seed)
            if given is None:
                labels = rng.integers(3, size=n)
            else:
                first = next(name for name in ("image", "voice", "caption") if name in given)
                said = given[first] if first == "caption" else [f"a {w} thing" for w in read_picture(given[first])]
                labels = np.array([WORDS.index(text.split()[1]) for text in said])
            voices = picture(self.changed(labels, 0.6, rng), rng)
            return {"image": picture(labels, rng), "caption": [f"a {WORDS[i]} thing" for i in labels], "voice": voices}

    x = real(900)
    x["voice"] = picture(np.array([WORDS.index(t.split()[1]) for t in x["caption"]]), np.random.default_rng(1))
    found = coherence(
        Choir(), x, CLASS, judges={"image": read_picture, "voice": read_picture}, draws=900, tests=False, rows=900
    )
    drawn = [f for f in found.figures if f.what == "drawn"]
    assert len(drawn) == 9
    assert {f.given for f in drawn if f.part == "voice"} == {("image",), ("caption",), ("image", "caption")}
    assert off(found, "voice given image and caption", 0.6) < SURE
    assert found["caption given voice"].share == 1.0


def test_a_model_that_settles_on_one_caption_is_judged_by_it():
    class Speaker(Painter):
        def caption(self, given):
            rng = np.random.default_rng(7)
            labels = np.array([WORDS.index(word) for word in read_picture(given["image"])])
            return [f"a {WORDS[i]} thing" for i in self.changed(labels, 0.85, rng)]

    found = measured(Speaker(), n=240)
    assert off(found, "caption given image: best", 0.85) < SURE
    assert found["caption given image: best"].share == found["caption given image: best, exact"].share


def test_a_part_that_is_a_table_is_drawn_row_by_row():
    class Clerk(Painter):
        event = Record(row=Table({"x": Real(), "c": Category(WORDS)}), caption=Text())

        def sample(self, n, *, given=None, seed=None):
            rng = np.random.default_rng(seed)
            if given is None:
                labels = rng.integers(3, size=n)
                return {"row": self.table(labels), "caption": [f"a {WORDS[i]} thing" for i in labels]}
            if "caption" in given:
                (text,) = given["caption"]
                return {"row": self.table([WORDS.index(text.split()[1])]), "caption": [text]}
            return {"row": given["row"], "caption": [f"a {given['row']['c'][0]} thing"]}

        @staticmethod
        def table(labels):
            return {"x": np.arange(len(labels)) + 0.5, "c": [WORDS[i] for i in labels]}

    x = {"row": Clerk.table([0, 1, 2, 2]), "caption": [f"a {WORDS[i]} thing" for i in (0, 1, 2, 1)]}
    found = coherence(Clerk(), x, CLASS, judges={"row": lambda rows: list(rows["c"])}, draws=20, tests=False)
    assert found["joint"].share == found["row given caption"].share == 1.0
    assert found["caption given row"].share == 0.75  # the last row's parts do not belong together
    assert found["row given caption"].real == 0.75


# Judges


def test_a_judge_is_learnt_and_one_of_shuffled_labels_is_not():
    data = datasets.load("digit_words")
    train, held = data.split(0.2)
    what, image = datasets.questions(data)[0], data.event.parts["image"]
    told, right = what.answer(train["caption"]), what.answer(held["caption"])
    judge = Judge.learn(image, train["image"], told, steps=80, seed=0)(held["image"])
    first, again = (Judge.learn(image, train["image"], told, steps=5, seed=0)(held["image"]) for _ in range(2))
    assert first == again
    assert np.mean([a == b for a, b in zip(judge, right, strict=True)]) > 0.9
    shuffled = [told[i] for i in np.random.default_rng(0).permutation(len(told))]
    twin = Judge.learn(image, train["image"], shuffled, steps=80, seed=0)(held["image"])
    assert np.mean([a == b for a, b in zip(twin, right, strict=True)]) < 0.35


def test_judges_read_texts_tables_and_large_images_too():
    rng = np.random.default_rng(3)
    labels = rng.integers(2, size=200)
    text = Judge.learn(Text(), np.where(labels, "it is so", "no").tolist(), labels.tolist(), steps=60, seed=0)
    assert text(["it is so", "no"]) == [1, 0]
    table = {"x": np.where(labels, 1.0, -1.0) + 0.1 * rng.normal(size=200), "c": np.array(["u", "v"])[labels]}
    judge = Judge.learn(Table({"x": Real(), "c": Category(("u", "v"))}), table, labels.tolist(), steps=60, seed=0)
    assert judge({"x": [-1.0, 1.0], "c": ["u", "v"]}) == [0, 1]
    images = (rng.random((200, 16, 16)) < 0.2 + 0.6 * labels[:, None, None]).astype(int)
    large = Judge.learn(Array((16, 16), levels=2), images, [None, *labels[1:].tolist()], steps=30, seed=0)
    assert large(images[1:]) == labels[1:].tolist()


def test_a_missing_judge_is_learnt_from_training_rows():
    found = coherence(Painter(), real(300), CLASS, train=real(400, seed=1), draws=300, tests=False, seed=2)
    assert "classifier learnt on training rows, right on 100.0%" in found.judges["image"]
    assert "a rule" in found.judges["caption"]
    x, train = real(300), real(400, seed=1)
    labels, taught = (CLASS.answer(part["caption"]) for part in (x, train))
    plain = coherence(Painter(), x, labels, train=(train, taught), draws=300, tests=False, seed=2)
    assert off(plain, "image given caption", 0.9) < SURE
    assert plain["image given caption"].share == found["image given caption"].share


def test_a_rule_reads_the_one_word_that_a_caption_holds():
    read = read_by(CLASS)
    assert read(["a red thing", "so blue it is", "red and blue", "grey", None]) == ["red", "blue", None, None, None]


# Tests of two samples, tables, refusals


def test_drawn_pictures_are_tested_against_real_ones():
    same = coherence(Painter(), real(200), CLASS, judges={"image": read_picture}, draws=200, seed=1)

    class Faded(Painter):
        def sample(self, n, *, given=None, seed=None):
            drawn = super().sample(n, given=given, seed=seed)
            return {**drawn, "image": drawn["image"] * 0.75}

    faded = coherence(Faded(), real(200), CLASS, judges={"image": read_picture}, draws=200, seed=1)
    assert same.tests["image"][2] > 1e-3
    assert faded.tests["image"][2] < 0.01
    assert faded.tests["image"][0] > same.tests["image"][0] + 0.1
    assert "caption" not in same.tests


def test_the_table_has_a_row_a_figure_and_says_who_judged():
    found = measured(Painter(), n=200, questions=[CLASS])
    frame = found.frame()
    assert frame.column("figure").to_pylist() == [f.name for f in found.figures]
    assert len(found.figures) == frame.num_rows == 5
    told = str(found)
    for word in ("joint", "image given caption", "exact", "a rule", "p of a painter", "most frequent answer"):
        assert word in told
    assert "-" in next(line for line in told.splitlines() if "exact" in line)
    assert math.isnan(Figure("joint", "", (), 0.0, 0).error)


def test_questions_are_asked_about_some_rows():
    found = measured(Painter(), n=100, questions=[CLASS], asked=30)
    assert found["caption given image: what is it?"].n == 30
    assert found["caption given image"].n == 100


def test_a_model_without_answers_is_asked_no_questions():
    class Mute(Painter):
        posterior_over = None

    assert not [f for f in measured(Mute(), n=60, questions=[CLASS]).figures if "?" in f.name]


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"judges": {}}, ParameterError, "No judge of image"),
        ({"judges": {"picture": read_picture}}, ParameterError, "caption, image"),
        (
            {"labels": ["red"] * 3, "judges": {"image": read_picture, "caption": len}},
            ShapeError,
            "3 labels for 20 rows",
        ),
        ({"x": {"image": real(20)["image"]}}, DataError, "None of 20 rows"),
    ],
)
def test_bad_input_is_named(change, error, told):
    given = {"x": real(20), "labels": CLASS, "judges": {"image": read_picture}, **change}
    with pytest.raises(error, match=told):
        coherence(Painter(), given["x"], given["labels"], judges=given["judges"], draws=20, tests=False)


def test_judges_refuse_what_they_can_not_learn():
    with pytest.raises(DataError, match="two different ones"):
        Judge.learn(Array((6,)), real(20)["image"], ["red"] * 20)
    with pytest.raises(ShapeError, match="3 labels for 20 rows"):
        Judge.learn(Array((6,)), real(20)["image"], ["red"] * 3)
    with pytest.raises(ParameterError, match="a rule"):
        Judge(Series(), ["a", "b"])


def test_a_model_of_something_else_than_records_is_refused():
    class Plain(Painter):
        event = Array((6,))

    with pytest.raises(StructureError, match="records of two parts"):
        coherence(Plain(), real(5), CLASS)


def test_a_result_is_one_object_with_its_seed():
    found = measured(Painter(), n=40, seed=11)
    assert isinstance(found, Coherence)
    assert found.seed == 11
    assert Kind.SCORE not in found.target


def test_models_stand_side_by_side_and_one_that_draws_nothing_is_left_out():
    class Silent(Painter):
        def sample(self, n, *, given=None, seed=None):
            raise StructureError("It draws nothing", "", "")

    models = {"good": Painter(joint=0.95), "bad": Painter(joint=0.5), "mute": Silent()}
    found, left = coherence_of(models, real(300), CLASS, judges={"image": read_picture}, draws=300, tests=False)
    assert list(found) == ["good", "bad"]
    assert found["good"]["caption given image: what is it?"].n == 60
    assert left == {"mute": "It draws nothing."}
    assert found["good"]["joint"].share > found["bad"]["joint"].share + 0.2
    lines = coherence_lines(found)
    joint = next(line for line in lines if line.startswith("joint"))
    assert f"{found['good']['joint'].share:.1%}" in joint
    assert f"{found['bad']['joint'].share:.1%}" in joint
    assert "100.0%" in joint
    assert coherence_lines({}) == []

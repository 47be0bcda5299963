"""Language models: masses that sum to one, a cache that changes nothing, windows that lose nothing, what is refused."""

import copy
import itertools
import math
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from probgen import kernels, store
from probgen.errors import DataError, NotFittedError, ParameterError, StructureError
from probgen.estimate import Enumerate
from probgen.events import BPE, Array, Ragged, Real, Series, Table, Text
from probgen.logprob import Kind
from probgen.model import FitReport
from probgen.models.language import LanguageModel, TokenPath
from probgen.models.language import program as programs
from probgen.models.language.decoding import Stepper
from probgen.models.language.learning import NextSymbol, windows
from probgen.models.language.scoring import Reading, Windows, first_symbol
from probgen.nn.transformer import Transformer
from probgen.training.muon import Muon, orthogonal

ALPHA = 1e-6
SMALL = {"layers": 2, "width": 16, "heads": 2, "pairs": 50}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_model(event=None, scale=0.4, seed=0, **options):
    """A model that counts as fitted, with random weights in every place."""
    model = LanguageModel(event, **{**SMALL, "precision": "double", **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(scale * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    model.report = FitReport((), 0, "imported")
    return model.eval()


class FewLetters(Transformer):
    """Only some symbols can come. A network of a class of its own is stepped by torch."""

    def head(self, features):
        return super().head(features).masked_fill(~self.allowed, -torch.inf)


def few_letters(model, letters):
    """A text model under which only these bytes, and the end, can come: masses over them are all masses."""
    model.network.__class__ = FewLetters
    model.network.allowed = torch.zeros(257, dtype=torch.bool)
    model.network.allowed[[*letters.encode(), 256]] = True
    return model


def up_to(letters, length):
    return ["".join(word) for n in range(1, length + 1) for word in itertools.product(letters, repeat=n)]


def goodness(counts, p):
    expected = counts.sum() * p
    rare = expected < 10
    observed, expected = np.append(counts[~rare], counts[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    return stats.chi2.sf(((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum(), len(expected) - 1)


WORDS = ["in", "the", "beginning", "god", "created", "heaven", "and", "earth"]
TEXTS = [" ".join(np.random.default_rng(i).choice(WORDS, 2 + i % 9)) for i in range(60)]
_made = {}


def trained(kind):
    """A quickly fitted model of bytes or of tokens, made once."""
    if kind not in _made:
        event = Text() if kind == "bytes" else Text(BPE.learn(TEXTS, 290))
        model = LanguageModel(event, **{**SMALL, "width": 32}, window=32)
        _made[kind] = model.fit(TEXTS, steps=25, seed=0)
    return _made[kind]


@pytest.mark.parametrize("window", [2, 3, 64])
def test_all_short_texts_and_the_texts_still_open_have_mass_one(window):
    model = few_letters(random_model(window=window), "abc")
    ended = np.exp(model.log_prob(up_to("abc", 4)).nats).sum()
    stepper = model._stepper(1)
    empty = float(stepper.log_pmf()[0, 256].exp())
    longest = ["".join(word) for word in itertools.product("abc", repeat=4)]
    steps = model.log_prob_steps(longest).nats.reshape(-1, 4).sum(1)
    closed = np.exp(model.log_prob(longest).nats)
    still_open = np.exp(steps).sum() - closed.sum()
    assert ended + empty + still_open == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("levels", [3, (2, 3, 4)])
def test_masses_of_all_arrays_sum_to_one(levels):
    event = Array((3,) if isinstance(levels, tuple) else (2, 2), levels=levels)
    cells = np.array(list(itertools.product(*map(range, event.cell_levels)))).reshape(-1, *event.shape)
    nats = random_model(event).log_prob(cells).nats
    assert np.exp(nats).sum() == pytest.approx(1, abs=1e-12)
    assert len(np.unique(nats.round(9))) > len(nats) // 2  # not by being uniform


def test_masses_of_all_series_of_one_length_sum_to_one_and_cells_of_a_step_are_one_symbol():
    event = Series((2,), levels=(2, 3), missing=False)
    steps = list(itertools.product(range(2), range(3)))
    rows = [np.array(pair) for pair in itertools.product(steps, repeat=2)]
    model = random_model(event)
    assert np.exp(model.log_prob(rows).nats).sum() == pytest.approx(1, abs=1e-12)
    steps, whole = model.log_prob_steps(rows), model.log_prob(rows)
    np.testing.assert_allclose(steps.nats.reshape(-1, 2).sum(1), whole.nats, rtol=1e-12)
    for drawn in model.sample(3, seed=0, length=5):
        assert drawn.shape == (5, 2)


def test_samples_follow_the_masses_and_a_warm_sampler_is_caught():
    model = few_letters(random_model(window=3, scale=0.5), "ab")
    texts = up_to("ab", 4)
    p = np.exp(model.log_prob(texts).nats)
    empty = float(model._stepper(1).log_pmf()[0, 256].exp())
    p = np.append(p / (1 - empty), 0)
    p[-1] = 1 - p.sum()  # longer ones
    for target, fine in ((model, True), (model.sampler(temperature=1.15), False)):
        place = {text: i for i, text in enumerate(texts)}
        draws = target.sample(20_000, seed=3, length=5)
        counts = np.bincount([place.get(text, len(texts)) for text in draws], minlength=len(p))
        assert bool(goodness(counts, p) > ALPHA) is fine


@pytest.fixture(params=["kernel", "torch"])
def path(request, monkeypatch):
    """Steps by the kernel, where it is built, and by torch."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "decoder", None)
    elif kernels.decoder is None:
        pytest.skip("the kernel is not built")
    return request.param


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("precision", ["double", "single"])
def test_a_cache_changes_no_number_at_any_split(batch, precision, path):
    model = random_model(window=16, stride=5, layers=3, precision=precision)
    ids = torch.randint(256, (batch, 40), generator=torch.Generator().manual_seed(1))
    reading = model._reading(Ragged(ids.flatten(), torch.full((batch,), 40)))
    with torch.no_grad():
        whole = programs.log_pmfs(model, reading).reshape(batch, 41, -1)
    worst = 0.0
    for split in (0, 1, 15, 16, 17, 33):
        stepper = Stepper(model, batch)
        stepper.read(ids[:, :split])
        for step in range(split, 41):
            worst = max(worst, float((stepper.log_pmf() - whole[:, step]).abs().max()))
            if step < 40:
                stepper.push(ids[:, step])
    assert worst < (1e-11 if precision == "double" else 2e-4)
    memory = stepper.memory if path == "kernel" else stepper.memory.cache
    memory.filled -= 1  # a planted fault: a symbol is forgotten
    stepper.push(ids[:, 0])
    assert float((stepper.log_pmf() - whole[:, 40]).abs().max()) > 1e-3


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("options", [{}, {"top_k": 40, "temperature": 0.9}, {"top_p": 0.8, "repetition_penalty": 1.2}])
def test_one_seed_draws_the_same_tokens_with_and_without_a_cache(batch, options, path):
    from probgen.models.language.choosing import Choice, grow

    model = random_model(window=16, stride=4, precision="single")
    drawn = [
        grow(Stepper(model, batch, cached=cached), Choice(**options), torch.Generator().manual_seed(5), 60)
        for cached in (True, False)
    ]
    for a, b in zip(*drawn, strict=True):
        np.testing.assert_array_equal(a, b)
    other = grow(Stepper(model, batch), Choice(**options), torch.Generator().manual_seed(6), 60)
    assert any(not np.array_equal(a, b) for a, b in zip(drawn[0], other, strict=True))


def test_an_open_prefix_and_what_follows_it_make_the_whole():
    model = random_model(window=16, stride=3)
    before, after = "In the beginning ", "God created the heaven"
    opened = model.log_prob_steps([before]).nats.sum()
    rest = model.log_prob([after], given=before)
    whole = model.log_prob([before + after]).nats[0]
    assert opened + rest.nats[0] == pytest.approx(whole, abs=1e-10)
    assert rest.of == "x|prefix"
    assert model.log_prob([after]).nats[0] != pytest.approx(rest.nats[0], abs=1e-3)
    pair = model.log_prob([after, "b"], given=[before, "a"])
    assert pair.nats[0] == pytest.approx(rest.nats[0], abs=1e-10)


def test_a_uniform_model_costs_log2_of_257_for_each_byte_and_the_end():
    model = random_model(scale=0.0, window=16)
    text = "uniform, whatever it says"
    n = len(text)
    assert model.log_prob([text]).bits_per_byte().value == pytest.approx(math.log2(257) * (n + 1) / n, rel=1e-14)
    assert model.bits_per_byte([text]).value == pytest.approx(math.log2(257) * (n + 1) / n, rel=1e-14)
    assert model.perplexity([text]).value == pytest.approx(257, rel=1e-12)


@pytest.mark.parametrize(("window", "stride"), [(4, 1), (4, 2), (5, 3), (8, 8), (8, 5)])
def test_windows_predict_every_target_once_from_what_the_rule_says(window, stride):
    lengths = torch.tensor([1, 3, window - 1, window, window + 1, 29])
    ids = torch.arange(int(lengths.sum()))
    reading = Reading.of(Ragged(ids, lengths), 999, True)
    found = Windows.of(reading, window, stride)
    predicted = np.concatenate([np.arange(a, b) for a, b in zip(found.first, found.end, strict=True)])
    np.testing.assert_array_equal(np.sort(predicted), np.arange(len(reading.targets)))
    assert ((found.end - found.begin) <= window).all()
    for begin, end, first in zip(found.begin, found.end, found.first, strict=True):
        row = int(np.searchsorted(reading.starts, begin, side="right")) - 1
        for target in range(first, end):
            assert begin == reading.starts[row] + first_symbol(target - reading.starts[row], window, stride)
    batches = sum(len(batch) for batch in found.batches())
    assert batches == len(found)


def test_a_text_longer_than_the_window_is_scored_by_windows_and_says_so():
    model = random_model(window=8, stride=2)
    text = "a text that is longer than eight"
    lp = model.log_prob([text])
    assert "window 8, stride 2" in lp.by
    stepper, total = model._stepper(1), 0.0
    for byte in [*text.encode(), 256]:
        total += float(stepper.log_pmf()[0, byte])
        stepper.push([byte])
    assert lp.nats[0] == pytest.approx(total, abs=1e-10)


def test_order_batch_and_neighbours_have_no_effect():
    model = random_model(window=16)
    texts = [text * (1 + i % 3) for i, text in enumerate(TEXTS)]
    whole = model.log_prob(texts).nats
    np.testing.assert_allclose(model.log_prob(texts[::-1]).nats[::-1], whole, rtol=1e-12)
    alone = [model.log_prob([text]).nats[0] for text in texts[:10]]
    np.testing.assert_allclose(alone, whole[:10], rtol=1e-12)


def test_threads_have_no_effect():
    model, texts = random_model(), TEXTS[:20]
    one = model.log_prob(texts).nats
    torch.set_num_threads(2)
    try:
        np.testing.assert_allclose(model.log_prob(texts).nats, one, rtol=1e-12)
    finally:
        torch.set_num_threads(1)


def test_tokens_bound_the_string_from_below_and_are_exact_of_themselves():
    tokenizer = BPE([(97, 98), (98, 97), (256, 97)])
    model = random_model(Text(tokenizer), scale=0.3)
    text = "abab"
    lp = model.log_prob([text])
    assert lp.kind is Kind.LOWER
    paths = list(segmentations(text.encode(), tokenizer.pieces))
    assert len(paths) > 4
    every = [float(_path_log_prob(model, ids)) for ids in paths]
    canonical = tokenizer.encode([text])[0].tolist()
    assert lp.nats[0] == pytest.approx(every[paths.index(canonical)], abs=1e-10)
    assert np.logaddexp.reduce(every) > lp.nats[0] + 1e-3
    path = model.log_prob([text], by=TokenPath())
    assert path.kind is Kind.EXACT
    assert (path.of, path.measure) == ("tokens", "counting(tokens)")
    assert path.nats[0] == lp.nats[0]
    assert random_model().log_prob([text]).kind is Kind.EXACT
    assert lp.bits_per_byte().kind is Kind.UPPER


def segmentations(text, pieces):
    if not text:
        yield []
    for i, piece in enumerate(pieces):
        if piece and text.startswith(piece):
            yield from ([i, *rest] for rest in segmentations(text[len(piece) :], pieces))


def _path_log_prob(model, ids):
    x = Ragged(torch.tensor(ids), torch.tensor([len(ids)]))
    with torch.no_grad():
        return model._totals(x, None)[0][0]


@pytest.mark.parametrize("event", [Array((3,), levels=3), Series(levels=3)])
def test_the_program_scores_as_the_hook_does(event):
    model = random_model(event)
    x = np.random.default_rng(0).integers(3, size=(6, 3))
    np.testing.assert_allclose(model.log_prob(x, by=Enumerate()).nats, model.log_prob(x).nats, rtol=1e-10)


def test_the_program_of_text_and_the_one_site_distribution_score_as_the_hook_does():
    import pyro
    from pyro import poutine

    model = random_model(window=8)
    texts = ["a", "heaven and earth", "god"]
    nats = model.log_prob(texts).nats
    with pyro.validation_enabled(False):
        trace = poutine.trace(model.model).get_trace(model.event.check(texts).x)
    assert float(trace.log_prob_sum().detach()) == pytest.approx(nats.sum(), rel=1e-12)
    padded = torch.full((3, 20), -1)
    for row, text in zip(padded, texts, strict=True):
        row[: len(text)] = torch.tensor(list(text.encode()))
    one = model.distribution(3, 20)
    np.testing.assert_allclose(one.log_prob(padded).detach(), nats, rtol=1e-12)
    one.log_prob(padded).sum().backward()
    assert all(weight.grad is not None for weight in model.network.matrices)
    pyro.set_rng_seed(0)
    drawn = pyro.sample("x", one)
    assert drawn.shape == (3, 20)
    assert torch.isfinite(one.log_prob(drawn)).all()
    drawn = few_letters(random_model(window=8), "ab").model(n=2)
    assert set(drawn.values.tolist()) <= set(b"ab")


def test_fitting_gains_and_the_report_and_a_save_keep_it(tmp_path, monkeypatch):
    monkeypatch.setitem(store.FAMILIES, "LanguageModel", "probgen.models.language")
    monkeypatch.setitem(store._PARTS, "BPE", "probgen.events")
    for kind in ("bytes", "tokens"):
        model = trained(kind)
        assert model.report.objective[-1] > model.report.objective[0] + 1
        assert model.log_prob(TEXTS).bits_per_byte().value < 6
        again = store.load(store.save(model, tmp_path / kind))
        np.testing.assert_array_equal(again.log_prob(TEXTS[:5]).nats, model.log_prob(TEXTS[:5]).nats)
        assert repr(again) == repr(model)
        assert again.sample(2, seed=0, length=9) == model.sample(2, seed=0, length=9)


def test_a_resumed_fit_gives_the_same_bits_as_an_unbroken_one(tmp_path):
    options = {"steps": 12, "seed": 1, "every": 5}
    whole = LanguageModel(**SMALL, window=16).fit(TEXTS, **options)
    broken = LanguageModel(**SMALL, window=16)
    before, count = Muon.step, itertools.count()

    def interrupted(self, closure=None):
        if next(count) == 8:
            raise KeyboardInterrupt
        return before(self, closure)

    Muon.step = interrupted
    try:
        broken.fit(TEXTS, checkpoint=tmp_path / "state", **options)
    finally:
        Muon.step = before
    assert broken.report.stopped == "interrupted"
    broken = LanguageModel(**SMALL, window=16).fit(TEXTS, checkpoint=tmp_path / "state", resume=True, **options)
    for a, b in zip(whole.parameters(), broken.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_learn_makes_its_own_tokens_and_refuses_what_nobody_knows():
    model = LanguageModel.learn(TEXTS, tokens=280, steps=3, seed=0, **SMALL)
    assert model.event.tokens == 280
    assert LanguageModel.learn(TEXTS, tokens=256, steps=1, seed=0, **SMALL).event == Text()
    with pytest.raises(ParameterError, match=r"no option 'step'.*steps"):
        LanguageModel.learn(TEXTS, step=3)


def test_the_loss_and_its_gradients_are_those_of_cross_entropy():
    model = random_model(window=8)
    rows = windows(model.event.check(TEXTS[:4]).x, 256, 8)
    found = NextSymbol(model.network, True, False)(rows, torch.Generator(), 0.0)
    weights = [*model.network.parameters()]
    gradients = torch.autograd.grad(found, weights)
    ids, targets = rows[:, :-1], rows[:, 1:]
    from probgen.models.language.learning import apart

    logits = model.network.head(model.network(ids, apart(ids, 256, torch.float64)))
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert float(found.detach()) == pytest.approx(float(plain.detach()), rel=1e-12)
    for a, b in zip(gradients, torch.autograd.grad(plain, weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_in_training_no_text_sees_another():
    model = random_model(window=12)
    ids = torch.tensor([[256, 97, 98, 256, 99, 100]])
    from probgen.models.language.learning import apart

    together = model.network(ids, apart(ids, 256, torch.float64))[0, 3:]
    alone = model.network(ids[:, 3:])[0]
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
    leaking = model.network(ids)[0, 3:]
    assert float((leaking - alone).abs().max().detach()) > 1e-3  # the twin: without the mask it shows


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 32)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.max() < 1.3
    assert values.min() > 0.3


def test_bad_input_is_refused_by_name():
    model = random_model(window=16)
    with pytest.raises(DataError, match="Row 1 is ''"):
        model.log_prob(["a", ""])
    with pytest.raises(ParameterError, match="no option 'tempreature'"):
        model.sample(1, tempreature=2)
    with pytest.raises(NotFittedError):
        LanguageModel(**SMALL).log_prob(["a"])
    with pytest.raises(NotFittedError):
        LanguageModel(**SMALL).beam("a")
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.network.blocks[1].up[3, 4] = math.nan
    for ask in (lambda: broken.log_prob(["a"]), lambda: broken.sample(1, seed=0), lambda: broken.bits_per_byte(["a"])):
        with pytest.raises(ParameterError, match=r"blocks\.1\.up are not finite"):
            ask()
    with pytest.raises(StructureError, match=r"does not suit.*Table"):
        LanguageModel(Table({"a": Real()}))
    with pytest.raises(StructureError, match="levels"):
        LanguageModel(Array((2,)))
    with pytest.raises(ParameterError, match="width=0"):
        LanguageModel(width=0)
    with pytest.raises(StructureError, match="2 \\* heads divides"):
        LanguageModel(width=10, heads=4)
    with pytest.raises(StructureError, match="stride=9"):
        LanguageModel(window=8, stride=9)
    with pytest.raises(ParameterError, match="length=0"):
        model.sample(1, length=0)
    with pytest.raises(ParameterError, match="2 prefixes"):
        model.sample(1, given=["a", "b"])
    with pytest.raises(ParameterError, match="given= for fit"):
        LanguageModel(**SMALL).fit(TEXTS, given="a", steps=1)
    with pytest.raises(DataError, match="Sequence 1, step 2 is missing"):
        random_model(Series(levels=3)).log_prob([np.array([0.0, 1]), np.array([1, 2, np.nan])])
    with pytest.raises(StructureError, match="model of text"):
        random_model(Series(levels=3)).bits_per_byte([np.array([0.0, 1])])


def test_of_many_windows_only_some_are_held_out_for_an_evaluation_costs_them_all(monkeypatch):
    plans, family = [], sys.modules["probgen.models.language.family"]

    def noted(model, players, data, plan, **_):
        plans.append((plan.validation, len(data)))
        return FitReport((), 0, "steps")

    monkeypatch.setattr(family, "train", noted)
    rows = np.random.default_rng(0).integers(0, 2, (30_000, 3))
    LanguageModel(Array((3,), levels=2), window=8, **SMALL).fit(rows, steps=1)
    LanguageModel(Array((3,), levels=2), window=8, **SMALL).fit(rows[:600], steps=1)
    (share, many), (whole, few) = plans
    assert 0 < share * many <= 256 < 0.02 * many
    assert (whole, few * 0.02 <= 256) == (0.02, True)

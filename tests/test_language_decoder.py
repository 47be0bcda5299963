"""The kernel of language models by itself: logits as torch's, draws as the definition's, broken arguments, memory."""

import importlib.machinery
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from test_kernels import FLAGS, breaks, machine

from probgen import kernels
from probgen.events import Series
from probgen.model import FitReport
from probgen.models.language import Choice, LanguageModel, compiled
from probgen.models.language.choosing import draw
from probgen.models.language.compiled import Compiled
from probgen.models.language.decoding import Stepper
from probgen.nn.transformer import Transformer

ALPHA = 1e-6
TESTS = Path(__file__).parent
built = pytest.mark.skipif(kernels.decoder is None, reason="the kernel is not built")
#         symbols, layers, width, heads, hidden, pairs
SHAPES = [
    (5, 2, 16, 2, 30, 50), (257, 3, 12, 3, 7, 0), (33, 1, 2, 1, 1, 3), (65, 2, 80, 2, 160, 9), (32, 2, 72, 2, 64, 1),
]  # fmt: skip
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}  # of the largest logit; torch's own error is half of it


def random_network(shape, dtype, seed=0):
    network = Transformer(*shape).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.4 * torch.randn(weight.shape, generator=generator, dtype=dtype))
    return network


def gap(shape, dtype, rows, steps, seed=0, spoil=None):
    """The largest difference of the kernel's logits from torch's, as a share of the largest logit.

    Arguments:
        spoil: Done to the network before the kernel takes its weights.
    """
    network, symbols = random_network(shape, dtype, seed), shape[0]
    ids = torch.randint(symbols, (rows, steps), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = symbols - 1
    with torch.no_grad():
        wanted = network.head(network(ids))
    if spoil is not None:
        spoil(network)
    memory, worst = Compiled(network, steps), 0.0
    memory.take(ids[:1, :1])
    for t in range(1, steps):
        worst = max(worst, float((memory.take(ids[:, t : t + 1]) - wanted[:, t]).abs().max()))
    return worst / float(wanted.abs().max())


def survey(rows=(1, 2, 3, 7, 14), steps=37):
    """Every shape, precision and number of rows whose logits are not torch's."""
    cases = itertools.product(SHAPES, TOLERANCE, rows)
    return [case for case in cases if not gap(*case, steps, seed=case[2]) < TOLERANCE[case[1]]]


def masses(choice, logits):
    """The pmf of changed logits and its running sum, float64."""
    p = choice(logits).double().softmax(1)
    return p, p.cumsum(1)


OPTIONS = [
    {}, {"temperature": 0.3}, {"top_k": 1}, {"top_k": 5}, {"top_k": 50}, {"top_k": 1000}, {"top_p": 0.5},
    {"top_p": 0.99}, {"min_p": 0.2}, {"top_k": 40, "top_p": 0.7, "min_p": 0.05, "temperature": 1.7},
]  # fmt: skip


def draws_survey(rows=40, twin=False):
    """Options, sizes and precisions under which a draw is not the symbol that u falls on, up to rounding of u."""
    wrong = []
    for options, size, dtype in itertools.product(OPTIONS, [1, 2, 17, 300, 2049], TOLERANCE):
        generator = torch.Generator().manual_seed(size)
        logits = 2 * torch.randn(rows, size, generator=generator, dtype=dtype)
        logits[1::3] = logits[1::3].round()  # ties
        logits[2::3] = logits[2::3].masked_fill(torch.rand(logits[2::3].shape, generator=generator) < 0.4, -torch.inf)
        logits[:, 0] = logits[:, 0].clamp_min(-3)
        u = torch.rand(rows, generator=generator, dtype=torch.float64)
        choice = Choice(**options)
        found = choice.pick(logits, 1 - u if twin else u)[:, None]
        p, sums = masses(choice, logits)
        high, mass = sums.gather(1, found)[:, 0], p.gather(1, found)[:, 0]
        fits = (mass > 0) & (u <= high + 1e-6) & (u >= high - mass - 1e-6)
        if not fits.all():
            wrong.append((options, size, dtype))
    return wrong


@built
def test_the_kernels_logits_are_torchs():
    assert survey() == []


@built
@pytest.mark.parametrize("name", ["embedding", "pair", "again", "blocks.1.mix", "blocks.1.out", "blocks.0.down"])
@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 1.05), (torch.float64, 1.000001)])
def test_a_weight_that_is_a_little_off_is_seen(name, dtype, factor):
    """Its twin."""

    def spoil(network):
        with torch.no_grad():
            weight = network.get_parameter(name)
            weight[: len(weight) // 2 + 1].mul_(factor)  # the same factor everywhere is normed away

    assert gap(SHAPES[0], dtype, 3, 20, spoil=spoil) > TOLERANCE[dtype]


@built
def test_a_rows_logits_do_not_depend_on_its_neighbours_or_on_threads():
    network = random_network((257, 2, 32, 2, 96, 20), torch.float32)
    ids = torch.randint(257, (27, 20), generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    answers = []
    try:
        for rows, threads in ((27, 1), (27, 3), (3, 1), (1, 1)):
            torch.set_num_threads(threads)
            memory = Compiled(network, 21)
            memory.take(torch.full((1, 1), 256))
            answers.append(torch.stack([memory.take(ids[:rows, t : t + 1]) for t in range(20)]))
    finally:
        torch.set_num_threads(before)
    for some in answers[1:]:
        assert torch.equal(some, answers[0][:, : some.shape[1]])


@built
def test_draws_are_those_of_the_definition():
    assert draws_survey() == []


@built
def test_draws_by_another_number_are_seen():
    """Its twin."""
    assert len(draws_survey(twin=True)) > 50


@built
def test_without_the_kernel_draws_are_the_same(monkeypatch):
    logits = torch.randn(500, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = torch.rand(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen = torch.rand(500, 40, generator=torch.Generator().manual_seed(2)) < 0.3
    for options in [*OPTIONS, {"repetition_penalty": 1.5, "top_p": 0.8}]:
        choice = Choice(**options)
        by_kernel = choice.pick(logits, u, seen)
        monkeypatch.setattr(kernels, "decoder", None)
        assert torch.equal(choice.pick(logits, u, seen), by_kernel)
        monkeypatch.undo()
        assert torch.equal(draw(choice(logits, seen), u), by_kernel)


@built
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_draws_follow_the_changed_pmf(options, dtype):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, 60, generator=generator, dtype=dtype)
    u = torch.rand(100_000, generator=generator, dtype=torch.float64)
    choice = Choice(**options)
    counts = np.bincount(choice.pick(logits.expand(len(u), -1), u), minlength=60)
    p = masses(choice, logits)[0][0].numpy()
    assert not counts[p == 0].any()
    assert chi_square(counts, p) > ALPHA
    if (p > 0).sum() > 1:
        warm = masses(Choice(**{**options, "temperature": 1.1 * choice.temperature}), logits)[0][0].numpy()
        assert chi_square(counts, np.where(p > 0, warm, 0)) < ALPHA  # the twin


def chi_square(counts, p):
    p = p / p.sum()
    kept = counts.sum() * p >= 10
    observed, expected = counts[kept], counts.sum() * p[kept] * counts[kept].sum() / (counts.sum() * p[kept].sum())
    return stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), max(len(expected) - 1, 1))


@built
def test_numbers_that_are_none_choose_some_symbol():
    out = np.full(1, -1)
    for dtype, size in itertools.product((np.float32, np.float64), (1, 3, 40, 700)):
        for bad, u, options in itertools.product((np.nan, np.inf, -np.inf), (np.nan, -1.0, 0.0, 2.0), OPTIONS):
            choice = Choice(**options)
            for some in (slice(None), slice(0, 1), slice(size // 2, None)):
                logits = np.zeros((1, size), dtype=dtype)
                logits[:, some] = bad
                kernels.decoder.pick(
                    logits, np.array([u]), choice.temperature, choice.top_k, choice.top_p, choice.min_p, out
                )
                assert 0 <= out[0] < size


def random_model(path, monkeypatch, **options):
    if path == "torch":
        monkeypatch.setattr(kernels, "decoder", None)
    model = LanguageModel(Series(levels=7, missing=False), layers=2, width=16, heads=2, pairs=30, **options)
    model.network.load_state_dict(random_network((8, 2, 16, 2, 64, 30), torch.float64).state_dict())
    model.report = FitReport((), 0, "imported")
    return model.eval()


def walk(model, seed):
    """log p of what comes next, of sequences that are pushed, read, chosen, doubled and begun again at random."""
    rng, found = np.random.default_rng(seed), []
    stepper = Stepper(model, int(rng.integers(1, 5)))
    for _ in range(90):
        step = rng.choice(5, p=[0.75, 0.15, 0.04, 0.04, 0.02])
        if step == 0:
            stepper.push(rng.integers(7, size=stepper.batch))
        elif step == 1:
            stepper.keep(torch.from_numpy(rng.integers(stepper.batch, size=rng.integers(1, 8))))
        elif step == 2:
            stepper.read(torch.from_numpy(rng.integers(7, size=rng.integers(0, 4))))
        elif step == 3:
            stepper.read(torch.from_numpy(rng.integers(7, size=(stepper.batch, 2))))
        else:
            stepper.reset()
        found.append(stepper.log_pmf())
    return found


@built
@pytest.mark.parametrize("seed", range(12))
def test_rows_chosen_and_doubled_at_random_go_on_as_by_torch(seed, monkeypatch):
    for window in (9, 70):
        monkeypatch.setattr(compiled, "_FIRST", 1)  # so that memory grows
        answers = [walk(random_model(path, monkeypatch, window=window), seed) for path in ("kernel", "torch")]
        monkeypatch.undo()
        for a, b in zip(*answers, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@built
def test_rows_mixed_up_are_seen(monkeypatch):
    """Its twin: of several rows, the last two change places."""
    wanted = walk(random_model("kernel", monkeypatch, window=40), 3)
    keep = Compiled.keep
    monkeypatch.setattr(Compiled, "keep", lambda self, rows: keep(self, rows.flip(0)))
    found = walk(random_model("kernel", monkeypatch, window=40), 3)
    assert not all(torch.allclose(a, b, atol=1e-6) for a, b in zip(wanted, found, strict=True))


@built
def test_what_the_kernel_does_not_know_is_stepped_by_torch(monkeypatch):
    network = random_network(SHAPES[0], torch.float32)
    assert Compiled.suits(network)
    assert not Compiled.suits(network.to(torch.bfloat16))
    logits, u = torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([0.5], dtype=torch.float64)
    assert Choice(top_k=1).pick(logits.bfloat16(), u).tolist() == [1]
    assert not Compiled.suits(type("Other", (Transformer,), {})(*SHAPES[0]))
    monkeypatch.setattr(kernels, "decoder", None)
    assert not Compiled.suits(random_network(SHAPES[0], torch.float32))


def calls(dtype=torch.float32):
    """Arguments of a step that works: two of three slots, place 3 of 16; and of a draw."""
    network = random_network((5, 2, 8, 2, 6, 3), dtype)
    memory = Compiled(network, 16)
    memory.take(torch.tensor([[4, 1, 2]] * 3))
    memory.take(torch.tensor([[1], [2], [3]]))
    for memories in (memory.keys, memory.values):
        memories[:] = 0
    logits, symbols = np.zeros((2, 5), memory.keys.dtype), np.array([1, 2])
    step = [*memory.weights, memory.keys, memory.values, np.array([2, 0]), symbols, symbols, 3, 1, logits]
    return {"step": step, "pick": [logits, np.zeros(2), 1.0, 2, 0.9, 0.1, symbols.copy()]}


#       tables of any number of pairs, and of places; float64 logits
FINE = {("step", 1, "one row more"), ("step", 1, "empty"), ("step", 4, "one row more"), ("pick", 0, "the other type")}


def spoilt():
    for name, arguments in calls().items():
        for place, argument in enumerate(arguments):
            if isinstance(argument, np.ndarray):
                yield from ((name, place, how) for how in breaks(argument) if (name, place, how) not in FINE)
    numbers = {("step", 5): [0, -1, 7, 1 << 40], ("step", 6): [np.nan, np.inf], ("step", 12): [-1, 16, 1 << 40]}
    numbers |= {("pick", 2): [0.0, -1.0, np.nan], ("pick", 3): [-1]}
    numbers |= {("pick", 4): [0.0, np.nan], ("pick", 5): [-0.1, 1.0]}
    for (name, place), values in numbers.items():
        yield from ((name, place, value) for value in values)
    for place, values in ((9, ([0, 3], [-1, 0], [1, 1])), (10, ([0, 5], [-1, 0])), (11, ([0, 5], [-1, 0]))):
        yield from (("step", place, np.array(value)) for value in values)


def spoil(name, place, how):
    arguments = calls()[name]
    arguments[place] = breaks(arguments[place])[how] if isinstance(how, str) else how
    return arguments


@built
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["step", "pick"])
def test_calls_that_fit_work(name, dtype):
    assert getattr(kernels.decoder, name)(*calls(dtype)[name]) is None


@built
@pytest.mark.parametrize(("name", "place", "how"), list(spoilt()) if kernels.decoder else [])
def test_arguments_that_do_not_fit_are_refused(name, place, how):
    with pytest.raises((ValueError, TypeError)):
        getattr(kernels.decoder, name)(*spoil(name, place, how))


@built
def test_other_threads_go_on_while_the_kernel_works():
    logits, u, out = np.random.default_rng(0).normal(size=(2000, 2000)), np.full(2000, 0.5), np.zeros(2000, np.int64)
    inside, times = [], []

    def work():
        for _ in range(5):
            began = time.perf_counter()
            kernels.decoder.pick(logits, u, 1.0, 50, 1.0, 0.0, out)
            inside.append((began, time.perf_counter()))

    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive():
        times.append(time.perf_counter())
    worker.join()
    # well inside a call, where a kernel that kept the lock would let no other thread look at the clock
    seen = sum(begin + 0.25 * (end - begin) < t < end - 0.25 * (end - begin) for begin, end in inside for t in times)
    assert seen > 20


@built
@pytest.mark.parametrize("isa", FLAGS)
def test_each_instruction_set_gives_torchs_logits_and_draws(isa, tmp_path, monkeypatch):
    if not machine() >= FLAGS[isa]:
        pytest.skip(f"this machine has no {isa}")
    monkeypatch.setenv("PROBGEN_ISA", isa)
    copy = shutil.copy(kernels.decoder.__file__, tmp_path)  # a library is loaded, and chooses, once
    spec = importlib.util.spec_from_file_location("probgen.kernels._decoder", copy)
    monkeypatch.setattr(kernels, "decoder", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(kernels.decoder)
    assert kernels.decoder.isa() == isa
    assert survey((7,)) == []
    assert draws_survey(10) == []


def run(code, timeout=300, **environment):
    """Python code in a process of its own, which finds the tests' modules."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    values = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths} | environment
    return subprocess.run([sys.executable, "-c", code], env=values, capture_output=True, text=True, timeout=timeout)


DRIVER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("probgen.kernels._decoder", {path!r})
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
from probgen import kernels
kernels.decoder = module
import test_language_decoder as t, torch
torch.set_num_threads(2)
wrong = t.survey((1, 17)) + t.draws_survey(6)
for name, place, how in t.spoilt():
    try:
        getattr(module, name)(*t.spoil(name, place, how))
    except (ValueError, TypeError):
        continue
    wrong.append((name, place, how))
t.test_numbers_that_are_none_choose_some_symbol()
monkeypatch = t.pytest.MonkeyPatch()
for seed in range(15):
    t.walk(t.random_model("kernel", monkeypatch, window=9 + seed), seed)
print(module.isa(), wrong)
"""


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """The kernel built with AddressSanitizer and UBSan, and what to preload."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    path = tmp_path_factory.mktemp("asan") / f"_decoder{importlib.machinery.EXTENSION_SUFFIXES[-1]}"
    flags = ["-O1", "-g", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread"]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    source, include = TESTS.parent / "probgen/kernels/decoder.cpp", f"-I{sysconfig.get_paths()['include']}"
    subprocess.run([compiler, *flags, *checks, include, str(source), "-o", str(path)], check=True)
    find = [[compiler, f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so")]  # the latter for throw
    library = " ".join(subprocess.run(each, capture_output=True, text=True, check=True).stdout.strip() for each in find)
    return str(path), library


@pytest.mark.long
@pytest.mark.parametrize("isa", FLAGS)
def test_no_byte_is_touched_out_of_turn(sanitized, isa):
    if not machine() >= FLAGS[isa]:
        pytest.skip(f"this machine has no {isa}")
    path, library = sanitized
    options = {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc", "PROBGEN_ISA": isa}
    done = run(DRIVER.format(path=path), timeout=900, **options)
    assert done.stdout.strip() == f"{isa} []", done.stderr[-4000:]

"""The compiled kernel by itself: every instruction set, broken arguments, threads, memory under AddressSanitizer."""

import importlib.machinery
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
from scipy import stats

from probgen import kernels

native = kernels.native
TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "probgen/kernels/native.cpp"
built = pytest.mark.skipif(native is None, reason="the kernel is not built")
FLAGS = {"avx512": {"avx512f", "avx512dq", "avx512vl", "avx512bw"}, "avx2": {"avx2", "fma", "bmi2"}, "generic": set()}


def run(code, timeout=300, **environment):
    """Python code in a process of its own, which finds the tests' modules."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    values = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths} | environment
    return subprocess.run([sys.executable, "-c", code], env=values, capture_output=True, text=True, timeout=timeout)


def machine():
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return set(text.split("flags", 1)[-1].split("\n", 1)[0].split())


def test_where_there_is_a_compiler_the_kernel_is_built():
    if native is None and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        pytest.skip("no compiler here")
    assert native is not None


@built
@pytest.mark.parametrize("isa", FLAGS)
def test_each_instruction_set_says_what_80_bits_say(isa):
    if not machine() >= FLAGS[isa]:
        pytest.skip(f"this machine has no {isa}")
    done = run(
        "import torch; torch.set_num_threads(1)\n"
        "from chain_truth import survey; from probgen import kernels\n"
        "print(kernels.native.isa(), survey(seed=3, examples=12, long=1))",
        PROBGEN_ISA=isa,
    )
    assert done.stdout.strip() == f"{isa} []", done.stderr


@built
def test_the_survey_of_each_set_sees_a_planted_error():
    """Its twin: moves that the kernel is told a thousandth too likely."""
    done = run(
        "from chain_truth import survey; from probgen.chains import compiled\n"
        "real = compiled._chances\n"
        "compiled._chances = lambda chain: (real(chain)[0], real(chain)[1] * 1.001, real(chain)[2])\n"
        "print(len(survey(seed=3, examples=4)))"
    )
    assert int(done.stdout) == 4, done.stderr


def test_without_the_extension_the_torch_path_works_and_says_so_once():
    done = run(
        "import sys; sys.modules['probgen.kernels._native'] = None\n"
        "from chain_truth import survey; from probgen import kernels\n"
        "import probgen.kernels\n"
        "print(kernels.native, survey(seed=4, examples=3))"
    )
    assert done.stdout.strip() == "None []", done.stderr
    assert done.stderr.count("without its compiled kernels") == 1


def table(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def calls():
    """A call of each function that works: 7 steps of 3 states, three sequences, two cells."""
    n, total, states, dim = 3, 7, 3, 2
    first, moves = np.full((1, states), 1 / states), np.full((states, states), 1 / states)
    lengths = np.array([3, 2, 2])
    whole, more = np.zeros(n, np.int64), np.zeros(n, np.int64)
    nats, x, loc, scale = np.zeros(n), table(total, dim), table(states, dim), np.ones((states, dim))
    out = {name: np.zeros((total, states)) for name in ("states", "marginals", "out")}
    moments = np.zeros((3, states, dim))
    normals = (x, loc, scale)
    return {
        "forward": [first, moves, table(total, states), lengths, False, 1, nats, whole, more,
                    np.zeros(total), np.zeros(total), out["states"]],
        "smooth": [first, moves, normals, lengths, np.ones(n), True, 1, nats, whole, more,
                   np.zeros((n, states)), np.zeros((states, states)), out["marginals"], moments],
        "best": [np.log(first), np.log(moves), table(total, states), lengths, 1, np.zeros(total, np.int64), nats],
        "normal_log_prob": [*normals, out["out"], 1],
        "normal_moments": [x, np.ones((total, states)), loc, *moments, 1],
    }  # fmt: skip


def breaks(array):
    """The same argument spoilt, one way at a time."""
    strided = np.repeat(array, 2, axis=-1)[..., ::2]
    return {
        "single precision": array.astype(np.float32 if array.dtype == np.float64 else np.int32),
        "the other type": array.astype(np.int64 if array.dtype == np.float64 else np.float64),
        "one row more": np.concatenate([array, array[:1]]),
        "empty": array[:0],
        "no rank": array.reshape(-1)[0],
        "another rank": array[None],
        "strided": strided,
        "swapped bytes": array.astype(array.dtype.newbyteorder()),
        "not an array": "text",
        "None of it": object(),
    }


def spoilt():
    for name, arguments in calls().items():
        for place, argument in enumerate(arguments):
            if isinstance(argument, np.ndarray):
                yield from ((name, place, how) for how in breaks(argument))


@built
@pytest.mark.parametrize("name", calls())
def test_calls_that_fit_work(name):
    assert getattr(native, name)(*calls()[name]) is None


@built
@pytest.mark.parametrize(("name", "place", "how"), list(spoilt()))
def test_arguments_that_do_not_fit_are_refused(name, place, how):
    arguments = calls()[name]
    arguments[place] = breaks(arguments[place])[how]
    with pytest.raises((ValueError, TypeError)):
        getattr(native, name)(*arguments)


@built
@pytest.mark.parametrize("lengths", [[3, 5], [7, 0], [8, -1], [2**62, 2**62], [-(2**63), 7], [7, 7]])
@pytest.mark.parametrize("name", ["forward", "smooth", "best"])
def test_lengths_that_do_not_add_up_are_refused(name, lengths):
    arguments = calls()[name]
    arguments[3] = np.array(lengths)
    with pytest.raises(ValueError, match="lengths"):
        getattr(native, name)(*arguments)


@built
def test_results_are_not_written_where_writing_is_forbidden():
    for name, place in [("forward", 6), ("smooth", 11), ("best", 5), ("normal_log_prob", 3), ("normal_moments", 4)]:
        arguments = calls()[name]
        arguments[place].flags.writeable = False
        with pytest.raises(ValueError, match="writable"):
            getattr(native, name)(*arguments)


@built
@pytest.mark.parametrize("broken", [(), (1, 2), ("x", "y", "z"), tuple(range(4))])
def test_a_tuple_that_is_no_normal_is_refused(broken):
    arguments = calls()["smooth"]
    arguments[2] = broken
    with pytest.raises((ValueError, TypeError)):
        native.smooth(*arguments)


@built
@pytest.mark.parametrize("how", breaks(table(7, 2)))
@pytest.mark.parametrize("place", range(3), ids=["x", "loc", "scale"])
def test_normals_that_do_not_fit_are_refused(place, how):
    arguments = calls()["smooth"]
    normals = list(arguments[2])
    normals[place] = breaks(normals[place])[how]
    arguments[2] = tuple(normals)
    with pytest.raises((ValueError, TypeError)):
        native.smooth(*arguments)


def normal_case(n, dim, states, seed=0, missing=0.2):
    rng = np.random.default_rng(seed)
    x, loc = rng.normal(size=(n, dim)), rng.normal(size=(states, dim))
    x[rng.uniform(size=x.shape) < missing] = np.nan
    return x, loc, rng.uniform(0.2, 3, (states, dim)), rng.uniform(size=(n, states))


@built
@pytest.mark.parametrize(("n", "dim", "states"), [(1, 1, 1), (5, 3, 2), (300, 2, 7), (50, 20, 70), (9000, 1, 5)])
def test_normal_densities_are_scipys_and_gaps_count_nothing(n, dim, states):
    x, loc, scale, _ = normal_case(n, dim, states)
    out = np.empty((n, states))
    native.normal_log_prob(x, loc, scale, out, 2)
    wanted = np.nansum(stats.norm.logpdf(x[:, None], loc, scale), axis=-1)
    np.testing.assert_allclose(out, wanted, rtol=1e-13, atol=1e-12)


@built
def test_normal_densities_far_from_the_origin_lose_no_digits():
    x = 1e8 + np.arange(5.0)[:, None] / 8
    out = np.empty((5, 1))
    native.normal_log_prob(x, np.full((1, 1), 1e8), np.full((1, 1), 0.125), out, 1)
    np.testing.assert_allclose(out[:, 0], stats.norm.logpdf(np.arange(5.0)) + np.log(8), rtol=1e-14)


@built
@pytest.mark.parametrize(("n", "dim", "states"), [(1, 1, 1), (5, 3, 2), (300, 2, 7), (50, 20, 70), (20_000, 1, 5)])
def test_normal_moments_are_the_weighted_sums_whatever_the_threads(n, dim, states):
    x, loc, _, weights = normal_case(n, dim, states)
    away = np.nan_to_num((x[:, None] - loc).astype(np.longdouble))
    seen = ~np.isnan(x)
    wanted = np.stack([
        weights.T @ seen, np.einsum("nk,nkd->kd", weights, away), np.einsum("nk,nkd->kd", weights, away**2)
    ]).astype(float)  # fmt: skip
    answers = []
    for threads in (1, 2, 5):
        out = np.empty((3, states, dim))
        native.normal_moments(x, weights, loc, *out, threads)
        answers.append(out)
    np.testing.assert_allclose(answers[0], wanted, rtol=1e-11, atol=1e-11)
    assert (answers[0] == answers[1]).all()
    assert (answers[0] == answers[2]).all()


def large_call(states=40, total=40_000):
    lengths = np.full(total // 100, 100)
    moves = np.random.default_rng(0).dirichlet(np.ones(states), states)
    n = len(lengths)
    return [np.full((1, states), 1 / states), moves, table(total, states), lengths, False, 1,
            np.zeros(n), np.zeros(n, np.int64), np.zeros(n, np.int64), None, None, None]  # fmt: skip


@built
def test_other_threads_go_on_while_the_kernel_works():
    arguments, inside, times = large_call(), [], []

    def work():
        for _ in range(20):
            began = time.perf_counter()
            native.forward(*arguments)
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
def test_calls_at_once_do_not_disturb_each_other():
    alone = large_call()
    native.forward(*alone)
    runs = [large_call() for _ in range(4)]
    workers = [threading.Thread(target=native.forward, args=arguments) for arguments in runs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all((arguments[6] == alone[6]).all() for arguments in runs)


DRIVER = """
import importlib.util, sys
import torch; torch.set_num_threads(2)
spec = importlib.util.spec_from_file_location("probgen.kernels._native", {path!r})
module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)
sys.modules["probgen.kernels._native"] = module
from probgen import kernels
assert kernels.native is module
import numpy as np, test_kernels
from chain_truth import survey
wrong = survey(seed={seed}, examples=25, long=2)
for name, place, how in test_kernels.spoilt():
    arguments = test_kernels.calls()[name]
    arguments[place] = test_kernels.breaks(arguments[place])[how]
    try:
        getattr(module, name)(*arguments)
    except (ValueError, TypeError):
        continue
    wrong.append((name, place, how))
for shape in [(1, 1, 1), (5, 3, 2), (50, 20, 70), (9000, 1, 5)]:
    x, loc, scale, weights = test_kernels.normal_case(*shape)
    module.normal_log_prob(x, loc, scale, np.empty_like(weights), 2)
    module.normal_moments(x, weights, loc, *np.empty((3, *loc.shape)), 2)
print(module.isa(), wrong)
"""


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """The kernel built with AddressSanitizer and UBSan, and what to preload."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    path = tmp_path_factory.mktemp("asan") / f"_native{importlib.machinery.EXTENSION_SUFFIXES[-1]}"
    subprocess.run(
        [compiler, "-O1", "-g", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-pthread",
         "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{sysconfig.get_paths()['include']}",
         str(SOURCE), "-o", str(path)],
        check=True,
    )  # fmt: skip
    find = [compiler, "-print-file-name=libasan.so"]
    return str(path), subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.long
@pytest.mark.parametrize("isa", FLAGS)
def test_no_byte_is_touched_out_of_turn(sanitized, isa):
    if not machine() >= FLAGS[isa]:
        pytest.skip(f"this machine has no {isa}")
    path, library = sanitized
    options = {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc", "PROBGEN_ISA": isa}
    done = run(DRIVER.format(path=path, seed=5), timeout=900, **options)
    assert done.stdout.strip() == f"{isa} []", done.stderr[-4000:]

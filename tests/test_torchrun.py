"""Training in two processes under torchrun: two ranks equal one, end with the same bits, and fail together.

This file is also the script that torchrun starts: each scenario is a function that runs on every rank, and in the
test's own process where it is the reference.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

import probgen as pg
from probgen import model as models
from probgen import ranks, store, training
from probgen.errors import FitError, ParameterError, ProbgenError, StoreError
from probgen.events import Array, Real, Table
from probgen.models.vae import learning
from probgen.training import Player, Schedule, loop, train

D = torch.float64
RNG = np.random.default_rng(3)
ROWS = np.concatenate([RNG.normal(size=(101, 2)), RNG.normal(size=(102, 2)) + 3])
GAPS = np.where(RNG.random((203, 2)) < 0.1, np.nan, ROWS)
SEQUENCES = [RNG.normal(size=(n, 2)) + 3 * (np.arange(n) % 20 > 10)[:, None] for n in (40, 10, 31, 77, 5)]
LABELS = [np.where(np.arange(len(s)) % 3 == 0, np.arange(len(s)) % 20 > 10, -1) for s in SEQUENCES]
RANK = int(os.environ.get("RANK", "0"))


# Two players without noise: what they end with tells to rounding whether a step was the same


class Duel(nn.Module):
    """A generator that moves the rows, a discriminator, a parameter that few rows touch, one that nothing touches."""

    def __init__(self):
        super().__init__()
        self.mover, self.judge = nn.Linear(2, 2).to(D), nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).to(D)
        self.rare, self.idle = nn.Parameter(torch.zeros(2, dtype=D)), nn.Parameter(torch.ones(3, dtype=D))


class Judging(nn.Module):
    """Discriminator loss with a penalty on its slopes, so that gradients go through gradients."""

    def __init__(self, duel):
        super().__init__()
        self.duel = duel

    @torch.enable_grad()
    def forward(self, x, generator, share):
        x = x.requires_grad_()
        real = self.duel.judge(x)
        (slope,) = torch.autograd.grad(real.sum(), x, create_graph=True)
        fake = self.duel.judge(self.duel.mover(x).detach())
        return (softplus(fake - real)[:, 0] + slope.square().sum(1)).mean()


class Moving(nn.Module):
    """Generator loss; rows beyond 4 in their first cell also move ``rare``, which else has no gradient."""

    def __init__(self, duel):
        super().__init__()
        self.duel = duel

    def forward(self, x, generator, share):
        loss = softplus(-self.duel.judge(self.duel.mover(x)))[:, 0]
        far = x[:, 0] > 4
        if bool(far.any()):
            loss = loss + torch.where(far, (x * self.duel.rare).sum(1), 0.0)
        return loss.mean()


def duel(seed=7, whole=False, **plan):
    torch.manual_seed(seed)
    model = Duel()
    players = [
        Player(Judging(model), list(model.judge.parameters())),
        Player(Moving(model), [*model.mover.parameters(), model.rare, model.idle], whole=whole),
    ]
    plan = Schedule(**{"steps": 25, "batch_size": 9, "learning_rate": 0.02, **plan})
    report = train(model, players, torch.tensor(ROWS), plan, generator=torch.Generator().manual_seed(3))
    return model, report


# Fits that two ranks and one process must agree on, and how closely


def mixture(x=ROWS, emission=None, **options):
    event = Table({"a": Real(), "b": Real()}) if x is GAPS else Array((2,))
    return pg.Mixture(event, 3, emission).fit(x, seed=1, restarts=2, max_iter=40, **options)


def hmm(emission=None, x=SEQUENCES, **options):
    return pg.HMM(states=2, emission=emission or pg.emissions.Normal(2)).fit(x, seed=1, max_iter=15, **options)


def flow(**options):
    return pg.Flow(Array((2,))).fit(ROWS, seed=5, **{"steps": 12, "batch_size": 33, **options})


def vae(seed=5, **options):
    return pg.VAE(Array((2,)), 2, (4,)).fit(
        ROWS, seed=seed, **{"steps": 20, "batch_size": 17, "patience": 0, **options}
    )


def copied():
    """A fit that keeps the rows in a random order, on each rank all of them."""
    return pg.KernelDensity(Array((2,))).fit(ROWS)


ALIKE = {
    "duel": (1e-10, lambda: duel()[0]),
    "duel, average": (1e-10, lambda: duel(ema=0.9, validation=0.0)[0]),
    "duel, whole batches": (1e-10, lambda: duel(whole=True)[0]),
    "duel, batches of one row": (1e-10, lambda: duel(batch_size=1)[0]),
    "flow": (1e-4, flow),
    "mixture": (1e-10, mixture),
    "mixture with gaps": (1e-10, lambda: mixture(GAPS)),
    "mixture of Student's t": (1e-10, lambda: mixture(emission=pg.emissions.StudentT(2))),
    "mixture of fewer rows than ranks": (1e-10, lambda: pg.Mixture(Array((2,)), 1).fit(ROWS[:1], seed=0)),
    "hmm": (1e-10, hmm),
    "hmm, full covariances": (1e-10, lambda: hmm(pg.emissions.Normal(2, "full"))),
    "hmm, labels": (1e-10, lambda: hmm(labels=LABELS)),
    "hmm, one sequence": (1e-10, lambda: hmm(x=SEQUENCES[:1])),
    "kernel density": (1e-10, lambda: pg.KernelDensity(Array((2,))).fit(ROWS, seed=1)),
}
SHARED = {"mixture": "2 ranks shared 203 rows", "hmm": "2 ranks shared 5 sequences"}
WHOLE = {
    "mixture of Student's t": "each of 2 ranks took all 203 rows",
    "hmm, one sequence": "each of 2 ranks took all 1 sequences",
    "kernel density": "each of 2 ranks fitted all rows",
}


def numbers(model):
    return {name: value.detach().double().flatten().tolist() for name, value in model.state_dict().items()}


def said(act):
    """What an act raises, as every rank sees it."""
    try:
        act()
    except (ProbgenError, OSError) as problem:
        return f"{type(problem).__name__}: {problem}"
    return "nothing"


@contextmanager
def patched(where, name, value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, value)
        yield


def at_call(k, act, rank=1):
    """Puts ``act(loss)`` in place of the k-th training loss of one rank."""
    calls, real = [], learning.NegativeELBO.forward

    def forward(self, x, generator, share):
        loss = real(self, x, generator, share)
        calls.append(torch.is_grad_enabled())
        return act(loss) if rank == RANK and calls[-1] and sum(calls) == k else loss

    return patched(learning.NegativeELBO, "forward", forward)


def out_of_memory(_):
    raise MemoryError("no more memory")


def interrupt(loss):
    os.kill(os.getpid(), signal.SIGINT)
    return loss


class PowerCut(OSError):
    pass


def cut(folder):
    """A fit whose second checkpoint is the last, as the first rank alone knows."""
    real, calls = store.write, []

    def write(*args):
        real(*args)
        calls.append(1)
        if len(calls) == 2:
            raise PowerCut("no power")

    with patched(store, "write", write):
        return said(lambda: vae(checkpoint=folder, every=5))


def few():
    """As many iterations on all ranks, whatever they find."""
    return pg.Mixture(Array((2,)), 3).fit(ROWS, seed=1, restarts=1, max_iter=3, tol=0.0)


def failing(folder):
    """What goes wrong on one rank, and what both say."""
    with at_call(4, lambda loss: loss * np.nan):
        yield "nan", said(vae)
    with at_call(4, out_of_memory):
        try:
            yield "exception", said(vae)
        except MemoryError as problem:
            yield "exception", f"MemoryError: {problem}"
    yield "rows", said(lambda: pg.VAE(Array((2,)), 2, (4,)).fit(ROWS + RANK, seed=5, steps=5))
    yield "rows of a mixture", said(lambda: mixture(ROWS[RANK:]))
    whole = np.concatenate(SEQUENCES)
    yield "sequences", said(lambda: hmm(x=[whole[: 80 + RANK], whole[80 + RANK :]]))
    yield "model", said(lambda: pg.VAE(Array((2,)), 2 + RANK, (4,)).fit(ROWS, seed=5, steps=5))
    yield "cut", cut(folder)
    with patched(ranks.Ranks, "averaged", lambda self, slope, *_: slope()):
        yield "gradients kept apart", said(flow)
    with patched(ranks.Ranks, "sums", lambda self, parts: list(parts)):
        yield "statistics kept apart", said(few)


def weighted_alike(self, slope, parameters, weight, step, real=ranks.Ranks.averaged):
    return real(self, slope, parameters, 0.5 if weight else 0.0, step)


def all_scenarios(folder):
    """Everything that one start of two processes shows."""
    found = {}
    for name, (_, fit) in ALIKE.items():
        model = fit()
        found[name] = {"state": numbers(model), "notes": list(getattr(getattr(model, "report", None), "notes", ()))}
    with patched(ranks.Ranks, "averaged", weighted_alike):
        found["planted"] = {"state": numbers(duel()[0])}
    found["failures"] = dict(failing(folder / "cut"))
    for name, fit in {
        "unseeded": partial(vae, seed=None),
        "unseeded, nothing to share": copied,
        "unbroken": vae,
        "resumed": partial(vae, checkpoint=folder / "cut", every=5, resume=True),
        "gan": lambda: pg.GAN(Array((2,)), 2, (4,)).fit(ROWS, seed=1, steps=5),
        "budget": partial(vae, steps=None, budget=0.3),
        "early": partial(vae, learning_rate=0.5, steps=400, patience=3, warming=0.0),
    }.items():
        model = fit()
        found[name] = {"state": numbers(model), "steps": model.report.steps, "stopped": model.report.stopped}
        found[name]["seed"] = model.report.seed
    with patched(models, "joined", lambda: ranks.ALONE):
        found["planted seeds"] = {"state": numbers(copied())}
    with at_call(4, interrupt):
        model = vae()
    found["interrupted"] = {"state": numbers(model), "steps": model.report.steps, "stopped": model.report.stopped}
    with training.alone():
        found["alone"] = {"state": numbers(vae(seed=RANK)), "report": vae(seed=5).report.notes}
    vae(progress=True)
    return {**found, "silent": silent()}


def silent():
    """One rank does not answer for longer than the other waits."""
    asleep = at_call(3, lambda loss: time.sleep(8) or loss)
    with patched(ranks, "TIMEOUT", timedelta(seconds=4)), patched(ranks, "_groups", []), asleep:
        began = time.monotonic()
        return {"said": said(vae), "seconds": time.monotonic() - began}


def dying(folder):
    """One rank is killed."""
    with at_call(3, lambda loss: os.kill(os.getpid(), signal.SIGKILL)):
        vae()


def torchrun(scenario, folder):
    """The script in two processes: exit status, errors, seconds, and what each rank wrote."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    began = time.monotonic()
    done = subprocess.run(
        [*command, __file__, scenario, str(folder)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    answers = [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]
    return done.returncode, done.stderr, time.monotonic() - began, answers


if __name__ == "__main__":
    place = Path(sys.argv[2])
    answer = {"all": all_scenarios, "dying": dying}[sys.argv[1]](place)
    (place / f"rank{RANK}.json").write_text(json.dumps(answer))


needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch without gloo"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def both(folder):
    """What each rank found."""
    status, errors, _, answers = torchrun("all", folder)
    assert status == 0, errors
    return answers, errors


def distance(a, b):
    """The largest difference of two states, relative to numbers above 1."""
    if {name: len(v) for name, v in a.items()} != {name: len(v) for name, v in b.items()}:
        return np.inf
    flat = [np.concatenate([np.asarray(v) for v in state.values()]) for state in (a, b)]
    same = (flat[0] == flat[1]) | (np.isnan(flat[0]) & np.isnan(flat[1]))
    gaps = np.abs(flat[0][~same] - flat[1][~same]) / np.maximum(1, np.abs(flat[1][~same]))
    return gaps.max(initial=0.0)


@needs_gloo
@pytest.mark.parametrize("name", ALIKE)
def test_two_ranks_end_where_one_process_does(both, name):
    tolerance, fit = ALIKE[name]
    assert distance(both[0][0][name]["state"], numbers(fit())) <= tolerance


@needs_gloo
def test_a_planted_wrong_weight_of_uneven_shares_is_seen(both):
    assert distance(both[0][0]["planted"]["state"], numbers(duel()[0])) > 1e-5


@needs_gloo
def test_ranks_end_with_the_same_bits_whatever_was_fitted(both):
    (first, second), _ = both
    others = ("unseeded", "unseeded, nothing to share", "unbroken", "resumed", "gan", "budget", "early", "interrupted")
    for name in (*ALIKE, *others):
        assert first[name] == second[name], name
    for name in ("alone", "planted seeds"):
        assert first[name]["state"] != second[name]["state"]  # the same look would see it


@needs_gloo
def test_the_report_says_what_was_shared_and_what_every_rank_did(both):
    for name, note in (SHARED | WHOLE).items():
        assert both[0][0][name]["notes"] == [note]
    assert both[0][0]["flow"]["notes"] == ["2 ranks shared 33 rows of each batch"]
    assert both[0][0]["alone"]["report"] == []


@needs_gloo
def test_a_fit_without_a_seed_takes_the_first_ranks(both):
    assert both[0][0]["unseeded"]["seed"] == both[0][1]["unseeded"]["seed"]


@needs_gloo
def test_a_loss_that_is_no_number_on_one_rank_ends_the_fit_on_both(both):
    first, second = (answer["failures"]["nan"] for answer in both[0])
    assert first == second
    assert first.startswith("FitError: The objective or its gradient became nan at step 3")


@needs_gloo
def test_an_error_on_one_rank_is_raised_there_and_told_to_the_other(both):
    first, second = (answer["failures"]["exception"] for answer in both[0])
    assert second == "MemoryError: no more memory"
    assert first.startswith("FitError: Rank 1 stopped with MemoryError: no more memory")


@needs_gloo
@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("rows", "DataError: Ranks [1] were given other rows than rank 0"),
        ("rows of a mixture", "DataError: Ranks [1] were given other rows than rank 0"),
        ("sequences", "DataError: Ranks [1] were given other rows than rank 0"),
        ("model", "ParameterError: Ranks [1] were given other models than rank 0"),
        ("gradients kept apart", "FitError: The parameters of ranks [1] are not those of rank 0 after step"),
        ("statistics kept apart", "FitError: The parameters of ranks [1] are not those of rank 0 after step"),
    ],
)
def test_ranks_that_differ_are_refused_on_all_of_them(both, case, text):
    for answer in both[0]:
        assert answer["failures"][case].startswith(text)


@needs_gloo
def test_a_checkpoint_that_fails_on_the_first_rank_stops_both_and_is_resumed_to_the_same_bits(both):
    (first, second), _ = both
    assert first["failures"]["cut"].startswith("PowerCut")
    assert second["failures"]["cut"].startswith("FitError: Rank 0 stopped with PowerCut: no power")
    assert first["resumed"] == first["unbroken"]


@needs_gloo
def test_a_checkpoint_of_two_ranks_is_not_resumed_by_one(both, folder):
    with pytest.raises(StoreError, match="made by 2 ranks, this run has 1"):
        vae(checkpoint=folder / "cut", every=5, resume=True)


@needs_gloo
def test_ctrl_c_on_one_rank_stops_both_at_the_same_step(both):
    for answer in both[0]:
        assert answer["interrupted"]["stopped"] == "interrupted"
        assert answer["interrupted"]["steps"] == 3


@needs_gloo
def test_budgets_and_early_stopping_are_agreed(both):
    (first, second), _ = both
    assert first["budget"]["steps"] == second["budget"]["steps"] >= 1
    assert first["early"]["stopped"] == second["early"]["stopped"] == "early stopping"
    assert first["early"]["steps"] == second["early"]["steps"] < 400


@needs_gloo
def test_only_the_first_rank_shows_progress(both):
    assert both[1].count("items/s") == 1


@needs_gloo
def test_a_rank_that_falls_silent_ends_the_fit_on_both(both):
    first, second = (answer["silent"] for answer in both[0])
    assert first["said"].startswith("FitError: Rank 0 of 2 lost the others")
    assert second["said"].startswith("FitError: Rank 1 of 2 lost the others")
    assert 4 <= first["seconds"] < 30


@needs_gloo
@pytest.mark.long
def test_a_rank_that_dies_ends_the_other(tmp_path):
    status, errors, seconds, answers = torchrun("dying", tmp_path)
    assert status != 0
    assert "SIGKILL" in errors
    assert answers == []
    assert seconds < 50


# Without a second process


def test_an_environment_that_names_no_ranks_is_refused(monkeypatch):
    for name, value in {"RANK": "first", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ParameterError, match="'RANK': 'first'"):
        vae()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert vae(steps=1).report.steps == 1


def test_ranks_that_never_come_are_an_error(monkeypatch):
    monkeypatch.setattr(ranks, "TIMEOUT", timedelta(seconds=1))
    port = str(20000 + os.getpid() % 20000)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FitError, match="Rank 1 of 2 could not join"):
        vae()


def test_shares_of_rows_cover_them_once():
    for n in range(12):
        for size in range(1, 6):
            parts = [list(range(n))[ranks.Ranks(rank, size).part(n)] for rank in range(size)]
            assert [row for part in parts for row in part] == list(range(n))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_each_step_and_rank_has_noise_of_its_own():
    drawn = {
        tuple(torch.randn(3, generator=ranks.keyed(9, step, rank)).tolist()) for step in range(20) for rank in (0, 1)
    }
    assert len(drawn) == 40
    model = Duel()
    run = partial(loop._Run, model, [Player(Moving(model), [model.rare])], 10, plan=Schedule(steps=1))
    first, second = (
        run(generator=torch.Generator().manual_seed(1), ranks=ranks.Ranks(rank, 2))._noise(0) for rank in (0, 1)
    )
    assert first.initial_seed() != second.initial_seed()


def test_a_loss_that_needs_whole_batches_gets_them_with_the_same_noise_on_each_rank():
    model = Duel()
    player = Player(Moving(model), [model.rare], whole=True)
    runs = [
        loop._Run(model, [player], 10, torch.Generator().manual_seed(1), Schedule(steps=1), ranks.Ranks(rank, 2))
        for rank in (0, 1)
    ]
    rows = torch.arange(7)
    assert all(torch.equal(run._mine(rows), rows) for run in runs)
    assert all(run._noise(0) is run.generator for run in runs)

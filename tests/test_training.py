"""The training loop: resume is bit for bit, Ctrl-C keeps the best, budgets become steps, nothing outside is touched."""

import json
import math
import random
import re
import threading
import warnings
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pyro
import pytest
import torch
from torch import nn

import probgen as pg
from probgen import store, training
from probgen.errors import FitError, ParameterError, StoreError
from probgen.events import Array
from probgen.models import gan
from probgen.models.vae import learning
from probgen.training import Player, Progress, Schedule, loop, train

ROWS = np.random.default_rng(3).normal(size=(64, 2)) * [1.0, 3.0]
STEPS = 24


def new(family, latent=2):
    return pg.VAE(Array((2,)), latent, (4,)) if family == "vae" else pg.GAN(Array((2,)), latent, (4,))


RUNS = {
    "vae": ("vae", {"patience": 0}),
    "vae, average": ("vae", {"ema": 0.9, "patience": 0}),
    "vae, nothing held out": ("vae", {"validation": 0.0, "weight_decay": 0.5}),
    "vae, nothing held out, average": ("vae", {"validation": 0.0, "ema": 0.5}),
    "vae, patience": ("vae", {"learning_rate": 0.3, "patience": 5}),
    "gan": ("gan", {}),
    "gan, no average": ("gan", {"ema": 0.0}),
}
COMMON = {"steps": STEPS, "batch_size": 16}


def fit(run, seed=5, **more):
    family, options = RUNS[run]
    return new(family).fit(ROWS, seed=seed, **{**COMMON, **options, **more})


unbroken = cache(fit)


def interrupted(run, **more):
    """A fit that Ctrl-C hits: it must return."""
    try:
        return fit(run, **more)
    except KeyboardInterrupt:
        pytest.fail("Ctrl-C left the fit")


def bits(model):
    return {name: t.numpy().tobytes() for name, t in model.state_dict().items()}


def facts(model):
    """The report but its wall time."""
    return {k: v for k, v in vars(model.report).items() if k != "seconds"}


class PowerCut(Exception):
    pass


def cut(run, folder, after, written=True, problem=PowerCut, **more):
    """A fit whose k-th checkpoint is the last: it dies there, before or after writing it."""
    real, calls = store.write, []

    def write(*args):
        calls.append(1)
        if len(calls) == after and not written:
            raise problem
        real(*args)
        if len(calls) == after:
            raise problem

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "write", write)
        with suppress(problem):
            fit(run, checkpoint=folder, **more)
    assert len(calls) == after


@pytest.fixture
def seen(monkeypatch):
    """Every evaluated state with its held-out score (or its turn), kept apart from the loop's own book."""
    states = []
    real = training._Run.evaluate

    def evaluate(run, data):
        state = {k: v.clone() for k, v in (run.average or run.model.state_dict()).items()}
        go_on = real(run, data)
        states.append((run.validation[-1] if run.validation else len(states), state))
        return go_on

    monkeypatch.setattr(training._Run, "evaluate", evaluate)
    return states


def best(states):
    return {k: v.numpy().tobytes() for k, v in max(states, key=lambda pair: pair[0])[1].items()}


def at_call(monkeypatch, loss, k, act):
    """Puts ``act(value)`` in place of a loss's value at its k-th training call."""
    calls, real = [], loss.forward

    def forward(self, x, generator, share):
        value = real(self, x, generator, share)
        if not torch.is_grad_enabled():
            return value
        calls.append(1)
        return act(value) if len(calls) == k else value

    monkeypatch.setattr(loss, "forward", forward)


def interrupt(value):
    raise KeyboardInterrupt


def left_behind(before):
    """Threads that outlive a fit; the terminal's own one needs a moment to end."""
    for thread in set(threading.enumerate()) - before:
        thread.join(2)
    return set(threading.enumerate()) - before


# Resume


@pytest.mark.parametrize("after", [1, 2, 5])
@pytest.mark.parametrize("run", RUNS)
def test_a_resumed_run_ends_with_the_same_bits_as_an_unbroken_one(run, after, tmp_path):
    every = 1 if "patience" in run else 3
    cut(run, tmp_path, after, every=every)
    again = fit(run, checkpoint=tmp_path, every=every, resume=True)
    assert bits(again) == bits(unbroken(run))
    assert again.report.validation == unbroken(run).report.validation
    assert (again.report.steps, again.report.stopped) == (unbroken(run).report.steps, unbroken(run).report.stopped)


@pytest.mark.parametrize("run", RUNS)
def test_a_resumed_run_reports_the_same_history(run, tmp_path):
    cut(run, tmp_path, 3, every=2)
    assert facts(fit(run, checkpoint=tmp_path, every=2, resume=True)) == facts(unbroken(run))


@pytest.mark.parametrize("run", ["vae, average", "gan"])
def test_checkpoints_leave_no_trace_in_the_result(run, tmp_path):
    checked = fit(run, checkpoint=tmp_path, every=1)
    assert bits(checked) == bits(unbroken(run))
    assert facts(checked) == facts(unbroken(run))


@pytest.mark.parametrize("run", ["vae, average", "gan"])
def test_a_run_broken_again_and_again_ends_with_the_same_bits(run, tmp_path):
    cut(run, tmp_path, 1, every=2)
    for _ in range(4):
        cut(run, tmp_path, 2, every=2, resume=True)
    assert bits(fit(run, checkpoint=tmp_path, every=2, resume=True)) == bits(unbroken(run))


@pytest.mark.parametrize("problem", [KeyboardInterrupt, PowerCut])
@pytest.mark.parametrize("run", ["vae", "gan"])
def test_a_run_that_dies_before_its_checkpoint_is_written_resumes_from_the_one_before(run, problem, tmp_path):
    cut(run, tmp_path, 4, every=3, written=False, problem=problem)
    assert store.read(tmp_path)[0]["step"] == 9
    assert bits(fit(run, checkpoint=tmp_path, every=3, resume=True)) == bits(unbroken(run))


def test_a_finished_run_resumes_to_itself(tmp_path):
    fit("vae", checkpoint=tmp_path, every=7)
    again = fit("vae", checkpoint=tmp_path, every=7, resume=True)
    assert bits(again) == bits(unbroken("vae"))
    assert again.report.steps == STEPS


def test_resume_needs_no_seed_and_reports_the_first_one(tmp_path):
    cut("vae", tmp_path, 2, every=3)
    for seed in (None, 99):
        again = fit("vae", seed=seed, checkpoint=tmp_path, every=99, resume=True)
        assert bits(again) == bits(unbroken("vae"))
        assert again.report.seed == 5


def test_a_resumed_run_scores_and_samples_the_same(tmp_path):
    cut("vae", tmp_path, 2, every=3)
    again = fit("vae", checkpoint=tmp_path, every=3, resume=True)
    assert again.sample(5, seed=1).tobytes() == unbroken("vae").sample(5, seed=1).tobytes()
    by = pg.IWAE(samples=8)
    assert np.array_equal(again.log_prob(ROWS, by=by, seed=1).nats, unbroken("vae").log_prob(ROWS, by=by, seed=1).nats)


def refused(folder, rows=ROWS, family="vae", latent=2, **more):
    """A resume that must be refused, by a fitted model that must stay as it was."""
    model = new(family, latent).fit(ROWS, seed=8, steps=3)
    before, options = bits(model), {**COMMON, **RUNS[family][1], **more}
    with pytest.raises(StoreError) as caught:
        model.fit(rows, seed=5, checkpoint=folder, resume=True, **options)
    assert bits(model) == before
    return str(caught.value)


@pytest.fixture
def broken(tmp_path):
    cut("vae", tmp_path / "run", 2, every=3)
    return tmp_path / "run"


def test_a_checkpoint_that_fits_is_not_refused(broken):
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        refused(broken)


@pytest.mark.parametrize(
    "rows",
    [ROWS[::-1], ROWS[:-1], np.vstack([ROWS, ROWS[:1]]), ROWS + 1e-9, ROWS[:, ::-1], ROWS * [1, -1]],
    ids=["reversed", "one less", "one more", "moved", "columns swapped", "mirrored"],
)
def test_other_data_are_refused(broken, rows):
    assert "other data" in refused(broken, np.ascontiguousarray(rows))


@pytest.mark.parametrize(
    "other",
    [
        {"steps": STEPS + 1}, {"batch_size": 15}, {"learning_rate": 5e-3}, {"validation": 0.2}, {"weight_decay": 0.0},
        {"patience": 3}, {"ema": 0.5}, {"budget": 1.0}, {"steps": None, "budget": 0.1},
    ],
)  # fmt: skip
def test_other_options_are_refused(broken, other):
    assert "same options" in refused(broken, **other)


def test_a_model_of_another_size_or_family_is_refused(broken):
    refused(broken, latent=3)
    refused(broken, family="gan")


def test_a_checkpoint_of_the_same_options_from_another_family_is_refused(tmp_path):
    run = Schedule(steps=8, batch_size=16)
    data, generator = torch.tensor(ROWS, dtype=torch.float32), torch.Generator().manual_seed(0)
    toy, other = Toy(), nn.Linear(2, 2)
    train(toy, [Player(toy.pull, [toy.w])], data, replace(run, checkpoint=tmp_path, every=4), generator=generator)
    with pytest.raises(StoreError):
        train(
            other,
            [Player(toy.pull, [toy.w])],
            data,
            replace(run, checkpoint=tmp_path, resume=True),
            generator=generator,
        )


def test_another_folder_is_refused(broken, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("missing", "empty", "file"):
        refused(tmp_path / name)
    store.save(unbroken("vae"), tmp_path / "model")
    assert "model" in refused(tmp_path / "model")


@pytest.mark.parametrize("which", ["card", "tensors"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_refused(broken, which, how):
    path = broken / "card.json"
    path = path if which == "card" else broken / json.loads(path.read_text())["tensors"]
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(data if how == "flip" else data[: len(data) // 2])
    if how == "remove":
        path.unlink()
    refused(broken)


@pytest.mark.parametrize(
    "lack", ["of.generator", "of.order", "of.held", "adam.0.0.exp_avg", "now.features.centre", "best.cells.start"]
)
def test_a_checkpoint_that_lacks_a_tensor_is_refused(broken, lack):
    about, tensors = store.read(broken)
    del tensors[lack]
    store.write(broken, tensors, about)
    refused(broken)


@pytest.mark.parametrize("lack", ["step", "plan", "data", "validation"])
def test_a_checkpoint_that_lacks_a_fact_is_refused(broken, lack):
    about, tensors = store.read(broken)
    del about[lack]
    store.write(broken, tensors, about)
    refused(broken)


def test_a_checkpoint_is_no_model(broken):
    with pytest.raises(StoreError):
        store.load(broken)


def test_training_does_not_write_its_checkpoint_over_a_saved_model(tmp_path):
    store.save(unbroken("vae"), tmp_path)
    with suppress(StoreError, ParameterError):
        fit("vae", checkpoint=tmp_path, every=5)
    assert bits(store.load(tmp_path)) == bits(unbroken("vae"))


def test_a_checkpoint_folder_that_can_not_be_written_is_refused_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    steps = []
    real = training._Run.take_step
    monkeypatch.setattr(training._Run, "take_step", lambda *args: steps.append(1) or real(*args))
    with pytest.raises(StoreError):
        fit("vae", checkpoint=tmp_path / "file" / "run", every=20)
    assert steps == []


def test_a_checkpoint_that_can_not_be_written_leaves_the_best_state(seen, monkeypatch, tmp_path):
    calls, real = [], store.write

    def write(*args):
        calls.append(1)
        if len(calls) == 3:
            raise StoreError("The disk is full")
        return real(*args)

    monkeypatch.setattr(store, "write", write)
    model = new("vae")
    with pytest.raises(StoreError, match="full"):
        model.fit(ROWS, seed=5, checkpoint=tmp_path, every=5, learning_rate=0.3, patience=0, **COMMON)
    assert bits(model) == best(seen)


# Ctrl-C


@pytest.mark.parametrize("k", [2, 7, STEPS])
@pytest.mark.parametrize("run", RUNS)
def test_ctrl_c_in_a_step_returns_the_best_state(run, k, seen, monkeypatch):
    player = learning.NegativeELBO if RUNS[run][0] == "vae" else gan._Discriminate
    at_call(monkeypatch, player, k, interrupt)
    model = interrupted(run, **({"patience": 0} if "patience" in run else {}))
    assert model.report.stopped == "interrupted"
    assert model.report.steps == k - 1
    assert bits(model) == best(seen)
    assert not model.training
    assert model.sample(3, seed=0).shape == (3, 2)


@pytest.mark.parametrize("run", ["vae, nothing held out, average", "gan"])
def test_ctrl_c_between_two_evaluations_returns_the_last_evaluated_state(run, seen, monkeypatch):
    player = learning.NegativeELBO if RUNS[run][0] == "vae" else gan._Discriminate
    at_call(monkeypatch, player, 9, interrupt)  # of 200 steps the 1st, 5th and 10th are evaluated
    model = interrupted(run, steps=200)
    assert len(seen) == 2
    assert bits(model) == best(seen)


def test_ctrl_c_in_the_first_step_returns_a_model_that_scores(monkeypatch):
    at_call(monkeypatch, learning.NegativeELBO, 1, interrupt)
    model = interrupted("vae")
    assert (model.report.stopped, model.report.steps, model.report.objective) == ("interrupted", 0, ())
    assert np.isfinite(model.log_prob(ROWS[:3], by=pg.ELBO(), seed=0).nats).all()


def test_ctrl_c_between_the_players_of_a_gan_returns_the_best_state(seen, monkeypatch):
    at_call(monkeypatch, gan._Generate, 6, interrupt)
    assert interrupted("gan").report.stopped == "interrupted"
    assert len(seen) == 5


@pytest.mark.parametrize("run", ["vae", "vae, average"])
def test_ctrl_c_while_the_held_out_rows_are_scored_returns_the_best_state(run, seen, monkeypatch):
    real, calls = learning.NegativeELBO.forward, []

    def forward(self, x, generator, share):
        calls.extend([] if torch.is_grad_enabled() else [1])
        return interrupt(x) if len(calls) == 4 else real(self, x, generator, share)

    monkeypatch.setattr(learning.NegativeELBO, "forward", forward)
    model = interrupted(run)
    assert model.report.stopped == "interrupted"
    assert bits(model) == best(seen)


def test_ctrl_c_in_a_checkpoint_returns_the_best_state(seen, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "write", interrupt_write)
    model = interrupted("vae", checkpoint=tmp_path, every=6)
    assert (model.report.stopped, model.report.steps) == ("interrupted", 6)
    assert bits(model) == best(seen)


def interrupt_write(*args):
    raise KeyboardInterrupt


@pytest.mark.parametrize("k", [1, 4])
def test_ctrl_c_in_the_pilot_returns_a_model_that_scores(k, monkeypatch):
    at_call(monkeypatch, learning.NegativeELBO, k, interrupt)
    model = interrupted("vae", steps=None, budget=0.5)
    assert model.report.stopped == "interrupted"
    assert np.isfinite(model.log_prob(ROWS[:3], by=pg.ELBO(), seed=0).nats).all()


# Failures


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("run", ["vae", "vae, average", "vae, nothing held out", "gan"])
def test_an_objective_that_is_not_finite_names_the_step_and_keeps_the_best_state(run, value, seen, monkeypatch):
    player = learning.NegativeELBO if RUNS[run][0] == "vae" else gan._Discriminate
    at_call(monkeypatch, player, 9, lambda loss: loss * 0 + value)
    model = new(RUNS[run][0])
    with pytest.raises(FitError, match="at step 8") as caught:
        model.fit(ROWS, seed=5, **{**COMMON, **RUNS[run][1], "steps": 200})
    assert caught.value.step == 8
    assert bits(model) == best(seen)


def test_a_generator_loss_that_is_not_finite_is_found_too(seen, monkeypatch):
    at_call(monkeypatch, gan._Generate, 4, lambda loss: loss * math.nan)
    with pytest.raises(FitError, match="at step 3"):
        fit("gan")


@pytest.mark.parametrize("k", [1, 5, STEPS])
@pytest.mark.parametrize("run", ["vae", "vae, average", "vae, nothing held out", "gan"])
def test_a_gradient_that_is_not_finite_never_reaches_the_model(run, k, monkeypatch):
    player = learning.NegativeELBO if RUNS[run][0] == "vae" else gan._Discriminate
    at_call(monkeypatch, player, k, lambda loss: loss + (loss * 0).sqrt())  # worth 0, with slope 0 * inf
    model = new(RUNS[run][0])
    with suppress(FitError):
        model.fit(ROWS, seed=5, **{**COMMON, **RUNS[run][1]})
    assert all(t.isfinite().all() for t in model.state_dict().values())


def test_a_fit_error_leaves_no_gradients_and_no_terminal_bar(monkeypatch):
    at_call(monkeypatch, learning.NegativeELBO, 3, lambda loss: loss * math.nan)
    model, threads = new("vae"), set(threading.enumerate())
    with pytest.raises(FitError):
        model.fit(ROWS, seed=5, progress=True, **COMMON)
    assert not left_behind(threads)
    assert all(p.grad is None for p in model.parameters())


# Budgets


@pytest.mark.parametrize("run", ["vae", "vae, average", "gan"])
def test_a_budget_becomes_steps_once_and_the_pilot_leaves_no_trace(run, monkeypatch):
    pilots, real = [], training._Run.pilot
    monkeypatch.setattr(training._Run, "pilot", lambda *args: pilots.append(real(*args)) or pilots[-1])
    timed = fit(run, steps=None, budget=0.15)
    (note,) = timed.report.notes
    steps = int(re.search(r"budget 0\.15 s = (\d+) steps", note)[1])
    assert pilots == [steps]
    assert timed.report.steps == steps
    counted = fit(run, steps=steps)
    assert bits(timed) == bits(counted)
    assert facts(timed) | {"notes": ()} == facts(counted)


def test_a_resumed_budget_keeps_its_number_of_steps(tmp_path, monkeypatch):
    options = {"steps": None, "budget": 0.1, "every": 5}
    cut("vae", tmp_path, 1, **options)
    steps = store.read(tmp_path)[0]["steps"]
    monkeypatch.setattr(training._Run, "pilot", lambda *args: pytest.fail("a second pilot"))
    resumed = fit("vae", checkpoint=tmp_path, resume=True, **options)
    assert resumed.report.steps == steps
    assert f"{steps} steps" in resumed.report.notes[0]
    assert bits(resumed) == bits(fit("vae", steps=steps))


@pytest.mark.parametrize("budget", [1.0, 4.0, 8.0])
@pytest.mark.parametrize(("step", "look"), [(0.1, 0.01), (0.02, 0.2), (0.05, 0.05), (0.3, 0.3)])
def test_a_budget_holds_the_pilot_and_the_evaluations_too(step, look, budget, monkeypatch):
    clock = [0.0]  # it moves by what is done alone

    def costing(real, cost):
        def timed(self, *args):
            clock[0] += cost
            return real(self, *args)

        return timed

    monkeypatch.setattr(training._Run, "take_step", costing(training._Run.take_step, step))
    monkeypatch.setattr(training._Run, "evaluate", costing(training._Run.evaluate, look))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    new("vae").fit(ROWS, seed=5, budget=budget, patience=0)
    undone = 2 * step + look  # is the least that a pilot takes
    assert clock[0] <= max(1.02 * budget, undone + step + look)
    assert clock[0] >= 0.6 * budget


def test_a_tiny_budget_still_takes_a_step():
    assert fit("vae", steps=None, budget=1e-6).report.steps == 1


def test_a_larger_budget_takes_more_steps():
    small, large = (fit("vae", steps=None, budget=b).report.steps for b in (0.02, 0.4))
    assert large > 3 * small


# Seeds and what lies outside


@pytest.mark.parametrize("run", ["vae", "vae, average", "gan"])
def test_the_same_seed_gives_the_same_bits_and_another_other_ones(run):
    assert bits(fit(run)) == bits(unbroken(run))
    assert facts(fit(run)) == facts(unbroken(run))
    assert bits(fit(run, seed=6)) != bits(unbroken(run))


def test_a_seed_from_the_system_is_recorded_and_gives_the_same_bits_again():
    models = [fit("vae", seed=None, steps=2) for _ in range(20)]
    assert len({model.report.seed for model in models}) == 20
    for model in models:
        assert bits(fit("vae", seed=model.report.seed, steps=2)) == bits(model)


def test_a_second_fit_of_a_model_forgets_the_first():
    model = new("vae").fit(ROWS * 100, seed=1, steps=30)
    assert bits(model.fit(ROWS, seed=5, **COMMON)) == bits(unbroken("vae"))


@pytest.mark.parametrize("run", ["vae", "gan"])
def test_what_lies_outside_does_not_change_the_bits(run):
    torch.manual_seed(123)
    torch.set_default_dtype(torch.float64)
    try:
        assert bits(fit(run)) == bits(unbroken(run))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("run", ["vae", "gan"])
def test_a_fit_inside_no_grad_gives_the_same_bits(run):
    with torch.no_grad():
        assert bits(fit(run)) == bits(unbroken(run))


def outside():
    """All the process-wide state that a fit could touch."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002
        "random": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "params": sorted(pyro.get_param_store().keys()),
        "validation": (torch.distributions.Distribution._validate_args, pyro.settings.get()),
        "handlers": len(pyro.poutine.runtime._PYRO_STACK),
        "filters": list(warnings.filters),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "determinism": (torch.are_deterministic_algorithms_enabled(), torch.backends.mkldnn.enabled),
        "errors": np.geterr(),
    }


def use_vae(tmp_path):
    model = fit("vae, average", checkpoint=tmp_path, every=4)
    model.sample(3)
    model.log_prob(ROWS[:4])
    model.log_prob(ROWS[:4], by=pg.IWAE(samples=4))


def use_gan(tmp_path):
    fit("gan", steps=None, budget=0.05).sample(3)


def use_mixture(tmp_path):
    model = pg.Mixture(Array((2,)), 2).fit(ROWS, restarts=2, max_iter=3)
    model.sample(3)
    model.log_prob(ROWS)


def use_interruption(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, learning.NegativeELBO, 3, interrupt)
        fit("vae")


def use_failure(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, learning.NegativeELBO, 3, lambda loss: loss * math.nan)
        with pytest.raises(FitError):
            fit("vae")


@pytest.mark.parametrize("use", [use_vae, use_gan, use_mixture, use_interruption, use_failure])
def test_nothing_outside_the_model_is_touched(use, tmp_path):
    use(tmp_path)  # first-time imports
    pyro.get_param_store()["mine"] = torch.ones(2)
    try:
        before = outside()
        use(tmp_path / "again")
        assert outside() == before
        assert pyro.param("mine").tolist() == [1, 1]
    finally:
        pyro.get_param_store().clear()


# Options


BAD = {
    "steps": [0, -1, 1.5, math.nan, math.inf, "10"],
    "budget": [0, -1.0, math.nan, math.inf],
    "batch_size": [0, -1, 2.5, math.nan],
    "learning_rate": [-1e-3, math.nan, math.inf],
    "weight_decay": [-1.0, math.nan],
    "validation": [1, -0.1, 1.5, math.nan],
    "ema": [1, -0.1, math.nan],
    "patience": [-1],
    "every": [0, -1],
}
CASES = [(name, value) for name, values in BAD.items() for value in values]


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_bad_option_is_refused_by_name(name, value, tmp_path):
    with pytest.raises(ParameterError, match=name):
        new("vae").fit(ROWS, seed=0, **{**COMMON, "steps": 2, "checkpoint": tmp_path, name: value})


@pytest.mark.parametrize("name", ["warmup", "clip", "evaluations"])
def test_a_bad_schedule_is_refused_by_name(name):
    with pytest.raises(ParameterError, match=name):
        Schedule(steps=5, **{name: -1})


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_an_unknown_option_names_the_nearest_one(family):
    with pytest.raises(ParameterError, match="Did you mean 'batch_size'"):
        new(family).fit(ROWS, batchsize=3)


@pytest.mark.parametrize("family", ["vae", "gan"])
@pytest.mark.parametrize("bad", [{"steps": 0}, {"batch_size": 0}, {"ema": 1}, {"resume": True}, {"batchsize": 1}])
def test_a_refused_option_leaves_a_fitted_model_as_it_was(family, bad):
    model = new(family).fit(ROWS, seed=5, **COMMON)
    before, report = bits(model), model.report
    with pytest.raises(ParameterError):
        model.fit(ROWS * 2, seed=6, **{**COMMON, **bad})
    assert bits(model) == before
    assert model.report == report
    assert not model.training


def test_resume_without_a_checkpoint_is_refused():
    with pytest.raises(ParameterError, match="resume=True without a checkpoint"):
        fit("vae", resume=True)


# A toy whose losses are known


class Toy(nn.Module):
    """One parameter pulled towards the rows; held-out scores follow a script."""

    def __init__(self, slope=1.0, script=()):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
        self.pull = Pull(self)
        self.slope, self.script = slope, list(script)
        self.trained, self.scored, self.draws = [], [], []


class Pull(nn.Module):
    def __init__(self, toy):
        super().__init__()
        self.toy = [toy]  # in a list, so that the two modules do not hold each other

    def forward(self, x, generator, share):
        (toy,) = self.toy
        if torch.is_grad_enabled():
            toy.trained.append(x[:, 0].tolist())
            return ((toy.w - x.mean(0)) * torch.full((2,), toy.slope)).sum()
        toy.scored.append(x[:, 0].tolist())
        toy.draws.append(float(torch.rand((), generator=generator)))
        return torch.tensor(-toy.script[len(toy.scored) - 1] if toy.script else 0.0)


NUMBERED = torch.arange(60, dtype=torch.float32)[:, None].repeat(1, 2)


def play(toy, progress=False, optimiser=None, **plan):
    player = Player(toy.pull, [toy.w])
    if optimiser is not None:
        player.optimiser = optimiser([toy.w], lr=1.0)
    generator = torch.Generator().manual_seed(0)
    return train(toy, [player], NUMBERED, Schedule(**plan), generator=generator, progress=progress)


def test_held_out_rows_are_never_trained_on_and_an_epoch_takes_each_row_once():
    toy = Toy()
    play(toy, steps=18, batch_size=9, validation=0.1, evaluations=3)
    held = set(toy.scored[0])
    epochs = [[row for batch in toy.trained[i : i + 6] for row in batch] for i in (0, 6, 12)]
    assert len(held) == 6
    assert all(len(set(epoch)) == 54 and not set(epoch) & held for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert all(set(rows) == held for rows in toy.scored)
    assert len(set(toy.draws)) == 1  # the same draws each time
    assert len(toy.scored) == 4  # after the first step and three times


def test_early_stopping_stops_and_keeps_the_best_state():
    script = [1.0, 0.5, 2.0, 5.0, 4.0, 5.0, 3.0, 9.0, 9.0]
    toy = Toy(script=script)
    weights = []
    real = toy.pull.forward
    toy.pull.forward = lambda x, g, share: (weights.append(toy.w.detach().clone()), real(x, g, share))[1]
    report = play(toy, steps=9, evaluations=9, patience=3)
    assert report.stopped == "early stopping"
    assert report.validation == (1.0, 0.5, 2.0, 5.0, 4.0, 5.0, 3.0)
    assert report.steps == 7
    assert torch.equal(toy.w, weights[7])  # train and score in turn: the fourth score saw these
    assert not torch.equal(toy.w, weights[5])


def test_without_patience_nothing_stops_early_and_the_best_state_is_kept():
    toy, whole = Toy(script=[1.0, 9.0, 5.0, 4.0, 5.0, 3.0]), Toy(script=[1.0, 2.0])
    report = play(toy, steps=6, evaluations=6)
    play(whole, steps=2, evaluations=2, warmup=0)
    assert (report.stopped, report.steps, len(report.validation)) == ("steps", 6, 6)
    assert 0 < toy.w.abs().sum() < 6 * 1e-3 * 0.9 * 2  # that after 2 of the 6 steps


def test_a_vae_that_can_not_improve_stops_early():
    report = fit("vae", learning_rate=0.0, patience=3).report
    assert (report.stopped, len(set(report.validation))) == ("converged", 1)
    assert "gained nothing" in report.notes[-1]
    counted = [i for i in range(1, 41) if round(STEPS * i / 40) > 0.3 * STEPS]  # patience starts after the warm-up
    assert report.steps <= round(STEPS * (counted[0] + 3) / 40) + 1


@pytest.mark.parametrize(("steps", "warmup", "ramp"), [(2000, 100, 100), (2000, 0, 1), (50, 100, 5), (1, 100, 1)])
def test_the_learning_rate_warms_up_then_falls_to_a_hundredth(steps, warmup, ramp):
    plan = Schedule(steps=steps, warmup=warmup, learning_rate=0.5)
    rates = [plan.rate(step, steps) for step in range(steps)]
    assert rates[0] == pytest.approx(0.5 / ramp, rel=1e-3)
    assert all(b > a for a, b in pairwise(rates[:ramp]))
    assert all(b < a for a, b in pairwise(rates[ramp - 1 :]))
    assert plan.rate(steps, steps) == pytest.approx(0.005)
    assert max(rates) <= 0.5
    assert min(rates) > 0
    if steps > 1:
        assert plan.rate(steps // 2, steps) == pytest.approx(0.5 * 0.505, rel=0.01)


def test_the_optimiser_gets_the_schedules_rate_times_the_players():
    given = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            given.append((self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]))

    toy = Toy()
    player = Player(toy.pull, [toy.w], rate=3.0)
    player.optimiser = Watched([toy.w], lr=99.0)
    plan = Schedule(steps=20, learning_rate=0.1, weight_decay=0.25, warmup=4)
    train(toy, [player], NUMBERED, plan, generator=torch.Generator())
    assert given == [(3.0 * plan.rate(step, 20), 0.25) for step in range(20)]


@pytest.mark.parametrize(("clip", "moved"), [(10.0, 10.0), (1e-3, 1e-3), (0.0, 1e6 * math.sqrt(2))])
def test_a_huge_gradient_is_clipped_to_its_norm_unless_clip_is_zero(clip, moved):
    toy = Toy(slope=1e6)
    plan = {"learning_rate": 1.0, "validation": 0.0, "batch_size": 60}
    play(toy, optimiser=torch.optim.SGD, steps=1, clip=clip, **plan)
    assert float(toy.w.detach().norm()) == pytest.approx(moved, rel=1e-4)


def test_a_gradient_that_is_one_number_for_all_cells_is_clipped_too(monkeypatch):
    toy = Toy()
    monkeypatch.setattr(Pull, "forward", lambda pull, x, generator, share: 1e6 * toy.w.sum())  # its gradient is a view
    play(toy, optimiser=torch.optim.SGD, steps=1, clip=10.0, learning_rate=1.0, validation=0.0)
    assert float(toy.w.detach().norm()) == pytest.approx(10.0, rel=1e-4)


def test_a_small_gradient_is_not_clipped():
    toy = Toy(slope=1e-3)
    play(toy, optimiser=torch.optim.SGD, steps=1, clip=10.0, learning_rate=1.0, validation=0.0)
    assert float(toy.w.detach().norm()) == pytest.approx(1e-3 * math.sqrt(2), rel=1e-4)


def test_weight_decay_is_a_multiple_of_the_learning_rate():
    toy = Toy(slope=0.0)
    nn.init.ones_(toy.w)
    play(toy, steps=1, learning_rate=0.1, weight_decay=0.5, validation=0.0)
    assert toy.w.tolist() == pytest.approx([1 - 0.1 * 0.5] * 2)


@pytest.mark.parametrize("plan", [{"ema": 0.9}, {"ema": 0.9, "evaluations": 2}, {"evaluations": 2}])
def test_neither_the_average_nor_the_evaluations_disturb_the_descent(plan):
    paths = []
    for options in ({}, plan):
        toy, path = Toy(), []
        real = toy.pull.forward
        toy.pull.forward = lambda x, g, share, toy=toy, path=path, real=real: (
            path.extend([toy.w.tolist()] if torch.is_grad_enabled() else []),
            real(x, g, share),
        )[1]
        play(toy, steps=12, batch_size=9, learning_rate=0.1, **options)
        paths.append(path)
    assert paths[0] == paths[1]
    assert paths[0][0] != paths[0][-1]


def test_the_model_ends_with_the_moving_average():
    toy, path = Toy(), []
    real = toy.pull.forward
    toy.pull.forward = lambda x, g, share: (path.append(toy.w.detach().clone()), real(x, g, share))[1]
    play(toy, optimiser=torch.optim.SGD, steps=30, ema=0.6, learning_rate=0.1, validation=0.0)
    average = path[0]
    for step, w in enumerate(path[1:], 1):
        decay = min(0.6, step / (step + 10))
        average = decay * average + (1 - decay) * w
    assert (toy.w - average).abs().max() < (toy.w - path[-1]).abs().max()
    assert toy.w.tolist() == pytest.approx(average.tolist(), abs=0.05)


# Progress


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_progress_is_silent_when_not_a_terminal(family, capfd):
    new(family).fit(ROWS, seed=0, **COMMON)
    new(family).fit(ROWS, seed=0, progress=False, **COMMON)
    assert capfd.readouterr() == ("", "")


def test_progress_is_silent_on_a_terminal_when_told(capfd, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    fit("vae", progress=False)
    assert capfd.readouterr() == ("", "")


def test_progress_that_is_asked_for_prints_to_stderr_only(capfd):
    threads = set(threading.enumerate())
    fit("vae", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "VAE" in err
    assert "nats" in err
    assert "items/s" in err
    assert not left_behind(threads)


def test_progress_shows_by_itself_on_a_terminal(capfd, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    fit("vae")
    assert "VAE" in capfd.readouterr().err


def test_progress_does_not_change_the_bits():
    assert bits(fit("vae", progress=True)) == bits(unbroken("vae"))


def test_progress_counts_steps():
    with Progress("Work", 10, show=False) as bar:
        bar.advance(3, "a")
        bar.advance(2, "b")
        assert bar.done == 5
        bar.to(9)
        assert bar.done == 9

"""The one training loop: budgets turned into steps, checkpoints, resume, early stopping, one or many processes."""

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from probgen import store
from probgen.errors import FitError, StoreError
from probgen.events import row_hash
from probgen.model import FitReport
from probgen.ranks import ALONE, Ranks, joined, keyed
from probgen.training.progress import Progress
from probgen.training.schedule import Schedule

__all__ = ["Player", "of_kept_state", "train"]

_COLD = 3  # first steps, which are slower than those after them
_FACTS = ("step", "steps", "cursor", "probe", "objective", "validation", "recent", "waited")


@dataclass
class Player:
    """A loss and the parameters that descend it. Two players take turns in a GAN.

    Arguments:
        loss: A Module: loss(batch, generator, share) gives the mean loss, a scalar tensor; share of the steps done.
        parameters: What its optimiser owns.
        rate: Multiple of the schedule's learning rate.
        betas: Of Adam.
        whole: Whether the loss needs all rows of a batch together; each of several ranks then computes all of it.
    """

    loss: nn.Module
    parameters: Sequence[nn.Parameter]
    rate: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    whole: bool = False

    def __post_init__(self) -> None:
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-3, betas=self.betas, weight_decay=0.0, fused=True)


class _Run:
    """Everything that a checkpoint must hold: parameters, averages, optimisers, generator, cursor, history."""

    def __init__(
        self,
        model: nn.Module,
        players: Sequence[Player],
        n: int,
        generator: torch.Generator,
        plan: Schedule,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model, self.players, self.generator, self.plan, self.ranks = model, players, generator, plan, ranks
        self.shared = ranks.size > 1 and not any(player.whole for player in players)
        self.step, self.steps, self.cursor = 0, plan.steps or 0, 0
        self.order = torch.empty(0, dtype=torch.int64)
        shuffled = torch.randperm(n, generator=generator)
        held = int(n * plan.validation)
        self.held, self.rows = shuffled[:held], shuffled[held:]
        self.probe = int(torch.randint(2**62, (1,), generator=generator))
        self.objective: list[float] = []
        self.validation: list[float] = []
        self.recent: list[float] = []
        self.waited = 0
        self.average = self._weights() if plan.ema else {}
        self.best = self._weights()

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def batch(self) -> Tensor:
        """The next rows; a fresh order when they are spent."""
        size = min(self.plan.batch_size, len(self.rows))
        if self.cursor + size > len(self.order):
            self.order = self.rows[torch.randperm(len(self.rows), generator=self.generator)]
            self.cursor = 0
        self.cursor += size
        return self.order[self.cursor - size : self.cursor]

    def _mine(self, rows: Tensor) -> Tensor:
        """This rank's share of some rows."""
        return rows[self.ranks.part(len(rows))] if self.shared else rows

    def _noise(self, step: int) -> torch.Generator:
        """What a step's losses draw from: each rank of its own, where the rows are shared out."""
        return keyed(self.probe, step, self.ranks.rank) if self.shared else self.generator

    def take_step(self, data: Tensor) -> float:
        """One step of every player; the first one's loss."""
        rows, first = self.batch(), math.nan
        mine, noise = data[self._mine(rows)], self._noise(self.step)
        weight = len(mine) / len(rows) if self.shared else 1 / self.ranks.size
        rate = self.plan.rate(self.step, max(self.steps, self.step + 1))
        for i, player in enumerate(self.players):
            slope = partial(self._slope, player, mine, noise)
            value, gradients = self.ranks.averaged(slope, player.parameters, weight, self.step)
            if not math.isfinite(value):
                return value
            first = value if i == 0 else first
            for group in player.optimiser.param_groups:
                group.update(lr=rate * player.rate, weight_decay=self.plan.weight_decay)
            for parameter, gradient in zip(player.parameters, gradients, strict=True):
                parameter.grad = None if gradient is None else gradient.contiguous()
            if self.plan.clip and not math.isfinite(float(nn.utils.clip_grad_norm_(player.parameters, self.plan.clip))):
                return math.nan
            player.optimiser.step()
        for player in self.players:
            player.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self._move_average()
        return first

    def _slope(self, player: Player, batch: Tensor, noise: torch.Generator) -> tuple[float, Sequence[Tensor | None]]:
        """The loss of some rows and its gradient; none where the loss is not finite."""
        loss = player.loss(batch, noise, self.step / max(self.steps, 1))
        value = float(loss.detach())
        if not math.isfinite(value):
            return value, ()
        return value, torch.autograd.grad(loss, player.parameters, allow_unused=True)

    @torch.no_grad()
    def _move_average(self) -> None:
        decay = min(self.plan.ema, self.step / (self.step + 10))
        for name, value in self.model.state_dict().items() if self.average else ():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)

    def evaluate(self, data: Tensor) -> bool:
        """Scores the held-out rows with the same draws each time, keeps the best state; whether to go on."""
        self.ranks.check_alike(self.model, self.step)
        current = self._weights()
        if not len(self.held):
            self.objective.append(-math.fsum(self.recent) / len(self.recent))
            self.best = {name: value.clone() for name, value in (self.average or current).items()}
            return True
        if self.average:
            self.model.load_state_dict(self.average)
        score = self._score(data)
        if score > max(self.validation, default=-math.inf):
            self.best, self.waited = self._weights(), 0
        elif self.step > self.plan.grace * self.steps:
            self.waited += 1
        self.validation.append(score)
        self.objective.append(score)
        if self.average:
            self.model.load_state_dict(current)
        return not (self.plan.patience and self.waited >= self.plan.patience)

    @torch.no_grad()
    def _score(self, data: Tensor) -> float:
        """Minus the first player's loss a held-out row."""
        noise, total = self._noise(-1) if self.shared else torch.Generator().manual_seed(self.probe), 0.0
        with self.ranks.together(self.step):
            for part in data[self._mine(self.held)].split(1024):
                total += float(self.players[0].loss(part, noise, 1.0)) * len(part) if len(part) else 0.0
        if self.shared:
            total = float(self.ranks.sums([torch.tensor(total, dtype=torch.float64)])[0])
        return -total / len(self.held)

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, flat."""
        flat = {f"now.{k}": v for k, v in self._weights().items()}
        flat |= {f"best.{k}": v for k, v in self.best.items()} | {f"average.{k}": v for k, v in self.average.items()}
        for i, player in enumerate(self.players):
            for j, state in player.optimiser.state_dict()["state"].items():
                flat |= {f"adam.{i}.{j}.{k}": torch.as_tensor(v) for k, v in state.items()}
        own = {"generator": self.generator.get_state(), "order": self.order, "rows": self.rows, "held": self.held}
        return flat | {f"of.{name}": value for name, value in own.items()}

    def facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _FACTS} | {"plan": self.plan.facts(), "ranks": self.ranks.size}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Takes over a saved state, or raises StoreError and changes nothing."""
        if facts.get("plan") != self.plan.facts():
            came = f"The checkpoint was made with {facts.get('plan')}"
            raise StoreError(came, f"{self.plan.facts()}", "Use the same options")
        if (ranks := facts.get("ranks", 1)) != self.ranks.size:
            raise StoreError(
                f"The checkpoint was made by {ranks} ranks, this run has {self.ranks.size}", "as many", "Start as many"
            )
        part: dict[str, dict[str, Tensor]] = {head: {} for head in ("now", "best", "average", "adam", "of")}
        for name, value in tensors.items():
            head, _, rest = name.partition(".")
            part.get(head, {})[rest] = value
        shapes = {name: value.shape for name, value in self.model.state_dict().items()}
        for head in ("now", "best") + ("average",) * bool(self.plan.ema):
            if {name: value.shape for name, value in part[head].items()} != shapes:
                raise StoreError(
                    f"The checkpoint's {head} state is of another model", "one of the same shape", "Fit anew"
                )
        if set(part["of"]) != {"generator", "order", "rows", "held"} or not set(_FACTS) <= set(facts):
            raise StoreError("The checkpoint lacks part of its state", "a whole checkpoint", "Fit anew")
        optimisers = [self._adam(i, part["adam"]) for i in range(len(self.players))]
        for name in _FACTS:
            setattr(self, name, facts[name])
        self.model.load_state_dict(part["now"])
        self.best, self.average = part["best"], part["average"]
        self.order, self.rows, self.held = (part["of"][name] for name in ("order", "rows", "held"))
        self.generator.set_state(part["of"]["generator"])
        for player, state in zip(self.players, optimisers, strict=True):
            player.optimiser.load_state_dict({**player.optimiser.state_dict(), "state": state})

    def _adam(self, i: int, saved: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
        """The optimiser state of player i, with its shapes checked."""
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in saved.items():
            place, number, key = name.split(".")
            if place == str(i):
                state.setdefault(int(number), {})[key] = value
        for j, moments in state.items():
            shape = self.players[i].parameters[j].shape if j < len(self.players[i].parameters) else None
            if set(moments) != {"step", "exp_avg", "exp_avg_sq"} or moments["exp_avg"].shape != shape:
                raise StoreError("The checkpoint's optimiser is of another model", "one of the same shape", "Fit anew")
        return state

    def pilot(self, data: Tensor, budget: float) -> int:
        """How many steps fit into a budget, with their evaluations and what the pilot itself takes: a few are timed and
        undone."""
        began = time.perf_counter()
        before, facts = {k: v.clone() for k, v in self.tensors().items()}, copy.deepcopy(self.facts())
        self.steps = 1000
        times: list[float] = []
        try:
            for _ in range(_COLD):
                self.take_step(data)
                if self.ranks.agreed(time.perf_counter() - began > 0.02 * budget)[0]:
                    break
            while self._goes_on(times, time.perf_counter() - began, budget):
                started = time.perf_counter()
                self.take_step(data)
                times.append(time.perf_counter() - started)
            started = time.perf_counter()
            self.recent = [0.0]
            self.evaluate(data)
            ended = time.perf_counter()
            # the median: a busy moment must not settle the whole run
            seconds, look, spent = self.ranks.agreed(statistics.median(times), ended - started, ended - began)
        finally:
            self.restore(before, facts)
        return _affordable(0.97 * budget - spent, seconds, look, self.plan.evaluations)

    def _goes_on(self, times: Sequence[float], spent: float, budget: float) -> bool:
        """Whether the pilot times another step."""
        wanted = len(times) < 15 or (spent < 0.02 * budget and len(times) < 200)
        return bool(self.ranks.agreed(wanted and not (times and spent > 0.1 * budget))[0])


def _affordable(left: float, seconds: float, look: float, evaluations: int) -> int:
    """Steps that so many seconds allow, one at least. Each costs ``seconds``, and an evaluation ``look``: there is one
    after the first step, and then ``evaluations``, at most one a step."""
    each = int(left / (seconds + look))
    return max(1, each if each <= evaluations else int((left - (evaluations + 1) * look) / seconds))


def train(
    model: nn.Module,
    players: Sequence[Player],
    data: Tensor,
    plan: Schedule,
    *,
    generator: torch.Generator,
    progress: bool | None = None,
) -> FitReport:
    """Trains a model in place and leaves it in its best state, whatever ends the training.

    Arguments:
        model: Whose state is saved and restored; it holds every player's parameters.
        data: Pre-split rows, (n, ...), in the dtype the losses want; under torchrun the same on each rank.

    Raises:
        FitError: at the first non-finite objective or gradient; ``step`` names it. Another rank failed.
        StoreError: a checkpoint of other data, options or ranks, damaged, missing, or not writable.
        DataError: ranks with other rows.

    Ctrl-C keeps the best state and returns.
    """
    began, budget = time.perf_counter(), 60.0 if plan.budget is None else plan.budget
    digest = int(row_hash(row_hash(data).view("int64")[None])[0])
    ranks = joined()
    ranks.meet(model, generator, data)
    run = _Run(model, players, len(data), generator, plan, ranks)
    with ranks.together():
        if plan.resume:
            _load(run, plan.checkpoint, digest)
        elif plan.checkpoint is not None and ranks.rank == 0:
            store.check_folder(plan.checkpoint, "checkpoint")
    stopped = "interrupted"
    try:
        with ranks.heeding():
            if not plan.resume and plan.steps is None:
                run.steps = run.pilot(data, budget)
            with Progress(type(model).__name__, run.steps, progress, plan.batch_size) as bar:
                bar.begin(run.step)
                stopped = _loop(run, data, bar, _saver(run, plan, digest))
    except KeyboardInterrupt:
        pass
    finally:
        model.load_state_dict(run.best)
    ranks.check_alike(model, run.step)
    notes: tuple[str, ...] = () if plan.steps else (f"budget {budget:g} s = {run.steps} steps by a pilot",)
    notes += ranks.notes("rows of each batch", min(plan.batch_size, len(run.rows)), run.shared)
    seconds = time.perf_counter() - began
    return FitReport(tuple(run.objective), run.step, stopped, seconds, 0, tuple(run.validation), notes=notes)


def of_kept_state(report: FitReport, unchanged: str) -> FitReport:
    """The report of a state chosen by held-out rows: its objective comes last.

    Arguments:
        unchanged: The note where that state is the first one.
    """
    if report.stopped == "interrupted":
        return report
    first, best = report.objective[0], max(report.objective)
    report = replace(report, objective=(*report.objective, best))
    if best > first:
        return report
    return replace(report, stopped="converged", notes=(*report.notes, unchanged))


def _loop(run: _Run, data: Tensor, bar: Progress, save: Callable[[], None]) -> str:
    marks = set(_marks(run.steps, run.plan.evaluations))
    while run.step < run.steps:
        loss = run.take_step(data)
        if not math.isfinite(loss):
            raise FitError(
                f"The objective or its gradient became {-loss} at step {run.step}", "finite numbers",
                "The model keeps its best state so far; try a smaller learning_rate or clip", step=run.step,
            )  # fmt: skip
        run.recent = [*run.recent[-99:], loss]
        bar.advance(1, f"{-loss:.3f} nats")
        if run.step in marks and not run.evaluate(data):
            return "early stopping"
        save()
    return "steps"


def _marks(steps: int, evaluations: int) -> Iterator[int]:
    """Steps after which to evaluate: the first, evenly spaced ones, the last."""
    yield 1
    for i in range(1, evaluations + 1):
        yield max(1, round(steps * i / evaluations))


def _saver(run: _Run, plan: Schedule, digest: int) -> Callable[[], None]:
    if plan.checkpoint is None:
        return lambda: None
    folder, about = plan.checkpoint, {"format": store.FORMAT, "what": "checkpoint", "data": digest}

    def save() -> None:
        if run.step % plan.every == 0 or run.step == run.steps:
            with run.ranks.together(run.step):
                if run.ranks.rank == 0:
                    store.write(folder, run.tensors(), {**about, **run.facts()})

    return save


def _load(run: _Run, folder: str | PathLike | None, digest: int) -> None:
    card, tensors = store.read(Path(folder or ""))
    if card.get("what") != "checkpoint":
        raise StoreError(
            f"{folder} holds a {card.get('what')}", "a training checkpoint", "Name the checkpoint's folder"
        )
    if card.get("data") != digest:
        raise StoreError(f"The checkpoint in {folder} belongs to other data", "the rows it was made with", "Fit anew")
    run.restore(tensors, card)

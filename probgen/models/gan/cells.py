"""Rows of an event as the numbers that both networks see, and back."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from probgen.emissions.emission import column_moments
from probgen.events import Array, Category, Count, Event, Table
from probgen.models.gan.modes import bumps, is_constant, sliver

__all__ = ["Cell", "Cells"]

_TEMPERATURE = 0.5  # of the relaxed choices
_END = 690.0  # exp of it is finite in float64
_MOST = 2.0**53
_WIDEST = 2.0**50  # steps of a grid from 0, which float64 still tells apart


class Cell(NamedTuple):
    """One cell of a row.

    Arguments:
        levels: Of a category; 0 for a number.
        link: What a number passes through: "identity", "log", "log1p", or "unit" for [0, 1].
        step: Of the grid that a number is rounded to; 0 for none.
        low, high: Ends of the grid or of the numbers.
    """

    levels: int = 0
    link: str = "identity"
    step: float = 0.0
    low: float = -math.inf
    high: float = math.inf


class Cells(nn.Module):
    """Rows (n, ...) to (n, width) and back: numbers first, then which bump each belongs to, then categories.

    Numbers are standardised, positive ones through the logarithm, counts through log(1 + x); rounded ones are first
    spread over their interval by uniform noise. A number of a table is standardised within one bump of its column's
    mixture of normals, chosen by the bumps' posterior weights, and the choice is a one-hot vector (mode-specific
    normalisation, Xu et al. 2019). A category is a one-hot vector. Missing cells are zeros, and where they may occur
    the networks are told which cells are seen.

    A generator's raw output has the same layout; its one-hot vectors are drawn by the Gumbel trick, with the slopes of
    the relaxed draw (straight through; Jang, Gu and Poole 2017).

    Arguments:
        event: Array or Table.
        modes: Most bumps of a table's number.
    """

    centre: Tensor
    spread: Tensor
    weights: Tensor

    def __init__(self, event: Any, modes: int) -> None:
        super().__init__()
        self.cells, self.gaps, self.count = _cells(event), bool(event.missing), max(math.prod(event.shape), 1)
        self.even = isinstance(event, Array) and event.discrete
        self.plain = [i for i, cell in enumerate(self.cells) if not cell.levels]
        self.coded = [i for i, cell in enumerate(self.cells) if cell.levels]
        self.modes = modes if isinstance(event, Table) else 0
        shape = (len(self.plain), max(self.modes, 1))
        for name, start in (("centre", 0.0), ("spread", 1.0), ("weights", 1 / shape[1])):
            self.register_buffer(name, torch.full(shape, start, dtype=torch.float64))
        self._columns = {name: self._of(name) for name in ("step", "low", "high")}
        self._links = {link: [p for p, i in enumerate(self.plain) if self.cells[i].link == link] for link in _LINKS}

    def _of(self, name: str) -> Tensor:
        return torch.tensor([getattr(self.cells[i], name) for i in self.plain], dtype=torch.float64)

    @property
    def sizes(self) -> list[int]:
        """Levels of each choice: bumps of numbers, then categories."""
        return [self.modes] * (len(self.plain) if self.modes else 0) + [self.cells[i].levels for i in self.coded]

    @property
    def choices(self) -> int:
        """Uniform numbers that the choices of a row take."""
        return sum(self.sizes)

    @property
    def width(self) -> int:
        """Numbers of an encoded row, without those that tell which cells are seen."""
        return len(self.plain) + self.choices

    @property
    def owners(self) -> list[int]:
        """Which cell each number of an encoded row belongs to."""
        of_choices = [i for i in self.plain if self.modes] + self.coded
        return [*self.plain, *(i for i, size in zip(of_choices, self.sizes, strict=True) for _ in range(size))]

    # Towards the networks

    @torch.no_grad()
    def measure(self, x: Tensor, generator: torch.Generator) -> None:
        """Learns the scales of the numbers, and the bumps of a table's."""
        if not self.plain:
            return
        numbers = self._linked(self._spread_out(x.reshape(len(x), -1)[:, self.plain].to(torch.float64), generator))
        if self.modes:
            for j, column in enumerate(numbers.T):
                self.weights[j], self.centre[j], self.spread[j] = bumps(column, self.modes, generator)
            return
        mean, variance = column_moments(numbers)
        std = torch.where(is_constant(numbers), sliver(mean), variance.sqrt())
        if self.even:  # cells that hardly vary get a share of the common scale, so that noise is not blown up
            std = torch.maximum(std, 0.3 * variance.mean().sqrt())
        self.centre.copy_(mean[:, None])
        self.spread.copy_(std[:, None])

    def _spread_out(self, numbers: Tensor, generator: torch.Generator) -> Tensor:
        """Rounded numbers with uniform noise of one step."""
        step = self._columns["step"]
        if not bool(step.any()):
            return numbers
        return numbers + step * (torch.rand(numbers.shape, generator=generator, dtype=numbers.dtype) - 0.5)

    def _linked(self, numbers: Tensor) -> Tensor:
        for link, function in (("log", torch.log), ("log1p", torch.log1p)):
            if some := self._links[link]:
                numbers = numbers.clone()
                numbers[:, some] = function(numbers[:, some])
        return numbers

    def encode(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Rows (n, ...) to (n, width), float64; missing cells are zeros."""
        rows = x.reshape(len(x), -1).to(torch.float64)
        parts = []
        if self.plain:
            numbers = self._linked(self._spread_out(rows[:, self.plain], generator))
            centre, spread = self.centre[:, 0], self.spread[:, 0]
            if self.modes:
                chosen = self._bump_of(numbers, generator)
                centre, spread = (part.gather(1, chosen.T).T for part in (self.centre, self.spread))
                parts = [nn.functional.one_hot(chosen, self.modes).flatten(1)]
            parts = [(numbers - centre) / spread, *parts]
        for i in self.coded:
            parts.append(nn.functional.one_hot(rows[:, i].nan_to_num(0.0).long(), self.cells[i].levels))
        encoded = torch.cat([part.to(torch.float64) for part in parts], 1)
        return self.masked(encoded.nan_to_num(0.0), self.seen(x)) if self.gaps else encoded

    def _bump_of(self, numbers: Tensor, generator: torch.Generator) -> Tensor:
        """Each number's bump, drawn by its posterior weights: (n, p), int64."""
        z = (numbers.nan_to_num(0.0)[..., None] - self.centre) / self.spread
        nats = self.weights.log() - self.spread.log() - 0.5 * z.square()
        u = torch.rand(nats.shape, generator=generator, dtype=nats.dtype)
        return (nats + _gumbel(u)).argmax(-1)

    def seen(self, x: Tensor) -> Tensor:
        """1 where a cell is not missing, (n, cells), float64."""
        return (~x.reshape(len(x), -1).isnan()).to(torch.float64)

    def masked(self, encoded: Tensor, seen: Tensor) -> Tensor:
        """Encoded rows with zeros where a cell is not seen."""
        return encoded * seen.to(encoded.dtype)[:, self.owners]

    # And back

    def choose(self, raw: Tensor, u: Tensor | None) -> Tensor:
        """A generator's raw output (n, width) as an encoded row.

        Arguments:
            u: Uniform numbers (n, choices), one for each level of each choice; None for the likeliest levels.
        """
        numbers, logits = raw[:, : len(self.plain)], self._logits(raw)
        if some := self._links["unit"]:
            centre, spread = self.centre[some, 0], self.spread[some, 0]
            inside = torch.sigmoid(torch.logit(centre, eps=1e-3) + 2 * numbers[:, some])
            numbers = numbers.clone()
            numbers[:, some] = ((inside - centre) / spread).to(raw.dtype)
        if u is not None:
            logits = logits + _gumbel(u.to(logits.dtype))
        parts = [_straight_through(part) for part in logits.split(self.sizes, 1)] if self.sizes else []
        return torch.cat([numbers, *parts], 1)

    def _logits(self, raw: Tensor) -> Tensor:
        """Of the choices; bumps that no number has are out of reach."""
        logits = raw[:, len(self.plain) :]
        if not self.modes:
            return logits
        taken = torch.cat([self.weights.reshape(-1) > 0, torch.ones(self.choices - self.weights.numel()).bool()])
        return torch.where(taken, logits, -1e4)

    def log_share(self, raw: Tensor, place: Tensor, code: Tensor) -> Tensor:
        """log-probability (n,) that category number ``place`` (of the coded cells) becomes ``code``, both (n,)."""
        parts = self._logits(raw)[:, -sum(self.cells[i].levels for i in self.coded) :]
        found = [part.log_softmax(1) for part in parts.split([self.cells[i].levels for i in self.coded], 1)]
        nats = torch.stack([p.gather(1, code.clamp(max=p.shape[1] - 1)[:, None])[:, 0] for p in found], 1)
        return nats.gather(1, place[:, None])[:, 0]

    def values(self, encoded: Tensor) -> Tensor:
        """Encoded rows as cells (n, cells) in the data's units, before rounding; of categories the code. Float64."""
        encoded = encoded.to(torch.float64)
        out: list[Tensor] = [encoded.new_empty(0)] * len(self.cells)
        choices = encoded[:, len(self.plain) :].split(self.sizes, 1) if self.sizes else ()
        numbers = encoded[:, : len(self.plain)]
        if self.modes and self.plain:
            picks = torch.stack(choices[: len(self.plain)], 1)
            numbers = (picks * (self.centre + self.spread * numbers[..., None])).sum(-1)
        elif self.plain:
            numbers = self.centre[:, 0] + self.spread[:, 0] * numbers
        for p, i in enumerate(self.plain):
            out[i] = _UNLINK[self.cells[i].link](numbers[:, p])
        for i, pick in zip(self.coded, choices[len(choices) - len(self.coded) :], strict=True):
            out[i] = pick @ torch.arange(pick.shape[1], dtype=pick.dtype)
        return torch.stack(out, 1) if self.coded else _restacked(out, numbers, self._links)

    def on_support(self, cells: Tensor) -> Tensor:
        """Cells (n, cells) at the nearest points that the event allows."""
        cells = cells.clone()
        numbers, step = cells[:, self.plain], self._columns["step"]
        width = torch.where(step > 0, step, 1.0)
        numbers = torch.where(step > 0, (numbers / width).round() * width, numbers)
        cells[:, self.plain] = numbers.clamp(self._columns["low"], self._columns["high"]) + 0.0
        cells[:, self.coded] = cells[:, self.coded].round()
        return cells


_LINKS = ("identity", "log", "log1p", "unit")
_UNLINK = {
    "identity": lambda v: v,
    "log": lambda v: v.clamp(-_END, _END).exp(),
    "log1p": lambda v: v.clamp(max=math.log(_MOST)).expm1(),
    "unit": lambda v: v,
}


def _restacked(out: list[Tensor], numbers: Tensor, links: dict[str, list[int]]) -> Tensor:
    """All cells are numbers: without a column at a time where nothing was unlinked."""
    return torch.stack(out, 1) if links["log"] or links["log1p"] else numbers


def _gumbel(u: Tensor) -> Tensor:
    about = torch.finfo(u.dtype)
    return -(-u.clamp(about.tiny, 1 - about.eps).log()).log()


def _straight_through(logits: Tensor) -> Tensor:
    """The largest as a one-hot vector, with the slopes of the softmax."""
    soft = (logits / _TEMPERATURE).softmax(1)
    hard = nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(soft.dtype)
    return hard + soft - soft.detach()


def _cells(event: Event) -> list[Cell]:
    if isinstance(event, Table):
        return [_column(column) for column in event.columns.values()]
    array: Any = event
    count = max(array.dims, 1)
    if array.levels is not None:
        return [Cell(step=1.0, low=0.0, high=float(k) - 1) for k in array.cell_levels]
    return [_number(array.support, array.resolution or 0.0)] * count


def _column(column: Any) -> Cell:
    if isinstance(column, Category):
        return Cell(levels=len(column.levels))
    if isinstance(column, Count):
        return _number("count", 0.0)
    return _number("positive" if column.positive else "real", column.resolution or 0.0)


def _number(support: str, step: float) -> Cell:
    if support == "count":
        return Cell(link="log1p", step=1.0, low=0.0, high=_MOST)
    if support == "positive":
        return Cell(link="log", step=step, low=step or 1e-300, high=step * _WIDEST or math.inf)
    if support == "unit":
        return Cell(link="unit", step=step, low=0.0, high=math.floor(1 / step + 1e-6) * step if step else 1.0)
    return Cell(step=step, low=-(step * _WIDEST or math.inf), high=step * _WIDEST or math.inf)

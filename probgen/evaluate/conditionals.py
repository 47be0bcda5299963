"""Models as chains of exact pmfs: what the next symbol, or the next cell, can be given those before it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from probgen import emissions
from probgen.errors import DataError, StructureError
from probgen.events import Array, Ragged, Table, Text
from probgen.model import GenerativeModel, Latent
from probgen.models.baseline import Independent
from probgen.models.bayesnet import BayesianNetwork
from probgen.models.mixture import Mixture

__all__ = ["Chain", "Steps", "chain_of", "refuse_gaps"]


class Steps(Protocol):
    """The pmf of the next symbol of several sequences that grow side by side."""

    def log_pmf(self) -> Tensor: ...

    def push(self, ids: Any) -> None: ...


class Chain(ABC):
    """Observations as sequences of symbols.

    Arguments:
        model: Fitted.

    ``lanes`` is how many are stepped side by side, ``end`` the symbol after which a sequence is over (None: lengths are
    given), ``length`` that of all, where it is fixed.
    """

    lanes: int = 4096
    end: int | None = None
    length: int | None = None

    def __init__(self, model: GenerativeModel) -> None:
        self.model = model

    @abstractmethod
    def steps(self, batch: int) -> Steps:
        """Before the first symbol of ``batch`` sequences."""

    @abstractmethod
    def symbols(self, x: Any) -> list[np.ndarray]:
        """The symbols of each checked observation, the end included."""

    @abstractmethod
    def observations(self, parts: list[np.ndarray]) -> Any:
        """Checked data again."""


class _Sequences(Chain):
    """A family that steps itself: text, series of levels, arrays in raster order."""

    def __init__(self, model: GenerativeModel) -> None:
        super().__init__(model)
        event = model.event
        self.lanes = 1024
        if isinstance(event, Text):
            self.lanes, self.end = 64, event.tokens
        elif isinstance(event, Array):
            self.length = event.dims

    def steps(self, batch: int) -> Steps:
        return self.model._stepper(batch)  # type: ignore[operator, no-any-return]

    def _radix(self) -> tuple[int, ...]:
        return tuple(int(levels) for levels in self.model.event.step.cell_levels)  # type: ignore[attr-defined]

    def symbols(self, x: Any) -> list[np.ndarray]:
        if isinstance(x, Tensor):
            return list(x.reshape(len(x), -1).numpy().astype(np.int64))
        parts = [part.reshape(len(part), -1).numpy().astype(np.int64) for part in x.split()]
        if self.end is not None:
            return [np.append(part[:, 0], self.end) for part in parts]
        return [np.ravel_multi_index(tuple(part.T), self._radix()) for part in parts]

    def observations(self, parts: list[np.ndarray]) -> Any:
        event = self.model.event
        if isinstance(event, Array):
            return torch.from_numpy(np.stack(parts).astype(np.float64)).reshape(len(parts), *event.shape)
        lengths = torch.tensor([len(part) - (self.end is not None) for part in parts])
        if self.end is not None:
            return Ragged(torch.from_numpy(np.concatenate([part[:-1] for part in parts])), lengths)
        codes = np.concatenate(parts)
        cells = np.stack(np.unravel_index(codes, self._radix()), axis=1).astype(np.float64)
        return Ragged(torch.from_numpy(cells.reshape(len(codes), *event.shape)), lengths)  # type: ignore[attr-defined]


class _Rows(Chain):
    """Rows of cells, one after the other in some order of the columns.

    Arguments:
        order: Columns, in the order in which they are coded.
        start: Takes a number of rows and gives their steps.
    """

    def __init__(self, model: GenerativeModel, order: list[int], start: Callable[[int], Steps]) -> None:
        super().__init__(model)
        self.order, self.start, self.length = np.array(order), start, len(order)

    def steps(self, batch: int) -> Steps:
        return self.start(batch)

    def symbols(self, x: Tensor) -> list[np.ndarray]:
        return list(x.reshape(len(x), -1).numpy().astype(np.int64)[:, self.order])

    def observations(self, parts: list[np.ndarray]) -> Tensor:
        cells = np.empty((len(parts), len(self.order)))
        cells[:, self.order] = np.stack(parts)
        shape = getattr(self.model.event, "shape", (len(self.order),))
        return torch.from_numpy(cells).reshape(len(parts), *shape)


class _Network:
    """Nodes given their parents, in topological order; pmfs are rows of the tables.

    Arguments:
        tables: Of each node in that order, (configurations, levels).
        parents: Places of each node's parents in that order.
        cards: Levels of each node in that order.
    """

    def __init__(self, tables: list[np.ndarray], parents: list[list[int]], cards: list[int], batch: int) -> None:
        self.tables, self.parents, self.cards, self.batch = tables, parents, cards, batch
        self.columns: list[np.ndarray] = []

    def pmf(self) -> np.ndarray:
        place = len(self.columns)
        row = np.zeros(self.batch, dtype=np.int64)
        for parent in self.parents[place]:
            row = row * self.cards[parent] + self.columns[parent]
        return self.tables[place][row]

    def log_pmf(self) -> Tensor:
        return torch.from_numpy(self.pmf()).log()

    def push(self, ids: Any) -> None:
        self.columns.append(np.asarray(ids, dtype=np.int64))


class _Components:
    """Cells of a mixture: sum_k p(k | cells before) p_k(cell), by Bayes' rule cell after cell.

    Arguments:
        weights: (K,).
        tables: p_k of each cell, (K, levels).
    """

    def __init__(self, weights: np.ndarray, tables: list[np.ndarray], batch: int) -> None:
        self.tables, self.weights, self.place = tables, np.tile(weights, (batch, 1)), 0

    def pmf(self) -> np.ndarray:
        return self.weights @ self.tables[self.place]

    def log_pmf(self) -> Tensor:
        return torch.from_numpy(self.pmf()).log()

    def push(self, ids: Any) -> None:
        joint = self.weights * self.tables[self.place].T[np.asarray(ids)]
        self.weights = joint / joint.sum(axis=1, keepdims=True)
        self.place += 1


def chain_of(model: GenerativeModel) -> Chain:
    """A fitted model as a chain of exact pmfs.

    Raises:
        StructureError: there is none, and why.
        NotFittedError: before ``fit``.
    """
    name = type(model).__name__
    if not isinstance(model, GenerativeModel):
        raise StructureError(f"A codec of {name}", "a fitted model of probgen", "pg.wrap(model) takes foreign ones")
    if not model.event.discrete:
        raise StructureError(
            f"A codec of {name} on {model.event!r}, a density",
            "data with masses: a real number has infinitely many digits",
            "Declare levels= or round them: resolution= has no codec yet",
        )
    model._check_fitted()
    if hasattr(model, "_stepper"):
        return _Sequences(model)
    if isinstance(model, BayesianNetwork):
        return _network(model)
    if isinstance(model, Independent | Mixture) and isinstance(model.event, Array | Table):
        return _components(model)
    raise StructureError(f"A codec of {name}: {_why(model)}", _WANTED, _INSTEAD)


_WANTED = "an exact pmf of each symbol given those before it"
_INSTEAD = "NGram, LanguageModel, BayesianNetwork, Mixture and Independent have it"


def _why(model: GenerativeModel) -> str:
    if isinstance(model, Latent):
        return "its likelihood is a bound, and integrals over latents have no stepwise pmf"
    return "it gives no pmf of the next symbol (a bound, an estimate or a score codes nothing)"


def _network(net: BayesianNetwork) -> Chain:
    odd = [name for name in net.variables if not net.conditional(name).tabular]
    if odd:
        raise StructureError(f"A codec of a network whose node {odd[0]!r} has no table", _WANTED, "Use categories")
    place = {name: i for i, name in enumerate(net.order)}
    cards = [net.conditional(name).cards[-1] for name in net.order]
    tables = [
        net.conditional(name).log_table().detach().exp().numpy().reshape(-1, cards[place[name]]) for name in place
    ]
    parents = [[place[parent] for parent in net.parents[name]] for name in net.order]
    order = [net.index[name] for name in net.order]
    return _Rows(net, order, lambda batch: _Network(tables, parents, cards, batch))


def _components(model: Independent | Mixture) -> Chain:
    emission = model.margin if isinstance(model, Independent) else model.emission
    weights = np.ones(1) if isinstance(model, Independent) else model.weights().detach().numpy()
    tables = _tables(model, emission)
    return _Rows(model, list(range(len(tables))), lambda batch: _Components(weights, tables, batch))


def _tables(model: GenerativeModel, emission: emissions.Emission) -> list[np.ndarray]:
    """p_k of each cell, (K, levels), in turn."""
    if isinstance(emission, emissions.Product):
        return [table for part in emission.parts.values() for table in _tables(model, part)]
    if isinstance(emission, emissions.Categorical):
        probs = emission.table().detach().exp().numpy()
        levels = np.broadcast_to(np.asarray(emission.levels), emission.width)
        return [np.ascontiguousarray(probs[:, d, :n]) for d, n in enumerate(levels)]
    if not isinstance(emission, emissions.Bernoulli | emissions.DiscretisedNormal) or emission.event.levels is None:
        raise StructureError(
            f"A codec of a {type(model).__name__} of {type(emission).__name__}", _WANTED, "Categorical cells have it"
        )
    return [_table(emission, d, int(n)) for d, n in enumerate(emission.event.cell_levels)]


def _table(emission: emissions.Emission, d: int, levels: int) -> np.ndarray:
    """The pmf of one cell, the others being left out."""
    grid = torch.full((levels, emission.width), math.nan, dtype=torch.float64)
    grid[:, d] = torch.arange(levels)
    return np.ascontiguousarray(emission.log_prob(grid).detach().exp().numpy().T)


def refuse_gaps(x: Any, keys: np.ndarray) -> None:
    """Raises DataError where checked data have a missing cell, by row and cell."""
    values = x.values if isinstance(x, Ragged) else x
    if values.is_floating_point() and values.isnan().any():
        row, cell = values.reshape(len(values), -1).isnan().nonzero()[0].tolist()
        where = f"Step {row}" if isinstance(x, Ragged) else f"Row {keys[row]}"
        raise DataError(f"{where}, cell {cell} is missing", "complete data: a gap has no code", "Fill or drop it")

"""A language model as Pyro programs: a site a symbol, or one site for whole padded sequences."""

from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

from probgen.errors import ShapeError
from probgen.events import Ragged
from probgen.models.language.choosing import Choice, grow
from probgen.models.language.decoding import Stepper
from probgen.models.language.scoring import Reading, Windows, masked, read
from probgen.models.language.texts import joined

if TYPE_CHECKING:
    from probgen.models.language.family import LanguageModel

__all__ = ["Sequences", "stepwise"]


def stepwise(model: "LanguageModel", x: Any, given: Ragged | None, n: int) -> Any:
    """p(x_0) p(x_1 | x_0) ...: sites "x_0", "x_1", ... in a plate of rows; the end of a text is its last site.

    Where x is given, rows that are over are masked. Without x, n rows are drawn until all are over or, of a Series,
    after 20 steps.

    Returns:
        x, or the drawn observations.
    """
    return _observed(model, x, given) if x is not None else _drawn(model, given, n)


def _observed(model: "LanguageModel", x: Any, given: Ragged | None) -> Any:
    ids, known = joined(given, model.alphabet.ids(x))
    reading = model._reading(ids)
    logits = log_pmfs(model, reading)
    targets, lengths = torch.from_numpy(reading.starts), torch.from_numpy(reading.lengths)
    with pyro.plate("rows", len(ids)):
        for step in range(int(lengths.max()) if len(lengths) else 0):
            inside = (step < lengths) & (step >= torch.from_numpy(known))
            if not inside.any():
                continue
            place = torch.where(step < lengths, targets + step, targets)
            with poutine.mask(mask=cast(torch.BoolTensor, inside)):
                pmf = dist.Categorical(logits=logits[place], validate_args=False)
                pyro.sample(f"x_{step}", pmf, obs=reading.targets[place])
    return x


def log_pmfs(model: "LanguageModel", reading: Reading) -> Tensor:
    """log p of every symbol at every target of a reading, (total, symbols + 1), with gradients."""
    found, places = [], []
    for batch in Windows.of(reading, model.window, model.stride).batches():
        where, features = read(model.network, reading, batch)
        legal = None if model.alphabet.legal is None else model.alphabet.legal[reading.places[where]]
        found.append(masked(model.network.head(features), model.alphabet.ends, legal).double().log_softmax(-1))
        places.append(where)
    return torch.cat(found)[torch.cat(places).argsort()]


def _drawn(model: "LanguageModel", given: Ragged | None, n: int) -> Any:
    stepper, end, columns = Stepper(model, n), model.alphabet.size, []
    if given is not None:
        stepper.read(given.values)
    over = torch.zeros(n, dtype=torch.bool)
    with pyro.plate("rows", n):
        for step in range(model._room(None)):
            with poutine.mask(mask=cast(torch.BoolTensor, ~over)):
                pmf = dist.Categorical(logits=stepper.log_pmf(), validate_args=False)
                symbols = pyro.sample(f"x_{step}", pmf)
            columns.append(torch.where(over, end, symbols))
            over = over | (columns[-1] == end)
            if over.all():
                break
            stepper.push(columns[-1])
    head = [] if given is None else given.values.tolist()
    return model.alphabet.observations([np.array(head + _before(row, end)) for row in torch.stack(columns, 1).tolist()])


def _before(row: list[int], end: int) -> list[int]:
    return row[: row.index(end)] if end in row else row


class Sequences(dist.TorchDistribution):
    """Whole sequences as one distribution: padded ids (rows, length), -1 after the end of each. For batched scoring.

    ``log_prob`` is (rows,), float64, with gradients; of text with the end of each. A sequence fills its row or leaves
    -1 behind it; text that fills its row ends there. ``sample`` draws rows of ``length`` symbols at most.

    Arguments:
        language: The model.
        batch: Shape of the batch: (rows,).
        length: Columns.
    """

    arg_constraints: ClassVar = {}
    support = constraints.independent(constraints.integer, 1)

    def __init__(self, language: "LanguageModel", batch: torch.Size, length: int) -> None:
        self.language = language
        super().__init__(batch, torch.Size([length]), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        rows = value.expand(*torch.broadcast_shapes(value.shape[:-1], self.batch_shape), -1)
        flat = rows.reshape(-1, rows.shape[-1]).long()
        lengths = (flat >= 0).sum(1)
        inside = torch.arange(flat.shape[1]) < lengths[:, None]
        if not torch.equal(inside, flat >= 0) or not lengths.all():
            raise ShapeError("Ids with -1 inside or before them", "ids, then -1 up to the end of the row", "Pad behind")
        reading = self.language._reading(Ragged(flat[inside], lengths))
        nats = log_pmfs(self.language, reading).gather(1, reading.targets[:, None])[:, 0]
        total = torch.zeros(len(flat), dtype=nats.dtype).index_add(0, reading.rows, nats)
        return total.reshape(rows.shape[:-1])

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Of torch's global generator, as Pyro expects; texts are not empty."""
        shape = torch.Size(sample_shape) + self.batch_shape
        length = self.event_shape[0]
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        found = torch.full((shape.numel(), length), -1)
        stepper = Stepper(self.language, shape.numel())
        for row, part in zip(found, grow(stepper, Choice(), generator, length, may_be_empty=False), strict=True):
            row[: len(part)] = torch.from_numpy(part)
        return found.reshape(*shape, length)

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "Sequences":
        return Sequences(self.language, torch.Size(batch_shape), self.event_shape[0])

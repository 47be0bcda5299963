"""What a part of a record is to the model: features for the guide, and p(part | z)."""

import abc
import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from probgen.events import Array, Event, Ragged, Text
from probgen.features import Features, has_pixels, image_shape
from probgen.latent.networks import Decoder, Encoder
from probgen.latent.observations import Observed, observation_for
from probgen.nn.text import TextDecoder, TextEncoder

__all__ = ["Caption", "CellsPart", "Part", "TextPart", "part_for"]

_ROOM = 8  # tokens that a drawn text may have beyond twice the longest one of training


class Part(nn.Module, abc.ABC):
    """One part of a record. Its rows come packed: a tensor (n, columns) that marks what is missing.

    Arguments:
        event: Of the part.
        width: Of its features.
    """

    def __init__(self, event: Event, width: int) -> None:
        super().__init__()
        self.event, self.width = event, width

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Numbers of one row, as they count for the parts' weights."""

    @property
    @abc.abstractmethod
    def cost(self) -> int:
        """Numbers that log p of one row under one z goes through."""

    @abc.abstractmethod
    def pack(self, value: Any, rows: int) -> Tensor:
        """Checked values, or None for rows that lack the part, as (n, columns)."""

    @abc.abstractmethod
    def unpack(self, packed: Tensor) -> Any:
        """Checked values of packed rows that have the part."""

    @abc.abstractmethod
    def seen(self, packed: Tensor) -> Tensor:
        """Which rows have the part, (n,), bool."""

    @abc.abstractmethod
    def measure(self, packed: Tensor) -> None:
        """Learns scales from rows that have the part."""

    @abc.abstractmethod
    def _features(self, packed: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _nats(self, z: Tensor, packed: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def draw(self, z: Tensor, generator: torch.Generator) -> Any:
        """Checked values of p(part | z), one a row of z (n, latent_dim)."""

    @abc.abstractmethod
    def mean(self, z: Tensor) -> Any:
        """E[part | z] of numbers, the likeliest level of categories, the text of likeliest tokens."""

    @abc.abstractmethod
    def distribution(self, z: Tensor, columns: int) -> dist.TorchDistribution:
        """p(part | z) as one Pyro site over packed rows."""

    def features(self, packed: Tensor) -> Tensor:
        """(n, width); zeros where the part is missing."""
        there = self.seen(packed)
        if bool(there.all()):
            return self._features(packed)
        found = packed.new_zeros(len(packed), self.width, dtype=self.dtype)
        return found.index_copy(0, there.nonzero()[:, 0], self._features(packed[there])) if bool(there.any()) else found

    def nats(self, z: Tensor, packed: Tensor) -> Tensor:
        """log p(part | z) of rows (n, columns) under z (..., n, latent_dim): (..., n); 0 where the part is missing."""
        there = self.seen(packed)
        if bool(there.all()):
            return self._nats(z, packed)
        found = z.new_zeros(z.shape[:-1])
        if not bool(there.any()):
            return found
        return found.index_copy(-1, there.nonzero()[:, 0], self._nats(z[..., there, :], packed[there]))

    @property
    def dtype(self) -> torch.dtype:
        """Of the networks."""
        return next(self.parameters()).dtype


class CellsPart(Part):
    """Images, vectors, single values, rows of a table: cells independent given z, each by its own type.

    Arguments:
        hidden: Widths of the decoder's hidden layers; the encoder has them reversed. () is linear.
        channels: Of convolutions, for images.
    """

    def __init__(self, event: Event, latent: int, width: int, hidden: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__(event, width)
        self.linear = not hidden and not channels
        self.cells = observation_for(event, None, 1)
        self.reading = Features(event, shared=bool(channels) or has_pixels(event))
        self.encoder = Encoder(event, self.reading.width, 0, channels, hidden[1:][::-1], width)
        self.decoder = Decoder(event, latent, 0, channels[::-1], hidden, self.cells.width)

    @property
    def size(self) -> int:
        return self.cells.cells

    @property
    def cost(self) -> int:
        return max(self.cells.width, self.cells.cells)

    def pack(self, value: Any, rows: int) -> Tensor:
        if value is None:
            return torch.full((rows, self.cells.cells), math.nan, dtype=torch.float64)
        return value.reshape(rows, self.cells.cells)

    def unpack(self, packed: Tensor) -> Tensor:
        return self._rows(packed)

    def seen(self, packed: Tensor) -> Tensor:
        return ~packed.isnan().all(1)

    def measure(self, packed: Tensor) -> None:
        rows = packed[self.seen(packed)].to(torch.float64)
        self.cells.measure(rows)
        self.reading.measure(rows)

    def _features(self, packed: Tensor) -> Tensor:
        found = self.encoder(self.reading(packed.to(torch.float64)).to(self.dtype), None)
        return found if self.linear else nn.functional.silu(found)

    def _nats(self, z: Tensor, packed: Tensor) -> Tensor:
        return self.cells.log_prob(self.decoder(z, None), self.cells.ready(packed))

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        return self._rows(self.cells.draw(self.decoder(z, None), generator))

    def mean(self, z: Tensor) -> Tensor:
        return self._rows(self.cells.mean(self.decoder(z, None)))

    def _rows(self, cells: Tensor) -> Tensor:
        shape = self.event.shape if isinstance(self.event, Array) else cells.shape[1:]
        return cells.to(torch.float64).reshape(len(cells), *shape)

    def distribution(self, z: Tensor, columns: int) -> dist.TorchDistribution:
        return Observed(self.cells, self.decoder(z, None))


class TextPart(Part):
    """Text, a token after the other given z at every step, the end included. Packed rows are ids, -1 behind the end.

    ``longest`` is the longest text of training, in tokens: draws end at twice that and a little at the latest.
    """

    longest: Tensor

    def __init__(self, event: Text, latent: int, width: int) -> None:
        super().__init__(event, width)
        self.encoder = TextEncoder(event.tokens, width, width)
        self.decoder = TextDecoder(event.tokens, latent, width)
        self.register_buffer("longest", torch.tensor(12, dtype=torch.int64))

    @property
    def size(self) -> int:
        return int(self.longest)

    @property
    def cost(self) -> int:
        return (int(self.longest) + 1) * (self.decoder.symbols + 1)

    def pack(self, value: Any, rows: int) -> Tensor:
        if value is None or not rows:
            return torch.full((rows, 1), -1, dtype=torch.int64)
        return nn.utils.rnn.pad_sequence(value.split(), batch_first=True, padding_value=-1)

    def unpack(self, packed: Tensor) -> Ragged:
        inside = packed >= 0
        return Ragged(packed[inside].long(), inside.sum(1))

    def seen(self, packed: Tensor) -> Tensor:
        return packed[:, 0] >= 0

    def measure(self, packed: Tensor) -> None:
        """The longest text, and first scores that give each token its share of all."""
        inside = packed >= 0
        self.longest.copy_(inside.sum(1).max())
        symbols = self.decoder.symbols + 1
        counts = torch.bincount(packed[inside].long(), minlength=symbols).to(torch.float64)
        counts[-1] = len(packed)
        bias = ((counts + 1 / symbols) / (counts.sum() + 1)).log()
        self.decoder.head.layers[-1].bias.data.copy_(bias)  # type: ignore[union-attr, operator]

    def _features(self, packed: Tensor) -> Tensor:
        ids, lengths = _cut(packed)
        return nn.functional.silu(self.encoder(ids, lengths))

    def _nats(self, z: Tensor, packed: Tensor) -> Tensor:
        ids, lengths = _cut(packed)
        log_p = self._log_pmf(self.decoder.scores(self.decoder.states(ids), z))
        ended = torch.cat([ids, ids.new_full((len(ids), 1), self.decoder.symbols)], 1)
        places = torch.arange(ended.shape[1])
        ended = torch.where(places >= lengths[:, None], self.decoder.symbols, ended)
        nats = log_p.gather(-1, ended[..., None].expand(*log_p.shape[:-1], 1))[..., 0]
        return torch.where(places <= lengths[:, None], nats, 0.0).sum(-1)

    def _log_pmf(self, scores: Tensor) -> Tensor:
        """log p of every symbol at every place (..., T, symbols + 1); the first is no end: a text is not empty."""
        ended = torch.zeros(scores.shape[-2:], dtype=torch.bool)
        ended[0, -1] = True
        return scores.masked_fill(ended, -math.inf).log_softmax(-1)

    def draw(self, z: Tensor, generator: torch.Generator) -> Ragged:
        return self._grown(z, generator)

    def mean(self, z: Tensor) -> Ragged:
        return self._grown(z, None)

    def _grown(self, z: Tensor, generator: torch.Generator | None) -> Ragged:
        """Texts token by token: drawn, or without a generator each time the likeliest token."""
        end, net = self.decoder.symbols, self.decoder
        state, over, columns = net.first(len(z)), torch.zeros(len(z), dtype=torch.bool), []
        for step in range(2 * int(self.longest) + _ROOM):
            scores = net.scores(state[:, None], z)[:, 0].double()
            if step == 0:
                scores[:, end] = -math.inf
            ids = scores.argmax(-1) if generator is None else _chosen(scores, generator)
            ids = torch.where(over, end, ids)
            columns.append(ids)
            over = over | (ids == end)
            if bool(over.all()):
                break
            state = net.next(state, ids)
        drawn = torch.stack(columns, 1)
        return Ragged(drawn[drawn != end], (drawn != end).sum(1))

    def distribution(self, z: Tensor, columns: int) -> dist.TorchDistribution:
        return Caption(self, z, columns)


def _chosen(scores: Tensor, generator: torch.Generator) -> Tensor:
    return torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]


def _cut(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Ids (n, T) without columns that no text reaches, any id behind an end; lengths (n,)."""
    inside = packed >= 0
    lengths = inside.sum(1)
    return packed[:, : int(lengths.max()) if len(lengths) else 1].clamp(min=0).long(), lengths


class Caption(dist.TorchDistribution):
    """p(text | z) as one site of a Pyro program: rows of ids (n, columns), -1 behind the end of each."""

    arg_constraints: dict = {}  # noqa: RUF012

    def __init__(self, part: TextPart, z: Tensor, columns: int) -> None:
        self.part, self.z = part, z
        super().__init__(z.shape[:-1], torch.Size((columns,)), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    def log_prob(self, value: Tensor) -> Tensor:
        return self.part.nats(self.z, value.reshape(-1, value.shape[-1]))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        with torch.no_grad():
            z = self.z.expand(*sample_shape, *self.z.shape)
            drawn = self.part.draw(z.reshape(-1, z.shape[-1]), generator)
            packed = self.part.pack(drawn, len(drawn))
            return packed.reshape(*z.shape[:-1], packed.shape[-1])

    def expand(self, batch_shape: torch.Size, _instance: None = None) -> "Caption":
        return Caption(self.part, self.z.expand(*batch_shape, self.z.shape[-1]), self.event_shape[0])


def part_for(event: Event, latent: int, hidden: tuple[int, ...], channels: tuple[int, ...], text: int) -> Part:
    """Networks for a part; convolutions where it is an image that they can halve as often as they do."""
    if isinstance(event, Text):
        return TextPart(event, latent, text)
    image = image_shape(event)
    fits = image is not None and min(image[1:]) >= 2 ** len(channels) and channels
    width = hidden[0] if hidden else _linear_width(event)
    return CellsPart(event, latent, width, hidden, channels if fits else ())


def _linear_width(event: Event) -> int:
    return Features(event, shared=has_pixels(event)).width

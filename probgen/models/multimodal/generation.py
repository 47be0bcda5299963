"""Drawing from a multimodal model: joint, given some parts, varied, along latents; captions and images."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen.errors import ParameterError, StructureError
from probgen.estimate.weights import Weights
from probgen.events import Array, Parts, Ragged, Table, Text
from probgen.features import image_shape
from probgen.models.multimodal import posteriors
from probgen.models.multimodal.parts import TextPart

if TYPE_CHECKING:
    from probgen.models.multimodal.family import MultimodalVAE

__all__ = ["POSTERIORS", "captions", "image_name", "latents", "parts_of", "records", "text_name", "traversal"]

POSTERIORS = ("importance", "guide")
_LOOKS = 32  # draws of z that judge captions
_TRIES = 6  # that speak one


def latents(
    model: "MultimodalVAE", given: Parts, n: int, posterior: str, draws: int, generator: torch.Generator
) -> Tensor:
    """n draws of p(z | given) for each of m rows, (m, n, latent_dim).

    "importance": chosen from ``draws`` weighted ones of guide and prior (Rubin 1988); "guide": the guide's own.
    """
    _check_draws(posterior, draws)
    if posterior == "guide":
        loc, scale = model._posterior(given)
        noise = torch.randn(len(given), n, model.latent_dim, generator=generator, dtype=loc.dtype)
        return loc[:, None] + scale[:, None] * noise
    found = []
    for rows in torch.arange(len(given)).split(64):
        some = given.take(rows)
        source = posteriors.proposal(model, some, generator)
        z, log_w = posteriors.drawn(model, some, [source], max(draws, 4 * n), generator, "resampled")
        chosen = torch.multinomial(log_w.T.softmax(1), n, replacement=True, generator=generator)
        found.append(z.transpose(0, 1)[torch.arange(len(some))[:, None], chosen])
    return torch.cat(found).to(model.dtype)


def records(
    model: "MultimodalVAE", n: int, given: Parts | None, keep: bool, generator: torch.Generator, posterior: str,
    draws: int,
) -> Parts:  # fmt: skip
    """n records, or n for each row of what is given; ``keep`` repeats the given parts, else they are drawn anew."""
    if given is None:
        return parts_of(model, model.latent.draw(n, generator), generator)
    m = len(given)
    if keep and any(given[name] is not None and not bool(seen.all()) for name, seen in given.seen.items()):
        raise ParameterError("given= with parts missing in some rows", "the same parts in all rows", "Sample in turns")
    if m > 1 and any(isinstance(part, Table) for part in model.parts_events.values()):
        raise ParameterError(f"given= has {m} rows, and a part is a Table", "one condition", "Sample one by one")
    z = latents(model, given, n, posterior, draws, generator).reshape(m * n, -1)
    drawn = parts_of(model, z, generator, [name for name in given if not keep or given[name] is None])
    again = given.take(torch.arange(m).repeat_interleave(n))
    values = {name: drawn.get(name, again[name]) for name in given}
    return Parts(values, None, m)


def parts_of(
    model: "MultimodalVAE", z: Tensor, generator: torch.Generator | None, names: Sequence[str] | None = None
) -> Any:
    """Parts drawn from p(part | z), rows of z in pieces; without a generator their means. A dict where named."""
    found: dict[str, Any] = {}
    for name, part in model.named_parts():
        if names is None or name in names:
            pieces = [part.mean(some) if generator is None else part.draw(some, generator) for some in z.split(1024)]
            found[name] = _joined(pieces)
    return Parts(found) if names is None else found


def _joined(pieces: list) -> Any:
    if isinstance(pieces[0], Ragged):
        return Ragged(torch.cat([p.values for p in pieces]), torch.cat([p.lengths for p in pieces]))
    return torch.cat(pieces)


def captions(
    model: "MultimodalVAE", given: Parts, name: str, posterior: str, draws: int, generator: torch.Generator
) -> Ragged:
    """The likeliest of some texts for each row: what the guide's mean and the heaviest draws of z speak.

    They are judged by p(text | given), the mean of p(text | z) over weighted draws, each row's from its own stream.
    """
    _check_draws(posterior, draws)
    part, rows = dict(model.named_parts())[name], []
    for some in torch.arange(len(given)).split(64):
        own = given.take(some)
        z, log_w = _judges(model, own, posterior, draws, generator)
        tries = [part.mean(one) for one in (model._posterior(own)[0], *z[:_TRIES])]
        packed = [part.pack(one, len(own)) for one in tries]
        scores = torch.stack([(log_w + part.nats(z, one)).logsumexp(0) for one in packed])  # (tries, rows)
        spoken = [one.split() for one in tries]
        rows += [spoken[k][i] for i, k in enumerate(scores.argmax(0).tolist())]
    return Ragged(torch.cat(rows), torch.tensor([len(row) for row in rows]))


def _judges(
    model: "MultimodalVAE", given: Parts, posterior: str, draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The heaviest draws of z first, (k, n, latent_dim), and their log weights (k, n)."""
    source = posteriors.proposal(model, given, generator)
    if posterior == "guide":
        z = source.place(Weights(model, given, None, generator).noise(_LOOKS, "captions"))
        return z.to(model.dtype), torch.zeros(z.shape[:2], dtype=torch.float64)
    found = posteriors.drawn(model, given, [source], draws, generator, "captions")
    log_w, heavy = found.log_w.topk(min(_LOOKS, len(found.z)), 0)
    return found.z.gather(0, heavy[..., None].expand(*heavy.shape, found.z.shape[-1])).to(model.dtype), log_w


def traversal(model: "MultimodalVAE", x: Parts, dims: Sequence[int], steps: int, span: float) -> Parts:
    """Means of all parts along some latents, the rest at the guide's mean of one row: groups of ``steps`` rows."""
    if len(x) != 1:
        raise ParameterError(f"{len(x)} rows to traverse from", "one row", "x[:1]")
    known = isinstance(dims, Sequence) and not isinstance(dims, str) and len(dims) > 0
    if not known or not all(isinstance(d, int | np.integer) and 0 <= d < model.latent_dim for d in dims):
        raise ParameterError(f"dims={dims!r}", f"numbers of latents from 0 to {model.latent_dim - 1}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise ParameterError(f"steps={steps!r}", "a whole number, at least 2")
    if not isinstance(span, int | float) or not 0 < span < math.inf:
        raise ParameterError(f"span={span!r}", "a positive number of prior standard deviations")
    loc = model._posterior(x)[0]
    z = loc.repeat(len(dims), steps, 1)
    for i, dim in enumerate(dims):
        z[i, :, dim] = torch.linspace(-span, span, steps, dtype=z.dtype)
    found = parts_of(model, z.reshape(-1, model.latent_dim), None)
    return Parts(dict(found), None, len(dims))


def text_name(model: "MultimodalVAE") -> str:
    """The one part that is text.

    Raises:
        StructureError: none, or several.
    """
    names = [name for name, part in model.named_parts() if isinstance(part, TextPart)]
    if len(names) != 1:
        raise StructureError(f"The text parts {names}", "one text part", "sample(n, given={...}) draws any part")
    return names[0]


def image_name(model: "MultimodalVAE") -> str:
    """The one part that stands beside the text; of several the one that is an image.

    Raises:
        StructureError: none, or several.
    """
    others = {name: part for name, part in model.parts_events.items() if not isinstance(part, Text)}
    images = [name for name, part in others.items() if image_shape(part) is not None]
    names = images if images else [name for name, part in others.items() if isinstance(part, Array)]
    if len(names) != 1:
        raise StructureError(f"The image parts {names}", "one image part", "sample(n, given={...}) draws any part")
    return names[0]


def _check_draws(posterior: str, draws: int) -> None:
    if posterior not in POSTERIORS:
        raise ParameterError(f"posterior={posterior!r}", " or ".join(map(repr, POSTERIORS)))
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 2:
        raise ParameterError(f"draws={draws!r}", "a whole number of weighted draws, at least 2")

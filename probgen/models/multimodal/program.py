"""The multimodal model as a Pyro program: z, and one site a part."""

from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.events import Parts

if TYPE_CHECKING:
    from probgen.models.multimodal.family import MultimodalVAE

__all__ = ["guide", "model"]


def model(family: "MultimodalVAE", x: Parts | None, n: int) -> Parts:
    """z ~ p(z), then a site a part of the part's name, over packed rows (text: token ids, -1 behind the end).

    A part that all rows lack has no site: it is integrated out. In single rows that lack it log p is 0.
    """
    n = n if x is None else len(x)
    packed = None if x is None else family._packed(x)
    values: dict[str, Any] = {}
    with pyro.plate("rows", n):
        z = pyro.sample("z", family.latent.distribution().expand((n,)))
        for name, part in family.named_parts():
            if x is not None and x[name] is None:
                values[name] = None
                continue
            seen = None if packed is None else packed[name]
            site = part.distribution(z, 1 if seen is None else seen.shape[1])
            rows = pyro.sample(name, site, obs=seen)
            values[name] = part.unpack(rows) if x is None else x[name]
    return Parts(values, None if x is None else x.seen)


def guide(family: "MultimodalVAE", x: Parts) -> Tensor:
    """q(z | the parts that each row has)."""
    loc, scale = family._posterior(x)
    with pyro.plate("rows", len(x)):
        return pyro.sample("z", dist.Normal(loc, scale).to_event(1)).to(torch.get_default_dtype())

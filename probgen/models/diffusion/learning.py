"""What a diffusion model descends: the squared error of its velocity."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from probgen.errors import FitError
from probgen.models.diffusion.trig import END

if TYPE_CHECKING:
    from probgen.models.diffusion.family import Diffusion

__all__ = ["VelocityError"]


class VelocityError(nn.Module):
    """E |v(y, t) - (cos t z - sin t x)|^2 a row, summed over coordinates; a Module, so that it can be distributed.

    Times are (pi/2) u^power with u spread evenly over the batch. The bound on p^SDE weighs errors by cot t (Song et
    al. 2021; Kingma et al. 2021), so a larger power, which has more early times, is nearer to it.

    Arguments:
        model: The diffusion.
        power: Of the times.
        forget: Share of rows whose covariates are hidden.
    """

    def __init__(self, model: "Diffusion", power: float, forget: float) -> None:
        super().__init__()
        self.model, self.power, self.forget = model, power, forget
        self.cells = model.rows.cells

    def forward(self, batch: Tensor, generator: torch.Generator, share: float) -> Tensor:
        model, n = self.model, len(batch)
        cells, given = batch[:, : self.cells], batch[:, self.cells :] if model.context is not None else None
        if model.dequantise:
            cells = model.rows.spread_out(cells, torch.rand(cells.shape, generator=generator, dtype=cells.dtype))
        x = model.rows.encode(cells).to(model.dtype)
        u = (torch.arange(n, dtype=x.dtype) + torch.rand(n, generator=generator, dtype=x.dtype)) / n
        t = END * u**self.power
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        cos, sin = t.cos()[:, None], t.sin()[:, None]
        keep = None
        if given is not None:
            keep = (torch.rand(n, generator=generator, dtype=x.dtype) >= self.forget).to(x.dtype)
        found = model._velocity(cos * x + sin * noise, t, model._covariates(given), keep)
        loss = (found - (cos * noise - sin * x)).square().sum(1).mean()
        if not math.isfinite(float(loss.detach())):
            raise FitError(
                f"The error of the velocity became {float(loss.detach())}", "finite numbers",
                "The model keeps its best state so far; try a smaller learning_rate, or check the data's scale",
            )  # fmt: skip
        return loss

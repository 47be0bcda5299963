"""The velocity v(y, t): a network's correction of what is right for independent normal coordinates."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probgen.errors import ParameterError
from probgen.events import Array, Event
from probgen.features import image_shape
from probgen.nn import AngleFeatures, ResidualMLP, UNet

__all__ = ["Velocity"]


class Velocity(nn.Module):
    """v(y, t) = cos t sin t (1 - s^2) / r^2 y + s / r F(y / r, t), r^2 = cos^2 t s^2 + sin^2 t.

    s are the data's deviations, a coordinate: with F = 0 the velocity is that of independent N(0, s^2), and what F must
    give has unit size at every t (the preconditioning of Karras et al. 2022, in trigonometric time).

    Arguments:
        event: Tells images.
        width: Coordinates.
        extra: Numbers of the covariates; 0 for none.
        hidden: Widths of the perceptron's hidden layers, all equal, two of them a residual block.
        channels: Of the U-net, for images; () for a perceptron.
        blocks: Residual blocks of each way through a level of the U-net.
    """

    def __init__(
        self, event: Event, width: int, extra: int, hidden: Sequence[int], channels: Sequence[int], blocks: int
    ) -> None:
        super().__init__()
        self.angles, self.extra = AngleFeatures(), extra
        heard = self.angles.width + (extra + 1 if extra else 0)
        shape = event.shape if isinstance(event, Array) else ()
        self.last = len(shape) == 3 and shape[2] <= 4
        self.image = image_shape(event) if channels else None
        if not channels:
            self.net: nn.Module = ResidualMLP(width, heard, width, hidden[0], max(1, len(hidden) // 2))
        elif self.image is None or math.prod(self.image) != width:
            raise ParameterError(
                f"channels for {event!r}", "images: an Array of shape (h, w), (h, w, c) or (c, h, w)", "channels=()"
            )
        else:
            self.net = UNet(self.image, heard, channels, blocks)

    def forward(
        self, y: Tensor, t: Tensor, deviation: Tensor, covariates: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        """(n, width) in the dtype of y.

        Arguments:
            y, t: Coordinates (n, width) and times (n,).
            deviation: s, (width,).
            covariates: (n, extra), with ``keep`` (n,) 1 where they are heard and 0 where not; both None without any.
        """
        own = next(self.parameters()).dtype
        cos, sin = t.cos()[:, None], t.sin()[:, None]
        s = deviation.to(y.dtype)
        square = cos.square() * s.square() + sin.square()
        r = square.sqrt()
        heard = self.angles(t.to(own))
        if covariates is not None and keep is not None:
            flag = keep.to(own)[:, None]
            heard = torch.cat([heard, covariates.to(own) * flag, flag], 1)
        correction = self._correct((y / r).to(own), heard).to(y.dtype)
        return cos * sin * (1 - s.square()) / square * y + s / r * correction

    def _correct(self, y: Tensor, heard: Tensor) -> Tensor:
        if self.image is None:
            return self.net(y, heard)
        planes, height, width = self.image
        if self.last:
            y = y.reshape(len(y), height * width, planes).transpose(1, 2)
        found = self.net(y.reshape(len(y), planes, height, width), heard)
        if self.last:
            found = found.reshape(len(found), planes, height * width).transpose(1, 2)
        return found.reshape(len(found), -1)

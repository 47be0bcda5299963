"""The velocity v(y, t): a network's correction of what is right for independent coordinates."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probgen.errors import ParameterError
from probgen.events import Event
from probgen.features import channels_last, image_shape
from probgen.models.diffusion.coordinates import Levels
from probgen.nn import AngleFeatures, ResidualMLP, UNet

__all__ = ["LevelVelocity", "Velocity"]

_SMALL = 16  # sides below which a U-net works on pixels, not on patches of them


class _Rows(nn.Module):
    """A row, its time and its covariates to some numbers a coordinate: a perceptron, or a U-net over an image.

    Arguments:
        event: Tells images.
        width: Coordinates.
        extra: Numbers of the covariates; 0 for none.
        hidden: Widths of the perceptron's hidden layers, all equal, two of them a residual block.
        channels: Of the U-net, for images; () for a perceptron.
        blocks: Residual blocks of each way through a level of the U-net.
        each: Numbers that come out for each coordinate.
    """

    def __init__(
        self,
        event: Event,
        width: int,
        extra: int,
        hidden: Sequence[int],
        channels: Sequence[int],
        blocks: int,
        each: int = 1,
    ) -> None:
        super().__init__()
        self.angles, self.extra, self.each = AngleFeatures(), extra, each
        heard = self.angles.width + (extra + 1 if extra else 0)
        self.last = channels_last(event)
        self.image = image_shape(event) if channels else None
        if not channels:
            self.net: nn.Module = ResidualMLP(width, heard, width * each, hidden[0], max(1, len(hidden) // 2))
        elif self.image is None or math.prod(self.image) != width:
            raise ParameterError(
                f"channels for {event!r}", "images: an Array of shape (h, w), (h, w, c) or (c, h, w)", "channels=()"
            )
        else:
            patch = 1 if min(self.image[1:]) < _SMALL else 2
            self.net = UNet(self.image, heard, channels, blocks, outputs=self.image[0] * each, patch=patch)

    def _numbers(self, y: Tensor, t: Tensor, covariates: Tensor | None, keep: Tensor | None) -> Tensor:
        """(n, width, each) in the dtype of y, from rows of about unit size."""
        own = next(self.parameters()).dtype
        heard = self.angles(t.to(own))
        if covariates is not None and keep is not None:
            flag = keep.to(own)[:, None]
            heard = torch.cat([heard, covariates.to(own) * flag, flag], 1)
        if self.image is None:
            return self.net(y.to(own), heard).to(y.dtype).unflatten(1, (-1, self.each))
        planes, height, width = self.image
        rows = y.to(own).reshape(len(y), planes, height, width)
        if self.last:
            rows = y.to(own).reshape(len(y), height, width, planes).movedim(3, 1)
        found = self.net(rows, heard).reshape(len(y), planes, self.each, height, width)
        found = found.movedim((1, 2), (3, 4)) if self.last else found.movedim(2, 4)
        return found.reshape(len(y), -1, self.each).to(y.dtype)


class Velocity(_Rows):
    """v(y, t) = cos t sin t (1 - s^2) / r^2 y + s / r F(y / r, t), r^2 = cos^2 t s^2 + sin^2 t.

    s are the data's deviations, a coordinate: with F = 0 the velocity is that of independent N(0, s^2), and what F must
    give has unit size at every t (the preconditioning of Karras et al. 2022, in trigonometric time).
    """

    def forward(
        self, y: Tensor, t: Tensor, deviation: Tensor, covariates: Tensor | None, keep: Tensor | None
    ) -> Tensor:
        """(n, width) in the dtype of y.

        Arguments:
            y, t: Coordinates (n, width) and times (n,).
            deviation: s, (width,).
            covariates: (n, extra), with ``keep`` (n,) 1 where they are heard and 0 where not; both None without any.
        """
        cos, sin = t.cos()[:, None], t.sin()[:, None]
        s = deviation.to(y.dtype)
        square = cos.square() * s.square() + sin.square()
        r = square.sqrt()
        correction = self._numbers(y / r, t, covariates, keep)[..., 0]
        return cos * sin * (1 - s.square()) / square * y + s / r * correction


class LevelVelocity(_Rows):
    """The velocity of cells of few levels, by the posterior of each cell: E[x | y] = sum_k P(k | y) c_k.

    P(k | y) is proportional to margin_k exp(F_k(y, t)) N(y_i; cos t c_k, sin^2 t) for the cell's own y_i, so that F is
    only asked what the other cells say of it: with F = 0 the velocity is right for independent cells, and where the
    noise is less than the step between levels there is nothing to learn.

    Arguments:
        block: The cells.

    Dieleman et al. (2022), whose categorical logits have to learn the factor of y_i; Austin et al. (2021).
    """

    def __init__(
        self,
        event: Event,
        block: Levels,
        extra: int,
        hidden: Sequence[int],
        channels: Sequence[int],
        blocks: int,
    ) -> None:
        super().__init__(event, block.cells, extra, hidden, channels, blocks, block.most)

    def log_levels(self, y: Tensor, t: Tensor, block: Levels, covariates: Tensor | None, keep: Tensor | None) -> Tensor:
        """log P(k | y), (n, cells, levels); other arguments as for ``Velocity``."""
        cos, sin = t.cos()[:, None], t.sin()[:, None]
        s = block.deviation.to(y.dtype)
        r = (cos.square() * s.square() + sin.square()).sqrt()
        seen = ((y[..., None] - cos[..., None] * block.places.to(y.dtype)) / sin[..., None]).square()
        heard = self._numbers(y / r, t, covariates, keep)
        return (block.log_margin.to(y.dtype) + heard - 0.5 * seen).log_softmax(-1)

    def seen(self, y: Tensor, t: Tensor, block: Levels, covariates: Tensor | None, keep: Tensor | None) -> Tensor:
        """E[x | y] in coordinates, (n, cells)."""
        return (self.log_levels(y, t, block, covariates, keep).exp() * block.places.to(y.dtype)).sum(-1)

    def forward(self, y: Tensor, t: Tensor, block: Levels, covariates: Tensor | None, keep: Tensor | None) -> Tensor:
        """v(y, t) at t > 0, (n, cells)."""
        return (t.cos()[:, None] * y - self.seen(y, t, block, covariates, keep)) / t.sin()[:, None]

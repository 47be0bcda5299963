"""The parameters of a state-space model: unconstrained numbers in standardised units, and the matrices they make."""

import torch
from torch import Tensor, nn

from probgen.models.statespace.em import lower_factor
from probgen.models.statespace.kalman import System
from probgen.models.statespace.paths import Scale
from probgen.models.statespace.structure import Structure

__all__ = ["Matrices"]


class Matrices(nn.Module):
    """Covariances through lower triangular factors, which may be singular; fixed entries are no parameters.

    Arguments:
        shape: What is free.
        width: Columns of the data, D.
        inputs: Columns of the covariates, U.
        floor: Added to the diagonal of R.

    The buffers ``shift``, ``scale`` (D,) and ``input_scale`` (U,) are the units of the data; ``spread_known`` says that
    P0 is given.
    """

    state_factor: Tensor
    noise_factor: Tensor
    start_factor: Tensor
    shift: Tensor
    scale: Tensor
    input_scale: Tensor | None
    spread_known: Tensor

    def __init__(self, shape: Structure, width: int, inputs: int, floor: float) -> None:
        super().__init__()
        self.shape, self.width, self.inputs, self.floor = shape, width, inputs, floor
        s, k, free = len(shape.names), shape.free_rows, shape.emission is None
        for name, size in {"state": s, "start": s, "noise": width}.items():
            self.register_parameter(f"{name}_factor", nn.Parameter(_zeros(size, size)))
        self.start_mean = nn.Parameter(_zeros(s))
        self.rows = nn.Parameter(shape.transition[:k].clone()) if k else None
        self.emission = nn.Parameter(_zeros(width, s)) if free else None
        self.offset = nn.Parameter(_zeros(width)) if shape.offset else None
        self.feedthrough = nn.Parameter(_zeros(width, inputs)) if inputs else None
        self.control = nn.Parameter(_zeros(s, inputs)) if inputs and free else None
        self.register_buffer("shift", _zeros(width))
        self.register_buffer("scale", _zeros(width) + 1)
        self.register_buffer("input_scale", _zeros(inputs) + 1 if inputs else None)
        self.register_buffer("spread_known", torch.tensor(False))

    @property
    def units(self) -> Scale:
        return Scale(self.shift, self.scale)

    @property
    def input_units(self) -> Tensor:
        """Root mean squares of the covariates, shape (U,)."""
        return _zeros(0) if self.input_scale is None else self.input_scale

    def system(self) -> System:
        """The matrices in standardised units, differentiable in the parameters."""
        shape, s = self.shape, len(self.shape.names)
        start = self.start_factor.detach() if bool(self.spread_known) else self.start_factor
        return System(
            shape.transition if self.rows is None else torch.cat([self.rows, shape.transition[shape.free_rows :]]),
            _zeros(s, self.inputs) if self.control is None else self.control,
            _square(self.state_factor * shape.blocks),
            self.emission if self.emission is not None else shape.emission,  # type: ignore[arg-type]
            _zeros(self.width, self.inputs) if self.feedthrough is None else self.feedthrough,
            _zeros(self.width) if self.offset is None else self.offset,
            _square(self.noise_factor) + self.floor * torch.eye(self.width, dtype=torch.float64),
            self.start_mean,
            _square(start),
        )

    def found(self) -> System:
        """The matrices in standardised units, as plain numbers."""
        return System(*(part.detach() for part in self.system()))

    @torch.no_grad()
    def write(self, system: System) -> None:
        """Puts matrices in standardised units into the parameters."""
        for name in ("emission", "offset", "feedthrough", "control", "start_mean"):
            if getattr(self, name) is not None:
                getattr(self, name).copy_(getattr(system, name))
        if self.rows is not None:
            self.rows.copy_(system.transition[: self.shape.free_rows])
        eye = torch.eye(self.width, dtype=torch.float64)
        self.state_factor.copy_(lower_factor(system.state_noise) * self.shape.blocks)
        self.noise_factor.copy_(lower_factor(system.noise - self.floor * eye))
        self.start_factor.copy_(lower_factor(system.start_cov))

    def state_units(self) -> tuple[Tensor, Tensor]:
        """Scale and shift from standardised states to those shown, each (S,): the data's units in a structure."""
        s = len(self.shape.names)
        if self.shape.emission is None:
            return _zeros(s) + 1, _zeros(s)
        times = s // self.width
        return self.scale.repeat(times), torch.where(self.shape.level, self.shift.repeat(times), 0.0)

    def in_data_units(self) -> System:
        """The matrices in the units of the data and the covariates."""
        m, (unit, move) = self.system(), self.state_units()
        u, column = self.input_units, self.scale[:, None]
        return System(
            m.transition * unit[:, None] / unit,
            m.control * unit[:, None] / u,
            m.state_noise * unit[:, None] * unit,
            m.emission * column / unit,
            m.feedthrough * column / u,
            m.offset if self.offset is None else self.shift + self.scale * m.offset,
            m.noise * column * self.scale,
            m.start_mean * unit + move,
            m.start_cov * unit[:, None] * unit,
        )

    @property
    def n_params(self) -> int:
        """Free parameters: what a change of the states' basis leaves alike counts once, a known P0 not at all."""
        s, known = len(self.shape.names), bool(self.spread_known)
        count = sum(p.numel() for name, p in self.named_parameters() if not name.endswith("_factor"))
        count += int(self.shape.blocks.tril().sum()) + self.width * (self.width + 1) // 2
        count += 0 if known else s * (s + 1) // 2
        if self.shape.emission is None:
            count -= s * (s - 1) // 2 if known else s * s
        return count

    @torch.no_grad()
    def measure(self, x: Tensor, inputs: Tensor | None, least: float, sequences: int) -> None:
        """Takes the units from data: mean and standard deviation of each column, from the cells recorded.

        Arguments:
            x: Shape (total, D), NaN where missing.
            inputs: Shape (total, U).
            least: Smallest scale.
            sequences: With one only, P0 can't be learnt.
        """
        shift = x.nanmean(0).nan_to_num()
        rest = x - shift
        peak = rest.nan_to_num().abs().amax(0).clamp(min=1e-290)
        spread = peak * (rest / peak).square().nanmean(0).sqrt().nan_to_num()
        constant = spread <= 1e-13 * shift.abs().clamp(min=1e-280)
        size = torch.where(shift != 0, shift.abs(), 1.0)
        self.shift.copy_(shift)
        self.scale.copy_(torch.where(constant, size, spread).clamp(min=least))
        if inputs is not None:
            size = inputs.square().mean(0).sqrt()
            self.input_units.copy_(torch.where(size > 0, size, 1.0))
        self.spread_known.fill_(sequences == 1)


def _zeros(*size: int) -> Tensor:
    return torch.zeros(*size, dtype=torch.float64)


def _square(factor: Tensor) -> Tensor:
    """L L' of the lower triangle."""
    lower = factor.tril()
    return lower @ lower.T

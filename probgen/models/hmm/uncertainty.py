"""Standard errors from the observed information."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from probgen import chains
from probgen.emissions import Emission, Normal
from probgen.errors import ParameterError
from probgen.events import Ragged
from probgen.models.hmm.program import _Natural

if TYPE_CHECKING:
    from probgen.models.hmm.hmm import HMM

_EDGE = 1e-4  # a probability nearer than this to 0 or 1 stands on the boundary
_GRADIENT = 1e-3  # in units of a standard error: how far from the optimum the fit may be


def standard_errors(hmm: "HMM", x: Ragged, given: Ragged | None) -> dict[str, np.ndarray]:
    """The inverse of the negative Hessian of the log-likelihood (not penalised), carried to interpretable parameters
    by the delta method. The Hessian's columns are central differences of the exact gradient. A free start of few
    sequences always lies at the edge of its simplex, and the start of an autoregression is penalised: where so they
    are held fixed, and their errors are NaN."""
    _refuse_boundary(hmm)
    _refuse_floor(hmm.emission)
    names = [name for name, p in hmm.named_parameters() if p.requires_grad and _free(name, hmm)]
    raw = {name: hmm.get_parameter(name).detach().clone() for name in names}
    gradient = _Gradient(hmm, x, given, raw)
    flat = gradient.pack(raw)
    steps = _steps(gradient, flat)
    information = _information(gradient, flat, steps)
    values, vectors = torch.linalg.eigh(information)
    # logits of one row shift together without any effect: those directions have no information and need none
    null = values.abs() < 1e-7 * values.abs().max()
    if (values[~null] <= 0).any():
        raise ParameterError(
            "The log-likelihood is not at a maximum: its Hessian has a direction of growth",
            "an optimum",
            "Fit with a smaller tol and more restarts",
        )
    inverse = torch.where(null, 0.0, 1 / torch.where(null, 1.0, values))
    covariance = (vectors * inverse) @ vectors.T * steps * steps[:, None]
    slope = gradient(flat)
    off = float(slope @ covariance @ slope) ** 0.5
    if off > _GRADIENT * len(flat) ** 0.5 + 0.05:
        raise ParameterError(
            f"The fit is {off:.3g} standard errors away from its optimum",
            "a converged maximum-likelihood fit of these data",
            "fit(x, tol=1e-12, max_iter=5000) without priors, on the data that are asked about",
        )
    found = _delta(hmm, raw, covariance)
    if any(name.startswith("transitions.initial_logits") for name in names):
        start = hmm.transitions.natural()["initial"].detach().numpy()
        found["initial"] = np.where((start < _EDGE) | (start > 1 - _EDGE), np.nan, found["initial"])
    if hmm.emission.lags:
        found |= {name: np.full_like(errors, np.nan) for name, errors in found.items() if name.startswith("start_")}
    return found


def _free(name: str, hmm: "HMM") -> bool:
    if hmm.emission.lags and name.startswith("emission.start."):
        return False
    return hmm.states > 1 or not name.startswith("transitions.")


def _refuse_boundary(hmm: "HMM") -> None:
    """Probabilities at 0 or 1 that are no structural zeros, and variances at their floor, have no normal errors."""
    mask = getattr(hmm.transitions, "mask", None)
    for name, value in {**hmm.transitions.natural(), **hmm.emission.natural()}.items():
        inside = value.detach()
        shares = name in ("transition", "probs", "duration", "leaving") or (
            name == "initial" and getattr(hmm.transitions, "initial", "free") == "stationary"
        )
        if not shares:
            continue
        if name == "transition" and mask is not None and mask.shape == inside.shape:
            inside = inside[mask & (mask.sum(1, keepdim=True) > 1)]
        edge = (inside < _EDGE) | (inside > 1 - _EDGE)
        if name == "transition" and mask is None:
            forced = inside == 0
            edge = edge & ~forced & (inside.shape[1] - forced.sum(1, keepdim=True) > 1)
        if edge.any() and hmm.states > 1:
            raise ParameterError(
                f"The fitted {name} holds {float(inside[edge][0]):.3g}: the optimum is on the boundary",
                "an optimum inside the parameter space",
                "Fewer states, structural zeros where moves are absent, or priors and NUTS (bayes_model)",
            )


def _refuse_floor(emission: Emission) -> None:
    for part in emission.modules():
        if not isinstance(part, Normal) or not part.floor:
            continue
        scale, unit = part.scale().detach(), part.data_variance.sqrt()
        least = torch.linalg.svdvals(scale / unit[:, None])[:, -1] if part.matrix else (scale / unit).min()
        if bool((least.square() <= part.floor * (1 + 1e-6)).any()):
            raise ParameterError(
                f"A fitted variance stands at its floor, {part.floor:g} of the data's",
                "an optimum inside the parameter space",
                "Fewer states, a tied covariance, or priors and NUTS (bayes_model)",
            )


class _Gradient:
    """The gradient of the log-likelihood in the raw parameters as one vector."""

    def __init__(self, hmm: "HMM", x: Ragged, given: Ragged | None, raw: dict[str, Tensor]) -> None:
        self.hmm, self.lengths = hmm, x.lengths
        self.rows, self.inputs = hmm._rows(x, given), hmm._inputs(given)
        self.shapes = {name: value.shape for name, value in raw.items()}

    def pack(self, raw: dict[str, Tensor]) -> Tensor:
        return torch.cat([value.reshape(-1) for value in raw.values()])

    def unpack(self, flat: Tensor) -> dict[str, dict[str, Tensor]]:
        parts: dict[str, dict[str, Tensor]] = {"emission": {}, "transitions": {}}
        pieces = flat.split([shape.numel() for shape in self.shapes.values()])
        for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True):
            part, _, rest = name.partition(".")
            parts[part][rest] = piece.reshape(shape)
        return parts

    def _total(self, flat: Tensor) -> Tensor:
        parts = self.unpack(flat)
        table = functional_call(self.hmm.emission, parts["emission"], (self.rows,))[:, self.hmm._uses]
        initial, matrix = functional_call(self.hmm.transitions, parts["transitions"], (self.inputs,))
        return chains.log_likelihood(chains.Chain(initial, matrix, table, self.lengths)).sum()

    @torch.no_grad()
    def nats(self, flat: Tensor) -> float:
        return float(self._total(flat))

    def __call__(self, flat: Tensor) -> Tensor:
        with torch.enable_grad():
            flat = flat.detach().clone().requires_grad_()
            return torch.autograd.grad(self._total(flat), flat)[0]


def _steps(gradient: _Gradient, flat: Tensor) -> Tensor:
    """A step in each parameter that costs 1e-6 to 1e-4 nats: the parameters' own units, whatever those of the data.

    Parameters that the likelihood ignores keep a small step.
    """
    best = gradient.nats(flat)
    out = torch.where(flat.isfinite(), 1e-5 * flat.abs().clamp(min=1.0), 1.0)
    for i in flat.isfinite().nonzero()[:, 0].tolist():
        h = float(out[i])
        for _ in range(40):
            moved = flat.clone()
            moved[i] += h
            cost = abs(best - gradient.nats(moved))
            if 1e-6 <= cost <= 1e-4:
                out[i] = h
                break
            h *= 0.2 if not cost <= 1e-4 else 5.0
    return out


def _information(gradient: _Gradient, flat: Tensor, steps: Tensor) -> Tensor:
    """The negative Hessian in units of the steps."""
    moving = flat.isfinite()
    columns = []
    for i in range(len(flat)):
        step = torch.zeros_like(flat)
        if moving[i]:
            step[i] = steps[i]
            columns.append((gradient(flat + step) - gradient(flat - step)) * steps / 2)
        else:
            columns.append(step)
    information = -torch.stack(columns)
    return torch.nan_to_num((information + information.T) / 2)


def _delta(hmm: "HMM", raw: dict[str, Tensor], covariance: Tensor) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    sizes = {name: value.numel() for name, value in raw.items()}
    places = dict(zip(sizes, np.cumsum([0, *sizes.values()])[:-1].tolist(), strict=True))
    for part, module in (("transitions", hmm.transitions), ("emission", hmm.emission)):
        mine = {n.partition(".")[2]: v for n, v in raw.items() if n.startswith(f"{part}.")}
        if not mine:
            continue
        index = torch.cat(
            [torch.arange(places[f"{part}.{n}"], places[f"{part}.{n}"] + v.numel()) for n, v in mine.items()]
        )
        block = covariance[index][:, index]
        for name in module.natural():

            def one(*values: Tensor, name: str = name, module=module, keys=tuple(mine)) -> Tensor:
                own = {f"part.{key}": value for key, value in zip(keys, values, strict=True)}
                return functional_call(_Natural(module), own, ())[name]

            slopes = torch.autograd.functional.jacobian(one, tuple(mine.values()))
            shape = one(*mine.values()).shape
            jacobian = torch.cat([s.reshape(shape.numel(), -1) for s in slopes], 1).nan_to_num()
            variance = ((jacobian @ block) * jacobian).sum(1).clamp(min=0)
            found[name] = variance.sqrt().reshape(shape).detach().numpy()
    return found

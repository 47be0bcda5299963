"""log p(x, z) and log p(x | z) under their own names: neither is the likelihood of x."""

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from probgen.errors import ShapeError, StructureError
from probgen.model import GenerativeModel, pyro_lock

__all__ = ["log_joint", "log_lik_given_latents"]


def log_joint(model: GenerativeModel, x: Any, z: Tensor | Mapping[str, Tensor], *, given: Any = None) -> Tensor:
    """log p(x, z) of each row, in nats, float64: log p(z) + log p(x | z). Not log p(x), which integrates z out.

    Arguments:
        model: A fitted model.
        x: Data of its event, n rows.
        z: Latents (n, ...) or draws of them (S, n, ...), of a program with one latent site; else a dict of them, by
            site.

    Returns:
        Shape (n,), or (S, n) for draws: a tensor, no LogProb, for it does not compare with likelihoods.

    Raises:
        StructureError: the program's latent sites are not those given.
        ShapeError: latents for other rows.
    """
    return _scores(model, x, z, given, observed_only=False)


def log_lik_given_latents(
    model: GenerativeModel, x: Any, z: Tensor | Mapping[str, Tensor], *, given: Any = None
) -> Tensor:
    """log p(x | z) of each row, in nats, float64: what WAIC and PSIS-LOO ask of posterior draws z. Not log p(x), and
    without the log p(z) of ``log_joint``.

    Arguments, returns and errors are those of ``log_joint``.
    """
    return _scores(model, x, z, given, observed_only=True)


@torch.no_grad()
def _scores(model: GenerativeModel, x: Any, z: Any, given: Any, observed_only: bool) -> Tensor:
    model._check_fitted()
    checked = model._check(x)
    given = model._check_given(given, checked)
    with pyro_lock(torch.Generator()), pyro.validation_enabled(False):
        latents = _latents(model, checked.x, given)
        named = dict(z) if isinstance(z, Mapping) else dict.fromkeys(latents, z)
        if set(named) != set(latents) or (not isinstance(z, Mapping) and len(latents) != 1):
            came = sorted(named) if isinstance(z, Mapping) else "one tensor"
            raise StructureError(f"Latents {came} for the sites {sorted(latents)}", "a value for each, by name")
        values = {name: torch.as_tensor(v).to(latents[name]["value"].dtype) for name, v in named.items()}
        draws = _stacked(values, latents, len(checked))
        rows = [_one(model, checked.x, given, draw, observed_only) for draw in draws]
    return rows[0] if _single(values, latents) else torch.stack(rows)


def _latents(model: GenerativeModel, x: Any, given: Any) -> dict[str, Any]:
    """Sites that the program draws when x is given."""
    nodes = poutine.trace(model.model).get_trace(x, given).nodes.items()
    drawn = [(n, s) for n, s in nodes if s["type"] == "sample" and not s["is_observed"]]
    return {n: s for n, s in drawn if type(s["fn"]).__name__ != "_Subsample"}


def _single(values: Mapping[str, Tensor], latents: Mapping[str, Any]) -> bool:
    return all(value.ndim == latents[name]["value"].ndim for name, value in values.items())


def _stacked(values: Mapping[str, Tensor], latents: Mapping[str, Any], n: int) -> list[dict[str, Tensor]]:
    if _single(values, latents):
        values = {name: value[None] for name, value in values.items()}
    for name, value in values.items():
        wanted = tuple(latents[name]["value"].shape)
        if tuple(value.shape[1:]) != wanted or len(value) != len(next(iter(values.values()))):
            came = tuple(value.shape[1:] if len(value) == 1 else value.shape)
            raise ShapeError(f"z[{name!r}] of shape {came} for {n} rows", f"{wanted}, or (S, *{wanted})")
    return [dict(zip(values, draw, strict=True)) for draw in zip(*values.values(), strict=True)]


def _one(model: GenerativeModel, x: Any, given: Any, z: dict[str, Tensor], observed_only: bool) -> Tensor:
    trace = poutine.trace(poutine.condition(model.model, z)).get_trace(x, given)
    trace.compute_log_prob()
    sites = [s for n, s in trace.nodes.items() if s["type"] == "sample" and not (observed_only and n in z)]
    parts = [site["log_prob"].to(torch.float64) for site in sites if type(site["fn"]).__name__ != "_Subsample"]
    for part in parts:
        if part.ndim != 1 or len(part) not in (1, len(x)):
            raise StructureError(
                f"{type(model).__name__}'s program scores a site by shape {tuple(part.shape)}",
                "one number a row: a plate over rows, the rightmost",
                "Cells belong into .to_event(...)",
            )
    return torch.stack(torch.broadcast_tensors(*parts)).sum(0).expand(len(x))

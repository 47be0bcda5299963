"""Data sets as a model would make them: as many rows as the data have, all from one set of parameters."""

import copy
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.errors import StructureError
from probgen.evaluate.loo.rows import Data, draws_of
from probgen.events import Ragged, take
from probgen.model import GenerativeModel, generator_of

__all__ = ["masked", "places_of", "prior_numbers", "replicates", "source_of", "with_numbers"]

_CELLS = 1 << 22  # numbers drawn at once


def source_of(model: GenerativeModel, prior: bool) -> str:
    """What replicated data are drawn from: "prior predictive", "posterior predictive", or "plug-in" of a point fit."""
    if prior:
        return "prior predictive"
    draws = draws_of(model)
    if draws is None:
        return "plug-in"
    approximate = draws.method in ("svi", "laplace")
    return "approximate posterior predictive" if approximate else "posterior predictive"


def places_of(places: np.ndarray) -> Tensor:
    """Numbers of posterior draws, in chain-major order."""
    return torch.from_numpy(np.ascontiguousarray(places, dtype=np.int64))


def replicates(data: Data, reps: int, prior: bool, seed: int | None, places: Tensor | None = None) -> Iterator[Any]:
    """Data sets like the data: as many rows, of the same lengths, under the same covariates.

    Arguments:
        reps: How many.
        prior: From the prior, else from the posterior; of a point fit from the fit itself.
        places: Which posterior draw each is made from, (reps,); None takes them at random, evenly.

    Yields:
        Checked cells: a tensor (n, ...) or a Ragged.

    Raises:
        StructureError: a family that can't do so, or has no prior.
    """
    model, generator = data.model, generator_of(seed)
    given = None if data.covariates is None else data.covariates.x
    draws = draws_of(model)
    if prior:
        yield from _from_prior(data, reps, given, generator)
    elif draws is None:
        yield from _plug_in(data, reps, given, generator)
    else:
        many = draws.chains * draws.draws
        if places is None:
            turns = torch.cat([torch.randperm(many, generator=generator) for _ in range(-(-reps // many))])
            places = turns[:reps]
        yield from _from_draws(data, places, given, generator)


def _from_draws(data: Data, places: Tensor, given: Any, generator: torch.Generator) -> Iterator[Any]:
    if (hook := getattr(data.model, "_replicate", None)) is not None:
        with torch.no_grad():
            yield from hook(places, len(data), given, generator)
        return
    yield from _from_numbers(data, _kept(data.model).z()[places], given, generator)


def _from_prior(data: Data, reps: int, given: Any, generator: torch.Generator) -> Iterator[Any]:
    if (hook := getattr(data.model, "_replicate_prior", None)) is not None:
        with torch.no_grad():
            yield from hook(reps, len(data), given, generator)
        return
    yield from _from_numbers(data, prior_numbers(data.model, reps, generator), given, generator)


def _from_numbers(data: Data, numbers: Tensor, given: Any, generator: torch.Generator) -> Iterator[Any]:
    """A data set for each row of parameters (R, P), which ``sample`` of a family with a closed form does not read."""
    model = data.model
    at = getattr(model, "_sample_at", None)
    if at is None and hasattr(model, "_parametric") and given is None and isinstance(data.checked.x, Tensor):
        at = model._parametric().sample_at  # type: ignore[operator]
    if at is not None:
        with torch.no_grad():
            yield from (at(z, len(data), given, generator) for z in numbers)
        return
    for z in numbers:
        twin = Data(with_numbers(data.model, z[None]), data.checked, data.covariates)
        yield next(_plug_in(twin, 1, given, generator))


def prior_numbers(model: GenerativeModel, n: int, generator: torch.Generator) -> Tensor:
    """n draws of a Bayesian fit's unconstrained parameters from their prior, (n, P).

    Raises:
        StructureError: a point fit, or a family that does not tell its prior.
    """
    if draws_of(model) is not None:
        if (hook := getattr(model, "_prior_numbers", None)) is not None:
            return hook(n, generator)
        if hasattr(model, "_parametric"):
            return model._parametric().coordinates.draw(n, generator)  # type: ignore[operator]
    why = "is a point fit: it has no prior" if draws_of(model) is None else "does not tell its prior"
    do = "fit(method='nuts')" if draws_of(model) is None else "Leave prior=True out"
    raise StructureError(f"This {type(model).__name__} {why}", "a Bayesian fit of a family with priors", do)


def _kept(model: GenerativeModel) -> Any:
    kept = getattr(model, "kept", None)
    if not hasattr(kept, "z"):
        raise StructureError(
            f"{type(model).__name__} does not draw data sets of one posterior draw",
            "a family that keeps its draws",
            "Compare sample(n) with the data by two_sample",
        )
    return kept


def with_numbers(model: GenerativeModel, z: Tensor) -> GenerativeModel:
    """The model with other parameters (S, P) as its posterior draws, in one chain; the model itself is not changed."""
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    old = _kept(model)
    kept = copy.copy(old)
    kept._buffers = dict(old._buffers)
    kinds = len(old.stats) // max(int(old.facts[1] * old.facts[2]), 1)
    kept.numbers, kept.stats = z.reshape(-1), torch.zeros(kinds * len(z), dtype=torch.float64)
    kept.facts = torch.tensor([int(old.facts[0]), 1, len(z)])
    twin._modules["kept"] = kept
    return twin


def _plug_in(data: Data, reps: int, given: Any, generator: torch.Generator) -> Iterator[Any]:
    """Data sets from the parameters in place, in blocks."""
    x = data.checked.x
    if isinstance(x, Mapping):
        raise StructureError(f"Data sets of {data.model.event!r}", "rows of one event", "Take one part of the record")
    cells = max(1, (x.values if isinstance(x, Ragged) else x).numel())
    step = max(1, _CELLS // cells)
    for first in range(0, reps, step):
        some = min(step, reps - first)
        with torch.no_grad():
            drawn = _block(data.model, x, some, given, generator)
        yield from drawn


def _block(model: GenerativeModel, x: Any, reps: int, given: Any, generator: torch.Generator) -> list[Any]:
    n = len(x)
    if isinstance(x, Ragged):
        return _sequences(model, x, reps, given, generator)
    if given is None:
        return list(model._sample(reps * n, None, generator=generator).reshape(reps, n, *x.shape[1:]))
    drawn = model._sample(reps, given, generator=generator)
    return list(drawn.reshape(n, reps, *x.shape[1:]).transpose(0, 1))


def _sequences(model: GenerativeModel, x: Ragged, reps: int, given: Any, generator: torch.Generator) -> list[Any]:
    """Sequences as long as those of the data, where the family lets one say so."""
    n, lengths = len(x), x.lengths
    if given is not None:
        drawn = model._sample(reps, given, generator=generator)
        return [take(drawn, torch.arange(n) * reps + r) for r in range(reps)]
    if "length" not in inspect.signature(model._sample).parameters:
        drawn = model._sample(reps * n, None, generator=generator)
        return [take(drawn, torch.arange(n) + r * n) for r in range(reps)]
    parts: list[list[Tensor]] = [[torch.empty(0)] * n for _ in range(reps)]
    for length in lengths.unique().tolist():
        which = (lengths == length).nonzero()[:, 0].tolist()
        drawn = model._sample(reps * len(which), None, generator=generator, length=length).split()
        for place, part in enumerate(drawn):
            parts[place // len(which)][which[place % len(which)]] = part
    return [Ragged(torch.cat(part), lengths) for part in parts]


def masked(drawn: Any, x: Any) -> Any:
    """Drawn cells with the gaps of the data, where shapes agree."""
    if isinstance(x, Ragged):
        same = isinstance(drawn, Ragged) and torch.equal(drawn.lengths, x.lengths)
        gaps = x.values.isnan() if x.values.is_floating_point() else None
        if not same or gaps is None or not bool(gaps.any()):
            return drawn
        return Ragged(torch.where(gaps, math.nan, drawn.values), x.lengths)
    if not x.is_floating_point() or not bool(x.isnan().any()):
        return drawn
    return torch.where(x.isnan(), math.nan, drawn.to(x.dtype))

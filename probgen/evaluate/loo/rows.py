"""The rows of a cross-validation: data that can be cut, and log p(x_i | theta_s) of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.errors import DataError, ParameterError, StructureError
from probgen.events import Checked, Ragged
from probgen.model import GenerativeModel, generator_of
from probgen.posterior import Draws

__all__ = ["Data", "draws_of", "log_lik_blocks", "log_lik_of", "log_lik_steps_of"]

_CELLS = 1 << 22  # numbers of log p(x_i | theta_s) held at once
_STEPS = 1 << 16  # of prefixes scored at once


def draws_of(model: GenerativeModel) -> Draws | None:
    """The model's posterior draws, or None for a point fit."""
    draws = getattr(model, "draws", None)
    return draws if isinstance(draws, Draws) else None


@dataclass(frozen=True, eq=False)
class Data:
    """Checked rows and covariates of a model, which can be cut and given back as a user would give them.

    Arguments:
        model: That they are for.
        checked: Rows.
        covariates: Of the rows, where the model declares a context.
    """

    model: GenerativeModel
    checked: Checked
    covariates: Checked | None = None

    @classmethod
    def of(cls, model: GenerativeModel, x: Any, given: Any) -> "Data":
        """Checked outside data; raises as the model's verbs do."""
        if not isinstance(model, GenerativeModel):
            raise ParameterError(f"A {type(model).__name__} for a model", "a fitted model", "probgen.wrap takes others")
        model._check_fitted()
        checked = model._check(x)
        model._check_given(given, checked)
        return cls(model, checked, None if model.context is None else model.context.check(given))

    def __len__(self) -> int:
        return len(self.checked)

    def __getitem__(self, rows: np.ndarray) -> "Data":
        covariates = None if self.covariates is None else self.covariates[rows]
        return Data(self.model, self.checked[rows], covariates)

    @property
    def x(self) -> Any:
        return self.model.event.restore(self.checked.x, self.checked.form)

    @property
    def given(self) -> Any:
        if self.covariates is None or self.model.context is None:
            return None
        return self.model.context.restore(self.covariates.x, self.covariates.form)

    def upto(self, steps: Any) -> "Data":
        """At most so many steps of each sequence, one number for all or one each; other covariates stay."""
        about = self.checked
        covariates = self.covariates
        if covariates is not None:
            covariates = Checked(_cut(covariates.x, steps), covariates.about, covariates.form)
        return Data(self.model, Checked(_cut(about.x, steps), about.about, about.form), covariates)


def _cut(x: Any, steps: Any) -> Any:
    if not isinstance(x, Ragged):
        return x
    kept = torch.minimum(x.lengths, torch.as_tensor(steps).expand(len(x)))
    return Ragged(x.values[x.places < kept.repeat_interleave(x.lengths)], kept)


def log_lik_of(model: GenerativeModel, data: Data, seed: int | None) -> np.ndarray:
    """log p(x_i | theta_s) in nats, (S, n), draws in chain-major order.

    Raises:
        StructureError: a family that does not give them. DataError: rows whose numbers are NaN or +inf, by key.
    """
    hook = getattr(model, "_log_lik_draws", None)
    if hook is None:
        raise StructureError(
            f"{type(model).__name__} has posterior draws but no log p(x_i | theta) of them",
            "a family with _log_lik_draws",
            "Leave rows out by refits of a point fit",
        )
    given = None if data.covariates is None else data.covariates.x
    with torch.no_grad():
        found = hook(data.checked.x, given, generator_of(seed))
    values = found.detach().to(torch.float64).numpy() if isinstance(found, Tensor) else np.asarray(found, dtype=float)
    bad = (np.isnan(values) | np.isposinf(values)).any(axis=0)
    if bad.any():
        keys = data.checked.about.keys[bad].tolist()
        raise DataError(
            f"log p(x | theta) is NaN or infinite for {bad.sum()} rows, first {keys[0]!r}, under some posterior draws",
            "a finite number, or -inf, for each row and draw",
            "Leave those rows out, or look at the draws: model.draws.summary()",
        )
    return values


def log_lik_blocks(data: Data, draws: int, seed: int | None) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows in pieces, with their log p(x_i | theta_s), (S, rows)."""
    size = max(1, _CELLS // draws)
    for start in range(0, len(data), size):
        part = slice(start, min(start + size, len(data)))
        yield part, log_lik_of(data.model, data[np.arange(len(data))[part]], seed)


def log_lik_steps_of(model: GenerativeModel, data: Data, seed: int | None) -> np.ndarray:
    """log p(x_t | x_<t, theta_s) of all steps, sequence after sequence, (S, steps).

    Where the family does not give them, each is the difference of two prefixes.
    """
    given = None if data.covariates is None else data.covariates.x
    family = model._parametric() if hasattr(model, "_parametric") else None  # type: ignore[operator]
    if family is not None and family.steps is not None:
        with torch.no_grad():
            each = [family.at(values, family.steps, data.checked.x, given) for values in family.thetas(family.kept.z())]
        return torch.stack(each).to(torch.float64).numpy()
    parts = []
    for block in _prefix_blocks(data.checked.x.lengths.tolist()):
        prefixes = data[np.array([i for i, _ in block])].upto(torch.tensor([t for _, t in block]))
        parts.append(log_lik_of(model, prefixes, seed))
    upto = np.concatenate(parts, axis=1)
    starts = data.checked.x.starts.numpy()
    before = np.concatenate([np.zeros((len(upto), 1)), upto[:, :-1]], axis=1)
    before[:, starts] = 0.0
    return upto - before


def _prefix_blocks(lengths: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """All prefixes as (sequence, steps), in blocks of a bounded number of steps."""
    block: list[tuple[int, int]] = []
    total = 0
    for i, length in enumerate(lengths):
        for t in range(1, length + 1):
            if block and total + t > _STEPS:
                yield block
                block, total = [], 0
            block.append((i, t))
            total += t
    yield block

"""Draws of missing cells from p(missing | observed): exact where a family can, by weighted draws where it can't."""

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.emissions import Emission, LogNormal, Normal, Product
from probgen.emissions.normal import patterns
from probgen.errors import DataError, ParameterError, StructureError
from probgen.evaluate.uses.weighted import weighted_draws
from probgen.events import Array, Checked, Event, Table
from probgen.logprob import Kind
from probgen.model import GenerativeModel, Latent, generator_of
from probgen.models.baseline import GaussianCopula, Independent
from probgen.models.bayesnet import BayesianNetwork
from probgen.models.mixture import Mixture
from probgen.models.standardize import Standardize

__all__ = ["Imputed", "WholeColumnWarning", "impute", "pool"]

Filled = tuple[Tensor, np.ndarray | None]


class WholeColumnWarning(UserWarning):
    """A column of which none of many rows shows a cell is drawn as a whole."""


_MANY = 10  # rows none of which shows a column by chance


@dataclass(frozen=True, eq=False)
class Imputed:
    """Completed tables: ``imputed[0]``, ``for frame in imputed``.

    Arguments:
        draws: Completed rows in the form that came in, one of n independent draws each.
        missing: Which cells were drawn, (rows, columns), bool.
        by: How: "exact conditional draws", or "1000 weighted draws a row".
        ess: Of weighted draws, the effective number behind each row, (rows,); NaN for complete rows. None where exact.
        keys, columns, cells: Row keys, column names, and the draws as checked cells (n, rows, columns).
    """

    draws: tuple[Any, ...]
    missing: np.ndarray
    by: str
    ess: np.ndarray | None
    keys: np.ndarray
    columns: tuple[str, ...]
    cells: Tensor
    event: Event

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, draw: int) -> Any:
        return self.draws[draw]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.draws)

    def frame(self) -> Any:
        """A long pyarrow.Table: row, draw, and the columns."""
        n, rows = self.cells.shape[:2]
        flat = self.cells.reshape(n * rows, -1)
        data: dict[str, Any] = {"row": np.tile(self.keys, n), "draw": np.repeat(np.arange(n), rows)}
        if isinstance(self.event, Table):
            return frames.table({**data, **self.event.outside(flat)})
        return frames.table({**data, **dict(zip(self.columns, flat.numpy().T, strict=True))})

    def __repr__(self) -> str:
        worst = (
            "" if self.ess is None or np.isnan(self.ess).all() else f", at least {np.nanmin(self.ess):.0f} effective"
        )
        some = int(self.missing.any(1).sum())
        whole = _whole(self.columns, self.missing)
        drawn = f", all of {', '.join(map(repr, whole[:8]))}{', ...' * (len(whole) > 8)}" if whole else ""
        return (
            f"Imputed({len(self)} x {len(self.missing)} rows, {int(self.missing.sum())} cells of {some} rows drawn"
            f"{drawn}; {self.by}{worst})"
        )


def impute(
    model: GenerativeModel, frame: Any, n: int = 1, *, seed: int | None = None, proposals: int = 1000
) -> Imputed:
    """n completions of rows with gaps, each a draw from p(missing | observed) of the fitted model.

    One completion understates what is not known: analyse n of them and ``pool`` the estimates (Rubin 1987).

    Arguments:
        model: BayesianNetwork, Mixture (of normals, or of cells independent within a component), Independent,
            GaussianCopula, or Standardize over one: exact conditional draws. Any other family with an exact likelihood
            of tables or vectors (KernelDensity, Flow, a wrapped density): ``proposals`` weighted draws a row, whose
            effective number is told.
        frame: Rows with gaps; a table may lack whole columns.

    Observed cells stay as they are. The model's own uncertainty (of parameters) is not drawn from.

    A column of which no row shows a cell is drawn, too, from what the model alone knows of it: the repr names it, and
    among ten or more rows a WholeColumnWarning does, since a column is easily forgotten.

    Raises:
        StructureError: a family without an exact likelihood, or of other data; it is named.
        ParameterError: n or proposals below 1. DataError: a row that the model holds for impossible.
    """
    for name, value in (("n", n), ("proposals", proposals)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ParameterError(f"{name}={value!r}", "a whole number, at least 1")
    model._check_fitted()
    checked = _checked(model, frame)
    x = checked.x.reshape(len(checked), -1)
    gaps = x.isnan()
    some = gaps.any(1)
    names = tuple(getattr(model.event, "columns", map(str, range(x.shape[1]))))
    if len(x) >= _MANY and (whole := _whole(names, gaps.numpy())):
        _warn_of_whole(whole, len(x))
    how, by = _method(model, proposals)
    cells = x.repeat(n, 1, 1)
    ess = None
    if some.any():
        with torch.no_grad():
            drawn, found = how(model, x[some], n, generator_of(seed))
        cells[:, some] = torch.where(gaps[some], drawn, x[some])
        if found is not None:
            ess = np.full(len(x), math.nan)
            ess[some.numpy()] = found
    shaped = cells.reshape(n, *checked.x.shape)
    draws = tuple(_restored(model.event, part, checked) for part in shaped)
    return Imputed(draws, gaps.numpy(), by, ess, checked.about.keys, names, cells, model.event)


def _whole(names: tuple[str, ...], missing: np.ndarray) -> list[str]:
    """Columns of which no row shows a cell."""
    gone = np.all(missing, axis=0)
    return [name for name, gap in zip(names, gone, strict=True) if gap]


def _warn_of_whole(names: list[str], rows: int) -> None:
    columns = f"column{'s' * (len(names) > 1)} {', '.join(map(repr, names[:8]))}"
    columns += f" and {len(names) - 8} more" if len(names) > 8 else ""
    warnings.warn(
        f"All {rows} rows lack {columns}: every cell there is drawn from the model. Wanted: a column that some rows "
        "show. Check its name, or leave it out of what you use",
        WholeColumnWarning, stacklevel=3,
    )  # fmt: skip


def _checked(model: GenerativeModel, frame: Any) -> Checked:
    event = model.event
    if not isinstance(event, Table | Array):
        raise StructureError(
            f"{type(model).__name__} over {event!r:.60}", "rows of a table, or vectors",
            "Sequences: HMM.sample_paths and StateSpace.smooth know their gaps",
        )  # fmt: skip
    if model.context is not None:
        raise StructureError(f"{type(model).__name__} with covariates", "a model of whole rows", "Model them jointly")
    open_event = replace(event, missing=True)
    return open_event.check(frame, partial=True) if isinstance(open_event, Table) else open_event.check(frame)


def _restored(event: Event, cells: Tensor, checked: Checked) -> Any:
    found = event.restore(cells, checked.form)
    if str(checked.form).startswith("pandas"):
        found.index = checked.about.keys
    return found


def _method(model: GenerativeModel, proposals: int) -> tuple[Callable[..., Filled], str]:
    """How a family draws its missing cells, and what that is called.

    Raises:
        StructureError: it can't.
    """
    exact = "exact conditional draws"
    if isinstance(model, BayesianNetwork):
        return _network, exact
    if isinstance(model, Standardize):
        inner, by = _method(model.of, proposals)
        return _standardised(inner), by
    if isinstance(model, GaussianCopula):
        return _copula, exact
    if isinstance(model, Independent) or (isinstance(model, Mixture) and _conditional(model.emission)):
        return _mixture, exact
    latent = isinstance(model, Latent)  # whose answers are bounds
    kinds = {Kind.LOWER} if latent else set(model.log_prob(model.sample(1, seed=0), seed=0).kinds)
    if kinds != {Kind.EXACT}:
        raise StructureError(
            f"{type(model).__name__} has no exact likelihood here ({', '.join(sorted(kinds))}): "
            "p(missing | observed) can't be drawn from",
            "an exact family", "BayesianNetwork, Mixture, GaussianCopula or Flow",
        )  # fmt: skip

    def weighted(model: GenerativeModel, x: Tensor, n: int, generator: torch.Generator) -> Filled:
        return weighted_draws(model, x, n, proposals, generator)

    return weighted, f"{proposals} weighted draws a row"


def _conditional(emission: Emission) -> bool:
    """Whether cells given others are drawn exactly within one component."""
    if isinstance(emission, Product):
        return all(_conditional(part) for part in emission.parts.values())
    if isinstance(emission, Normal):
        return True
    return len(emission.cells(torch.zeros(1, dtype=torch.int64)).batch_shape) == 2


# Families


def _network(model: Any, x: Tensor, n: int, generator: torch.Generator) -> Filled:
    from probgen.models.bayesnet.queries import conditional_sample

    rows = conditional_sample(model, x, n, generator)
    return rows.reshape(len(x), n, -1).transpose(0, 1), None


def _standardised(inner: Callable[..., Filled]) -> Callable[..., Filled]:
    def how(model: Any, x: Tensor, n: int, generator: torch.Generator) -> Filled:
        loc, scale = model.loc.reshape(-1), model.scale.reshape(-1)
        drawn, ess = inner(model.of, (x - loc) / scale, n, generator)
        return drawn * scale + loc, ess

    return how


def _copula(model: Any, x: Tensor, n: int, generator: torch.Generator) -> Filled:
    """Missing normal scores given the observed ones, back through the margins."""
    density = model.density()
    seen = torch.where(x.isnan(), 0.5, x)  # in every support; it is not looked at
    scores = torch.where(x.isnan(), math.nan, density.scores(seen))
    zero = torch.zeros(1, x.shape[1], dtype=x.dtype)
    state = torch.zeros(n, len(x), dtype=torch.int64)
    z = _normal_draws(scores, state, zero, density.factor[None], generator)
    white = torch.linalg.solve_triangular(density.factor, z.reshape(-1, x.shape[1]).T, upper=False).T
    return density.draw(white).reshape(n, *x.shape), None


def _mixture(model: Any, x: Tensor, n: int, generator: torch.Generator) -> Filled:
    """A component from its posterior given the observed cells, then the missing cells given both."""
    if isinstance(model, Independent):
        return _given_state(model.margin, x, torch.zeros(n, len(x), dtype=torch.int64), generator), None
    joint = model._joint(x)
    if bool((impossible := joint.isneginf().all(1)).any()):
        row = int(impossible.nonzero()[0])
        raise DataError(f"Row {x[row].tolist()} is impossible under the model", "rows of positive probability")
    state = torch.multinomial(joint.softmax(1), n, replacement=True, generator=generator).T
    return _given_state(model.emission, x, state, generator), None


def _given_state(emission: Any, x: Tensor, state: Tensor, generator: torch.Generator) -> Tensor:
    """Rows (n, rows, cells) with the missing cells of x drawn given its observed cells and the states (n, rows)."""
    if isinstance(emission, Product):
        parts = zip(emission.parts.values(), x.split([p.width for p in emission.parts.values()], 1), strict=True)
        return torch.cat([_given_state(part, cells, state, generator) for part, cells in parts], -1)
    if isinstance(emission, Normal) and emission.matrix:
        logs = isinstance(emission, LogNormal)
        found = emission.natural()
        covariance = found["covariance"] if "covariance" in found else emission.scale() @ emission.scale().mT
        factor = torch.linalg.cholesky(covariance)
        z = _normal_draws(x.log() if logs else x, state, emission.loc, factor, generator)
        return z.exp() if logs else z
    drawn = emission.sample(state.reshape(-1), generator).reshape(*state.shape, -1)
    return torch.where(x.isnan(), drawn, x)


def _normal_draws(x: Tensor, state: Tensor, loc: Tensor, factor: Tensor, generator: torch.Generator) -> Tensor:
    """Missing cells of rows x (m, d) given the others, under normals (K, d) of states (n, m): (n, m, d)."""
    out = x.repeat(len(state), 1, 1)
    covariance = factor @ factor.mT
    for seen, rows in patterns(x):
        gap = ~seen
        if not gap.any():
            continue
        inner = covariance[:, seen][:, :, seen]
        regression = torch.linalg.solve(inner, covariance[:, seen][:, :, gap])  # (K, seen, gap)
        left = covariance[:, gap][:, :, gap] - covariance[:, gap][:, :, seen] @ regression
        root = torch.linalg.cholesky(0.5 * (left + left.mT))
        k = state[:, rows]
        away = x[rows][:, seen] - loc[k][..., seen]
        mean = loc[k][..., gap] + (away[..., None, :] @ regression[k])[..., 0, :]
        noise = torch.randn(*mean.shape, generator=generator, dtype=x.dtype)
        values = mean + (root[k] @ noise[..., None])[..., 0]
        out[:, rows[:, None], gap.nonzero()[:, 0]] = values
    return out


def pool(estimates: Any, variances: Any) -> tuple[float, float, float]:
    """Rubin's rules: one estimate, its standard error and degrees of freedom from n completed tables.

    Arguments:
        estimates, variances: Of the quantity on each completion, (n,), n >= 2; the variance is the squared standard
            error that the analysis gave.

    Rubin (1987), section 3.1: total variance = mean within + (1 + 1/n) between.
    """
    q, u = (np.asarray(values, dtype=np.float64) for values in (estimates, variances))
    if q.ndim != 1 or q.shape != u.shape or len(q) < 2 or (u < 0).any():
        raise ParameterError(f"{q.shape} estimates, {u.shape} variances", "one each for at least 2 completions")
    within, between = float(u.mean()), float(q.var(ddof=1))
    extra = (1 + 1 / len(q)) * between
    freedom = math.inf if extra == 0 else (len(q) - 1) * (1 + within / extra) ** 2
    return float(q.mean()), math.sqrt(within + extra), freedom

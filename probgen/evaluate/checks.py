"""Predictive checks: a statistic of the data beside the same of data sets that the model makes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from probgen import frames
from probgen.errors import DataError, ParameterError, StructureError, nearest
from probgen.evaluate.loo.rows import Data
from probgen.evaluate.replicates import masked, replicates, source_of
from probgen.events import Array, Category, Event, Panel, Ragged, Table
from probgen.model import GenerativeModel, generator_of

__all__ = ["STATISTICS", "Check", "check"]

Statistic = Callable[[np.ndarray], np.ndarray]
_SHOWN = 40  # numbers that are printed


@dataclass(frozen=True, eq=False, repr=False)
class Check:
    """Statistics of the data beside those of replicated data sets.

    Arguments:
        stat: Its name.
        names: Of its d numbers: columns, pairs of columns, levels.
        observed: Of the data, (d,).
        replicated: Of R data sets of the model, (R, d).
        p: Tail probabilities P(T(x_rep) >= T(x)), ties broken at random, (d,): near 0 the data have more of the
            statistic than the model makes, near 1 less.
        stderr: Monte Carlo standard error of p from the finite R, (d,).
        source: "posterior predictive", "approximate posterior predictive", "prior predictive" or "plug-in".
        rows: Of the data and of each data set.

    With one theta drawn from the prior p is uniform if the model holds. Under a posterior, and under a point fit, the
    data are used twice: p then lies nearer to 1/2 (Bayarri and Berger 2000), and an extreme one says the more.
    """

    stat: str
    names: tuple[str, ...]
    observed: np.ndarray
    replicated: np.ndarray
    p: np.ndarray
    stderr: np.ndarray
    source: str
    rows: int
    notes: tuple[str, ...] = ()

    @property
    def extreme(self) -> np.ndarray:
        """Which numbers lie in the outer 5 % of the replicated ones, (d,), bool."""
        return (self.p < 0.025) | (self.p > 0.975)

    @property
    def draws(self) -> int:
        """R."""
        return len(self.replicated)

    def frame(self) -> Any:
        """A pyarrow.Table: name, observed, mean, q05, q95 of the replicated, p, stderr."""
        low, high = np.quantile(self.replicated, [0.05, 0.95], axis=0)
        return frames.table(
            {
                "name": list(self.names), "observed": self.observed, "mean": self.replicated.mean(axis=0), "q05": low,
                "q95": high, "p": self.p, "stderr": self.stderr,
            }
        )  # fmt: skip

    def plot(self, path: str | PathLike) -> None:
        """Histograms of the replicated numbers with the observed ones, written as PNG."""
        from probgen.plots.checks import predictive

        titles = [f"{self.stat} {name}".strip() for name in self.names]
        predictive(titles, self.observed, self.replicated, self.p, path, source=self.source)

    def texts(self) -> list[dict[str, str]]:
        """The table as text, a dict a number; p outside 1 to R of R + 1 is told as a bound, since chance decides it."""
        low, high = np.quantile(self.replicated, [0.05, 0.95], axis=0)
        mean = self.replicated.mean(axis=0)
        return [
            {
                "": name or self.stat,
                "observed": f"{self.observed[j]:.4g}",
                "replicated [5 %, 95 %]": f"{mean[j]:.4g} [{low[j]:.4g}, {high[j]:.4g}]",
                "p": self._tail(j) + (" !" if self.extreme[j] else ""),
            }
            for j, name in enumerate(self.names)
        ]

    def _tail(self, j: int) -> str:
        least = 1 / (self.draws + 1)
        if self.p[j] < least:
            return f"< {least:.2g}"
        return f"> {1 - least:.3g}" if self.p[j] > 1 - least else f"{self.p[j]:.3f} ± {self.stderr[j]:.3f}"

    def meaning(self) -> str:
        """What p and its signs say."""
        return (
            f"p: share of the {self.draws} data sets with as much of it or more, ± its Monte Carlo error; ! marks the "
            "outer 5 %, where the model misses it"
        )

    def __str__(self) -> str:
        rows = self.texts()[:_SHOWN]
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        table = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        more = [f"... and {len(self.names) - _SHOWN} more"] if len(self.names) > _SHOWN else []
        title = f"{self.stat}: {self.source}, {self.draws} data sets of {self.rows} rows"
        return "\n".join([title, *table, *more, *(f"{note}." for note in (self.meaning(), *self.notes))])

    __repr__ = __str__


def check(
    model: GenerativeModel,
    x: Any,
    stat: str | Callable[[Any], Any] = "mean",
    *,
    given: Any = None,
    n: int = 1000,
    prior: bool = False,
    seed: int | None = 0,
) -> Check:
    """A predictive check: does the model make data whose statistic is like that of the data?

    Each of ``n`` data sets has the rows, covariates, lengths and gaps of x, and is drawn from one set of parameters: a
    posterior draw, or with ``prior`` one of the prior. A point fit draws all from its one set ("plug-in"), which leaves
    out what the data leave open about it.

    Arguments:
        stat: "mean", "sd", "min", "max", "median", "zeros" (share), "skewness", "correlation" (pairs of columns),
            "autocorrelation" (lag 1, within sequences), "levels" (shares of categories); or a function of
            data in the form of x that gives a number, or always as many.
        given: Covariates of x.
        n: Data sets.
        prior: Whether to check the prior, before any data.
        seed: Of the draws.

    Raises:
        ParameterError: an unknown statistic, n below 20. StructureError: a statistic that x has no columns for, a prior
            of a model without one. DataError: a statistic that is not finite on x.

    Gelman, Meng and Stern (1996).
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 20:
        raise ParameterError(f"n={n!r}", "a whole number of data sets, at least 20", "Leave it out: 1000")
    data = Data.of(model, x, given)
    names, measure = _statistic(stat, data)
    observed = _numbers(measure(data.checked.x), stat, "the data")
    rows = [
        _numbers(measure(masked(part, data.checked.x)), stat, "a replicated data set")
        for part in replicates(data, n, prior, seed)
    ]
    if any(len(row) != len(observed) for row in rows):
        raise DataError(f"{_name(stat)} gives {len(observed)} numbers of the data, others of data sets", "as many each")
    replicated = np.stack(rows)
    if not np.isfinite(observed).all():
        raise DataError(f"{_name(stat)} of the data is {observed}", "finite numbers", "Choose another statistic")
    found = names or tuple(str(j) if len(observed) > 1 else "" for j in range(len(observed)))
    p, stderr = tail_probability(observed, replicated, generator_of(seed).initial_seed())
    source = source_of(model, prior)
    return Check(_name(stat), found, observed, replicated, p, stderr, source, len(data), _notes(source, replicated))


def _notes(source: str, replicated: np.ndarray) -> tuple[str, ...]:
    notes = []
    if source == "plug-in":
        notes.append("A point fit: the data sets have its one set of parameters, so they vary too little")
    if odd := int((~np.isfinite(replicated)).any(axis=1).sum()):
        notes.append(f"{odd} data sets have no finite statistic and count as ties")
    return tuple(notes)


def tail_probability(observed: np.ndarray, replicated: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """P(T_rep >= T), uniform if all R + 1 are exchangeable, and its Monte Carlo standard error, (d,) each.

    The place of the observed number among all R + 1, counted from above, with one uniform number for it and its ties:
    (above + U (equal + 1)) / (R + 1) (Davison and Hinkley 1997, section 4.2, made exact by U).
    """
    many = len(replicated)
    u = np.random.default_rng(seed).uniform(size=replicated.shape[1])
    with np.errstate(invalid="ignore"):
        close = np.isclose(replicated, observed, rtol=1e-12, atol=0.0)  # sums in another order are ties
        above = (replicated > observed) & ~close
    equal = close | ~np.isfinite(replicated)
    p = (above.sum(axis=0) + u * (equal.sum(axis=0) + 1)) / (many + 1)
    return p, np.sqrt(np.maximum(p * (1 - p), 1 / (4 * many)) / many)


def _name(stat: Any) -> str:
    name = stat if isinstance(stat, str) else getattr(stat, "__name__", type(stat).__name__)
    return "statistic" if name == "<lambda>" else name


def _numbers(value: Any, stat: Any, what: str) -> np.ndarray:
    try:
        found = np.asarray(value.detach() if hasattr(value, "detach") else value, dtype=np.float64)
    except (TypeError, ValueError) as problem:
        raise DataError(f"{_name(stat)} of {what} is {value!r:.80}", "a number, or several in an array") from problem
    if found.ndim > 1 or found.size == 0:
        raise DataError(f"{_name(stat)} of {what} has shape {found.shape}", "a number, or several in a row")
    return found.reshape(-1)


# Statistics by name


def _moment(values: np.ndarray, power: int) -> np.ndarray:
    return np.nanmean((values - np.nanmean(values, axis=0)) ** power, axis=0)


def _sd(values: np.ndarray) -> np.ndarray:
    return np.nanstd(values, axis=0, ddof=1)


def _skewness(values: np.ndarray) -> np.ndarray:
    return _moment(values, 3) / _moment(values, 2) ** 1.5


def _zeros(values: np.ndarray) -> np.ndarray:
    return np.nanmean(np.where(np.isnan(values), np.nan, values == 0), axis=0)


_COLUMNS: dict[str, Statistic] = {
    "mean": lambda v: np.nanmean(v, axis=0),
    "sd": _sd,
    "min": lambda v: np.nanmin(v, axis=0),
    "max": lambda v: np.nanmax(v, axis=0),
    "median": lambda v: np.nanmedian(v, axis=0),
    "zeros": _zeros,
    "skewness": _skewness,
}
STATISTICS = (*_COLUMNS, "correlation", "autocorrelation", "levels")
_CELLS_SHOWN = 64  # numbers of an array whose cells have no names


def _statistic(stat: Any, data: Data) -> tuple[tuple[str, ...] | None, Callable[[Any], Any]]:
    """Names of a statistic's numbers, where known, and it as a function of checked cells."""
    if callable(stat):
        event, form = data.model.event, data.checked.form
        return None, lambda x: stat(event.restore(x, form))
    if stat not in STATISTICS:
        raise ParameterError(f"stat={stat!r}", "a name or a function of the data", nearest(str(stat), STATISTICS))
    event, x = data.model.event, data.checked.x
    if isinstance(x, Mapping):
        raise StructureError(f"stat={stat!r} of {event!r}", "a function of the record", "stat=lambda x: ...")
    if stat == "levels":
        return _levels(event)
    places, names = _numeric(event, x, stat)
    if stat == "correlation":
        return _correlations(places, names)
    if stat == "autocorrelation":
        if not isinstance(x, Ragged):
            raise StructureError(f"stat={stat!r} of {event!r}", "sequences: Series or Panel", "Rows have no order")
        return names, lambda x: _autocorrelation(_cells(x)[:, places], x.places.numpy())
    return names, lambda x: _COLUMNS[stat](_cells(x)[:, places])


def _cells(x: Any) -> np.ndarray:
    """Numbers (rows or steps, columns)."""
    values = x.values if isinstance(x, Ragged) else x
    return values.reshape(len(values), -1).numpy().astype(np.float64)


def _numeric(event: Event, x: Any, stat: str) -> tuple[list[int], tuple[str, ...]]:
    """Places and names of the columns that hold numbers."""
    if isinstance(event, Table | Panel):
        found = [(j, name) for j, (name, c) in enumerate(event.columns.items()) if not isinstance(c, Category)]
        if not found:
            raise StructureError(f"stat={stat!r} of {event!r}", "a column of numbers", "stat='levels' counts levels")
        return [j for j, _ in found], tuple(name for _, name in found)
    width = _cells(x).shape[1]
    if width > _CELLS_SHOWN:
        raise StructureError(
            f"stat={stat!r} of {width} cells a row", f"at most {_CELLS_SHOWN}", "Give a function: stat=lambda x: ..."
        )
    return list(range(width)), ("",) if width == 1 else tuple(map(str, range(width)))


def _correlations(places: Sequence[int], names: Sequence[str]) -> tuple[tuple[str, ...], Callable[[Any], np.ndarray]]:
    pairs = [(i, j) for i in range(len(places)) for j in range(i)]
    if not pairs:
        raise StructureError("stat='correlation' of one column", "two columns of numbers", "stat='sd'")

    def measure(x: Any) -> np.ndarray:
        values = np.ma.masked_invalid(_cells(x)[:, places])
        matrix = np.ma.filled(np.ma.corrcoef(values, rowvar=False), math.nan)
        return np.array([matrix[i, j] for i, j in pairs])

    return tuple(f"{names[j]} ~ {names[i]}" for i, j in pairs), measure


def _autocorrelation(values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Of neighbouring steps of one sequence, over all sequences, about the mean of all."""
    centred = values - np.nanmean(values, axis=0)
    follows = np.flatnonzero(steps[1:] == steps[:-1] + 1)
    return np.nanmean(centred[follows + 1] * centred[follows], axis=0) / np.nanmean(centred**2, axis=0)


def _levels(event: Event) -> tuple[tuple[str, ...], Callable[[Any], np.ndarray]]:
    if isinstance(event, Table | Panel):
        found = [(j, n, c.levels) for j, (n, c) in enumerate(event.columns.items()) if isinstance(c, Category)]
    elif isinstance(event, Array) and isinstance(event.levels, int) and not event.shape:
        found = [(0, "", tuple(range(event.levels)))]
    else:
        found = []
    if not found:
        raise StructureError(f"stat='levels' of {event!r}", "a column of categories", "stat='mean'")

    def measure(x: Any) -> np.ndarray:
        cells = _cells(x)
        shares = [_shares(cells[:, j], len(levels)) for j, _, levels in found]
        return np.concatenate(shares)

    return tuple(f"{name} = {level}".strip(" =") for _, name, levels in found for level in levels), measure


def _shares(codes: np.ndarray, levels: int) -> np.ndarray:
    seen = codes[~np.isnan(codes)].astype(np.int64)
    return np.bincount(seen, minlength=levels) / max(len(seen), 1)

"""Rows ranked by surprise, with p-values that hold whatever the model, and the columns to blame."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen import frames
from probgen.errors import DataError, LikelihoodUnavailable, ParameterError
from probgen.events import Array, Table, row_hash
from probgen.logprob import Kind, LogProb
from probgen.model import GenerativeModel, generator_of

__all__ = ["Anomalies", "CalibrationWarning", "anomalies", "conformal_pvalues", "discoveries"]

_DRAWS = (1000, 20_000)  # of the model, fewest and most, where no held-out rows are given
_SWAPS = 50  # values of a column that stand in for a cell
_EXPLAINED = 50  # rows, the most surprising first
_TAILS = ("low", "both")


class CalibrationWarning(UserWarning):
    """Calibration rows that the model was fitted to: p-values then promise nothing."""


@dataclass(frozen=True, eq=False)
class Anomalies:
    """What ``anomalies`` found, row by row in the order of the data; ``frame()`` ranks them.

    Arguments:
        log_prob: The typed answer of each row.
        pvalues: Conformal p-values, (n,): small where few calibration rows are as surprising.
        flagged: Rows called anomalies at the false discovery rate ``alpha`` (Benjamini and Hochberg 1995), (n,), bool.
        alpha: That rate.
        against: What the p-values compare with: "250 held-out rows", or "1000 draws of the model".
        known: How many those are.
        order: Row numbers, the most surprising first.
        columns: Names of the cells.
        blame: Nats by which each cell is less probable, given the rest of its row, than such a cell usually is,
            (n, columns); NaN for rows that were not asked about.
        blamed_by: How, or why not.
    """

    log_prob: LogProb
    pvalues: np.ndarray
    flagged: np.ndarray
    alpha: float
    against: str
    known: int
    order: np.ndarray
    columns: tuple[str, ...] = ()
    blame: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    blamed_by: str = ""

    def __len__(self) -> int:
        return len(self.pvalues)

    @property
    def least(self) -> int:
        """How many rows must share the smallest possible p-value before any is flagged: 1 where there are as many
        calibration rows as rows to judge, over alpha."""
        return max(1, int(np.ceil(len(self) / (self.alpha * (self.known + 1)) - 1e-9)))

    @property
    def keys(self) -> np.ndarray:
        """Row keys as the user gave them, (n,)."""
        return np.arange(len(self)) if self.log_prob.event is None else self.log_prob.event.keys

    def culprits(self, row: int, most: int = 3) -> list[tuple[str, float]]:
        """The columns to blame for a row (by its number), the worst first, with their nats; [] where unknown."""
        if not self.blame.size or np.isnan(self.blame[row]).all():
            return []
        worst = np.argsort(-np.nan_to_num(self.blame[row], nan=-np.inf))[:most]
        return [(self.columns[j], float(self.blame[row, j])) for j in worst if self.blame[row, j] > 0]

    def frame(self) -> Any:
        """A pyarrow.Table, the most surprising row first: row, log_prob, kind, p_value, anomaly, columns to blame."""
        order = self.order
        told = [", ".join(f"{name} ({nats:.1f})" for name, nats in self.culprits(i)) for i in order]
        return frames.table(
            {
                "row": self.keys[order],
                "log_prob": self.log_prob.nats[order],
                "kind": np.array([str(kind) for kind in self.log_prob.kinds[order]]),
                "p_value": self.pvalues[order],
                "anomaly": self.flagged[order],
                "blame": np.array(told, dtype=str),
            }
        )

    def __str__(self) -> str:
        kind = self.log_prob.kind
        lines = [
            f"{int(self.flagged.sum())} of {len(self)} rows are anomalies at a false discovery rate of {self.alpha:g} "
            f"(against {self.against}; log-likelihoods: {kind})"
        ]
        for i in self.order[: max(min(int(self.flagged.sum()), 10), 5)]:
            why = "; ".join(f"{name} {nats:.1f} nats" for name, nats in self.culprits(int(i)))
            mark = "*" if self.flagged[i] else " "
            nats = f"{self.log_prob.nats[i]:10.3f} nats"
            lines.append(f"{mark} row {self.keys[i]}: {nats}, p = {self.pvalues[i]:.4f}{': ' + why if why else ''}")
        if self.least > 1:
            lines.append(
                f"{self.known} calibration rows are few for {len(self)} rows: none is flagged unless {self.least} are "
                f"more surprising than all of them; {int(np.ceil(len(self) / self.alpha))} would do for one"
            )
        return "\n".join([*lines, f"blame: {self.blamed_by}"])

    __repr__ = __str__


def conformal_pvalues(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(1 + calibration scores at or below) / (m + 1), (n,): uniform or larger for rows exchangeable with the m."""
    ordered = np.sort(calibration)
    return (1 + np.searchsorted(ordered, scores, side="right")) / (len(ordered) + 1)


def discoveries(pvalues: np.ndarray, alpha: float) -> np.ndarray:
    """Which are discoveries at that false discovery rate, (n,), bool (Benjamini and Hochberg 1995). Conformal p-values
    share their calibration rows, under which the rate still holds (Bates et al. 2023)."""
    order = np.argsort(pvalues, kind="stable")
    n = len(pvalues)
    passed = np.flatnonzero(pvalues[order] <= alpha * np.arange(1, n + 1) / n)
    found = np.zeros(n, dtype=bool)
    found[order[: passed[-1] + 1 if len(passed) else 0]] = True
    return found


def anomalies(
    model: GenerativeModel,
    frame: Any,
    *,
    alpha: float = 0.1,
    calibration: Any = None,
    tail: str = "low",
    explain: int = _EXPLAINED,
    seed: int = 0,
) -> Anomalies:
    """Rows that the model finds surprising.

    Arguments:
        model: Fitted. Any kind of log-likelihood ranks and calibrates; what a bound can not do is blame columns, since
            differences of bounds claim nothing.
        frame: Rows to judge.
        alpha: False discovery rate of the flags.
        calibration: Good rows that neither the fit nor ``frame`` has seen: the p-values then hold whatever the model,
            if a good row is exchangeable with them. Rows of the fit look likelier than new ones, so that too many good
            rows are flagged; a CalibrationWarning says where such rows are known again (by 16 of them, of data whose
            rows hardly repeat). None compares with draws of the model, 1000 or more: they then
            hold only as far as the model is true.
        tail: "low" for improbable rows; "both" also for rows that are too probable: in many dimensions a density can be
            highest where no data are (Nalisnick et al. 2019).
        explain: For how many rows, the most surprising first, the columns to blame are found: cell by cell
            log p(x_j | rest) where the family integrates gaps out, else against the cell drawn anew from its column.

    Raises:
        LikelihoodUnavailable: the model has no likelihood.
        ParameterError: alpha or tail out of range. DataError: too few calibration rows for any discovery.
    """
    if not 0 < alpha < 1 or tail not in _TAILS or explain < 0:
        raise ParameterError(
            f"alpha={alpha!r}, tail={tail!r}, explain={explain!r}", f"0 < alpha < 1, one of {_TAILS}, explain from 0"
        )
    answer = model.log_prob(frame, seed=seed)
    many = min(max(_DRAWS[0], int(np.ceil(len(answer) / alpha))), _DRAWS[1])
    good = model.sample(many, seed=seed) if calibration is None else calibration
    known = model.log_prob(good, seed=seed).nats
    if len(known) + 1 < 1 / alpha:
        raise DataError(
            f"{len(known)} calibration rows for alpha={alpha:g}", f"at least {int(np.ceil(1 / alpha)) - 1}",
            "The smallest p-value is 1 / (rows + 1)",
        )  # fmt: skip
    if calibration is not None:
        _warn_of_seen(model, calibration)
    scores = answer.nats
    if tail == "both":
        centre = np.median(known)
        scores, known = -np.abs(scores - centre), -np.abs(known - centre)
    pvalues = conformal_pvalues(known, scores)
    order = np.lexsort((scores, pvalues))
    against = f"{many} draws of the model" if calibration is None else f"{len(known)} held-out rows"
    columns, blame, how = _blame(model, frame, good, order[:explain], answer, seed)
    flags = discoveries(pvalues, alpha)
    return Anomalies(answer, pvalues, flags, alpha, against, len(known), order, columns, blame, how)


def _warn_of_seen(model: GenerativeModel, calibration: Any) -> None:
    """Warns of calibration rows that the model was fitted to, as far as its report knows them again."""
    marks = model.report.seen if model.report else ()
    hashes = row_hash(model._check(calibration).x)
    repeats = 1 - len(np.unique(hashes)) / len(hashes)
    known = int(np.isin(np.array(marks, dtype=np.uint64), hashes).sum())
    if known > 1 + 4 * repeats * len(marks):  # more than equal rows by chance
        share = f"about {known / len(marks):.0%} of the rows that the model was fitted to"
        warnings.warn(
            f"The calibration rows hold {share}: they look likelier than new ones, so too many good rows are flagged. "
            "Wanted: rows that the fit has not seen. Hold some out, or leave calibration out to compare with draws.",
            CalibrationWarning, stacklevel=3,
        )  # fmt: skip


# The columns to blame


def _blame(
    model: GenerativeModel, frame: Any, good: Any, rows: np.ndarray, answer: LogProb, seed: int
) -> tuple[tuple[str, ...], np.ndarray, str]:
    """Column names, nats (n, columns), and how they were found or why not."""
    none = np.zeros((0, 0))
    if answer.kind in (Kind.LOWER, Kind.UPPER, Kind.SCORE):
        return (), none, f"not told: differences of numbers of kind {answer.kind} claim nothing about a cell"
    if not isinstance(model.event, Table | Array) or len(model.event.shape) != 1 or model.context is not None:
        return (), none, f"not told: {model.event!r:.60} has no columns"
    if not len(rows) or model.event.shape[0] < 2:
        return (), none, "not asked" if not len(rows) else "not told: there is one column"
    names = tuple(getattr(model.event, "columns", map(str, range(model.event.shape[0]))))
    x, typical = model._check(frame).x, model._check(good).x
    how = _conditionals if model.missing_cells else _replacements
    some = generator_of(seed)
    usual = typical[torch.randperm(len(typical), generator=some)[:200]]
    blame = np.full((len(x), len(names)), np.nan)
    try:
        with torch.no_grad():
            middle = np.nanmedian(how(model, usual, typical, some), axis=0)
            blame[rows] = middle - how(model, x[torch.from_numpy(rows)], typical, some)
    except LikelihoodUnavailable as problem:
        return (), none, f"not told: {problem.reason}"
    said = "log p(cell | rest of its row)" if how is _conditionals else "log p(row) with the cell drawn anew"
    return names, blame, f"nats below the median of {said} among good rows"


def _nats(model: GenerativeModel, x: Tensor, generator: torch.Generator) -> np.ndarray:
    return model._log_prob(x, None, generator=generator).nats


def _conditionals(model: GenerativeModel, x: Tensor, typical: Tensor, generator: torch.Generator) -> np.ndarray:
    """log p(x_j | the other observed cells), (n, columns): the row less the row without the cell; NaN where missing."""
    whole, out = _nats(model, x, generator), np.full(tuple(x.shape), np.nan)
    for j in range(x.shape[1]):
        gap = x.clone()
        gap[:, j] = torch.nan
        seen = ~x[:, j].isnan().numpy()
        some = seen & ~gap.isnan().all(1).numpy()
        out[some, j] = whole[some] - _nats(model, gap[torch.from_numpy(some)], generator) if some.any() else np.nan
        alone = seen & ~some
        out[alone, j] = whole[alone]
    return out


def _replacements(model: GenerativeModel, x: Tensor, typical: Tensor, generator: torch.Generator) -> np.ndarray:
    """log p(x) less log of the mean p(x with cell j of another row), (n, columns)."""
    whole, out = _nats(model, x, generator), np.empty(tuple(x.shape))
    for j in range(x.shape[1]):
        values = typical[torch.randint(len(typical), (_SWAPS,), generator=generator), j]
        swapped = x.repeat_interleave(_SWAPS, 0)
        swapped[:, j] = values.repeat(len(x))
        nats = torch.as_tensor(_nats(model, swapped, generator)).reshape(len(x), _SWAPS)
        out[:, j] = whole - (nats.logsumexp(1) - np.log(_SWAPS)).numpy()
    return out

"""What a cross-validation found."""

import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from probgen import frames
from probgen.errors import StructureError
from probgen.logprob import LogProb

__all__ = ["Loo", "standard_error"]


def standard_error(values: np.ndarray) -> float:
    """Of a sum of n independent numbers: sqrt(n var), the variance with n - 1; NaN for one number."""
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    return math.sqrt(len(values) * float(values.var(ddof=1)))


@dataclass(frozen=True, eq=False, repr=False)
class Loo:
    """The expected log pointwise predictive density of rows that a fit did not see, in nats.

    Arguments:
        log_prob: Of each row (group, block): its number, kind, Monte Carlo error, target and key.
        kind: "psis-loo", "k-fold", "held-out", "leave-group-out" or "leave-future-out".
        method: How each row was left out, (n,): "psis", "psis (approximate posterior)", "moment matching", "refit",
            "k-fold", "held-out".
        k: Shape of each row's tail of weights, (n,): the larger, the less to trust; of moment-matched rows after it.
            NaN where no weights were used.
        k_before: The same before moment matching or a refit.
        good_k: k beyond which a number is not reliable.
        se: Standard error of ``elpd`` from the choice of rows; of blocks in time with their correlation.
        p_loo: Effective number of parameters: what seeing a row adds to its log density, summed; NaN where unknown.
        draws: Posterior draws; 0 for a point fit.
        monte_carlo: Standard error of ``elpd`` from the finite number of draws, which rows share; NaN where none can be
            trusted, or nothing is random.
        unit: What a row is: "rows", "groups", "blocks".
        notes: What a reader should know, in sentences.
    """

    log_prob: LogProb
    kind: str
    method: np.ndarray
    k: np.ndarray
    k_before: np.ndarray
    good_k: float
    se: float
    p_loo: float
    draws: int
    monte_carlo: float = math.nan
    unit: str = "rows"
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.log_prob)

    @cached_property
    def elpd_i(self) -> np.ndarray:
        """Of each row, (n,), -inf where a row is impossible; raises LikelihoodUnavailable for a refusal."""
        return self.log_prob.nats

    @property
    def elpd(self) -> float:
        """The sum over rows."""
        return float(self.elpd_i.sum())

    @property
    def keys(self) -> np.ndarray:
        """Of the rows, as the user gave them; labels of groups; first steps of blocks."""
        return np.arange(len(self)) if self.log_prob.event is None else self.log_prob.event.keys

    @property
    def target(self) -> str:
        """What the numbers are log densities of."""
        return self.log_prob.target

    @property
    def bad(self) -> np.ndarray:
        """Rows whose number is not reliable, (n,), bool."""
        return self.k > self.good_k  # NaN: nothing to distrust

    def frame(self) -> Any:
        """A pyarrow.Table: row, elpd, stderr, k, method, kind."""
        errors = np.full(len(self), math.nan) if self.log_prob.stderr is None else self.log_prob.stderr
        return frames.table(
            {
                "row": self.keys, "elpd": self.elpd_i, "stderr": errors, "k": self.k,
                "method": self.method.astype(object), "kind": [str(kind) for kind in self.log_prob.kinds],
            }
        )  # fmt: skip

    def to_elpd(self) -> Any:
        """ArviZ's ELPDData, for ``az.compare`` beside others; of ArviZ 0.23 or 1.x, whichever is installed.

        Raises:
            StructureError: -inf rows, of which ArviZ makes NaN. MissingExtra: ArviZ is not installed.
        """
        from probgen.evaluate import arviz

        if not np.isfinite(self.elpd_i).all():
            which = self.keys[~np.isfinite(self.elpd_i)]
            raise StructureError(
                f"{len(which)} impossible {self.unit}, first {which[0]!r}: ArviZ would answer NaN",
                "finite numbers",
                "Compare elpd_i here, or leave those rows out for all models",
            )
        return arviz.elpd_data(
            elpd_i=self.elpd_i, k=self.k, se=self.se, p=self.p_loo, good_k=self.good_k, draws=self.draws,
            names=self.keys, kind=self.kind, unit=self.unit, warning=bool(self.bad.any()),
        )  # fmt: skip

    def __str__(self) -> str:
        source = f"{self.draws} posterior draws" if self.draws else "a point fit"
        lines = [f"{self.kind}: {len(self)} {self.unit}, {source}; {self.target}, nats, {self.log_prob.kind}"]
        lines += [f"  elpd   {self.elpd:10.2f}  ± {self.se:.2f}" + _monte_carlo(self.monte_carlo)]
        lines += [] if math.isnan(self.p_loo) else [f"  p_loo  {self.p_loo:10.2f}"]
        lines += [f"  {count:6d} by {name}" for name, count in Counter(self.method.tolist()).items()]
        if not np.isnan(self.k).all():
            lines += [self._tails()]
        if infinite := int(np.isneginf(self.elpd_i).sum()):
            lines += [f"  impossible {self.unit}: {infinite}, counted, not dropped"]
        return "\n".join([*lines, *(f"  {note}." for note in self.notes)])

    def _tails(self) -> str:
        worst = f"largest k {np.nanmax(self.k):.2f}, good up to {self.good_k:.2f}"
        if not self.bad.any():
            return f"  {worst}: all reliable"
        names = ", ".join(str(key) for key in self.keys[self.bad][:5])
        return f"  {worst}: {self.bad.sum()} not reliable ({names}{', ...' if self.bad.sum() > 5 else ''})"

    __repr__ = __str__


def _monte_carlo(error: float) -> str:
    return "" if math.isnan(error) else f"  (Monte Carlo ± {error:.2g})"

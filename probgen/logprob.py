"""Log-likelihoods that know what kind of number they are, and the arithmetic that keeps them honest."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

import numpy as np

from probgen import frames
from probgen.errors import Incomparable, LikelihoodUnavailable, ParameterError, ShapeError

__all__ = ["Fingerprint", "Kind", "LogProb", "Summary"]


class Kind(StrEnum):
    """What a likelihood claims, from the strongest claim to the weakest."""

    EXACT = "exact"
    LOWER = "lower"
    UPPER = "upper"
    ESTIMATE = "estimate"
    SCORE = "score"  # no likelihood: ranks only among its own
    UNAVAILABLE = "unavailable"


_STRENGTH = {kind: i for i, kind in enumerate(Kind)}
_BIAS = {
    Kind.EXACT: "none",
    Kind.LOWER: "at or below the truth, in expectation",
    Kind.UPPER: "at or above the truth, in expectation",
    Kind.ESTIMATE: "of unknown side",
    Kind.SCORE: "not a likelihood",
    Kind.UNAVAILABLE: "no number",
}
_E, _L, _U, _S = Kind.EXACT, Kind.LOWER, Kind.UPPER, Kind.ESTIMATE
_DIFFERENCE = {
    (_E, _E): _E, (_E, _L): _U, (_E, _U): _L, (_E, _S): _S,
    (_L, _E): _L, (_L, _U): _L,
    (_U, _E): _U, (_U, _L): _U,
    (_S, _E): _S, (_S, _S): _S,
    (Kind.SCORE, Kind.SCORE): Kind.SCORE,
}  # fmt: skip
RATIO = "ratio"  # the measure of a difference: a pure number


def weakest(kinds: Sequence[Kind]) -> Kind:
    """The weakest claim; raises Incomparable where a lower meets an upper bound, or a score anything else."""
    claims = set(kinds) - {Kind.UNAVAILABLE}
    if {Kind.LOWER, Kind.UPPER} <= claims:
        raise Incomparable(
            "A lower bound was put together with an upper bound",
            "numbers whose errors lie on one side",
            "Bound both from the same side, or use exact numbers",
        )
    if Kind.SCORE in claims and len(claims) > 1:
        raise Incomparable("A score was put together with a likelihood", "scores only among themselves")
    return max(kinds, key=_STRENGTH.__getitem__)


def _difference_kind(a: Kind, b: Kind) -> Kind:
    if Kind.UNAVAILABLE in (a, b):
        return Kind.UNAVAILABLE
    if (a, b) not in _DIFFERENCE:
        raise Incomparable(
            f"A number of kind {a} minus one of kind {b} bounds nothing on either side",
            "exact - anything, anything - exact, lower - upper or upper - lower",
            "Score one of the two with an exact or opposite-sided estimator",
        )
    return _DIFFERENCE[a, b]


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What a LogProb's numbers are about, so that only like is compared with like.

    Arguments:
        keys: Row keys as the user gave them (a pandas index), else 0..n-1, shape (n,).
        content: A 64-bit hash of each row's checked content, missing cells included, shape (n,).
        dims: Observed cells a row, shape (n,).
        event: The event's repr: units, levels, resolution.
        measure: The event's canonical measure.
        integers: Whether every observed cell is a whole number.
        bytes: Bytes of the original text a row, shape (n,), for text only.
    """

    keys: np.ndarray
    content: np.ndarray
    dims: np.ndarray
    event: str
    measure: str
    integers: bool = False
    bytes: np.ndarray | None = None

    def __getitem__(self, rows: Any) -> "Fingerprint":
        taken = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name in ("keys", "content", "dims")}
        return replace(self, **taken, bytes=None if self.bytes is None else self.bytes[rows])

    @classmethod
    def concat(cls, parts: "Sequence[Fingerprint]") -> "Fingerprint":
        joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in ("keys", "content", "dims")}
        lengths = None if parts[0].bytes is None else np.concatenate([p.bytes for p in parts])  # type: ignore[misc]
        return replace(parts[0], **joined, integers=all(p.integers for p in parts), bytes=lengths)

    def same_rows(self, other: "Fingerprint") -> bool:
        return np.array_equal(self.content, other.content)


@dataclass(frozen=True)
class Summary:
    """A sum or mean of log-likelihoods with its errors kept apart.

    Arguments:
        value: The number, in ``unit``: nats, nats/row, bits/dim or bits/byte.
        kind: What the number is. In bits a lower bound on log p has become an upper bound on the code length.
        monte_carlo: Standard error from the estimator's own draws; None where nothing is random, NaN where none can
            be trusted.
        between_rows: Standard error from the choice of rows; NaN for a single row.
        impossible: Rows of probability zero.
    """

    value: float
    unit: str
    kind: Kind
    n: int
    monte_carlo: float | None
    between_rows: float
    impossible: int = 0
    by: str = ""

    def __float__(self) -> float:
        return self.value

    @property
    def bias(self) -> str:
        """Where the truth lies: the side of the bias, in words."""
        return _BIAS[self.kind]

    def __str__(self) -> str:
        parts = [str(self.kind)]
        if self.monte_carlo is not None:
            parts.append("Monte Carlo ± " + ("?" if math.isnan(self.monte_carlo) else f"{self.monte_carlo:.2g}"))
        if not math.isnan(self.between_rows):
            parts.append(f"between rows ± {self.between_rows:.2g}")
        if self.impossible:
            parts.append(f"{self.impossible} impossible rows")
        return f"{self.value:.4f} {self.unit} ({', '.join(parts)}; n={self.n})"


class _Nats:
    """The field ``nats``: reading it from a refusal raises, so that no NaN ever passes for a likelihood."""

    def __get__(self, lp: "LogProb | None", owner: type | None = None) -> np.ndarray:
        if lp is None:
            raise AttributeError("nats")
        refused = int(lp.refused.sum())
        if refused:
            some = "" if refused == len(lp) else f"{refused} of {len(lp)} rows: "
            rest = "" if refused == len(lp) else "; for the other rows: lp[~lp.refused].nats"
            raise LikelihoodUnavailable(f"{some}{lp.reason}", f"{lp.instead}{rest}")
        return lp.__dict__["nats"]

    def __set__(self, lp: "LogProb", value: Any) -> None:
        lp.__dict__["nats"] = value


@dataclass(frozen=True, eq=False, repr=False)
class LogProb:
    """Log-likelihoods of n observations, in nats, and the kind of number each is.

    Arguments:
        kinds: One Kind, or one a row; ``.kind`` is the weakest. A noisy bound bounds in expectation. Lower and upper
            never mix.
        nats: One number a row, shape (n,): finite, -inf (impossible), or NaN where the row's kind is unavailable.
            Reading it from a refusal raises LikelihoodUnavailable(reason, instead).
        by: The estimator, as it prints: ``IWAE(samples=64)``.
        stderr: Monte Carlo standard error a row; NaN where none can be trusted, None where nothing is random.
        of: The variable scored: "x", "x+u" (dequantised), "y|x".
        target: The distribution: "p", "p^ODE", "G(z)+N(0,0.1^2)".
        measure: Canonical, from the event: "counting", "lebesgue(cm)", "lebesgue(age) x counting(sex)".
        event: Fingerprint of the rows: keys, content, observed cells, units, levels, bytes of the original text.
        draws: Key of each row's random stream, shape (n,); rows (and two LogProbs) with equal keys share draws.
        diagnostics: Per row, by name: effective sample size, Pareto k, solver error, function evaluations.
        reason, instead: For a refusal: why, and the call to make in its place.

    ``+`` is the chain rule (log p(x|y) + log p(y)); ``-`` is a log ratio of two models on the same rows:
    exact - lower = upper, lower - upper = lower, lower - lower raises Incomparable. Both need the same rows.
    """

    kinds: np.ndarray
    nats: _Nats = _Nats()
    by: str = field(kw_only=True)
    stderr: np.ndarray | None = field(default=None, kw_only=True)
    of: str = field(default="x", kw_only=True)
    target: str = field(default="p", kw_only=True)
    measure: str = field(default="", kw_only=True)
    event: Fingerprint | None = field(default=None, kw_only=True)
    draws: np.ndarray | None = field(default=None, kw_only=True)
    diagnostics: Mapping[str, np.ndarray] = field(default_factory=dict, kw_only=True)
    reason: str = field(default="", kw_only=True)
    instead: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        nats = _vector(self.__dict__["nats"], "nats")
        n = len(nats)
        kinds = np.empty(n, dtype=object)
        kinds[:] = Kind(self.kinds) if isinstance(self.kinds, str) else [Kind(kind) for kind in self.kinds]
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "nats", nats)
        object.__setattr__(self, "stderr", None if self.stderr is None else _vector(self.stderr, "stderr", n))
        rows = {name: np.asarray(_plain(values)) for name, values in self.diagnostics.items()}
        object.__setattr__(self, "diagnostics", rows)
        for name, values in rows.items():
            if values.shape != (n,):
                raise ShapeError(f"diagnostics[{name!r}] has shape {values.shape}", f"one number a row, ({n},)")
        if (np.isnan(nats) != self.refused).any():
            raise ParameterError(
                "NaN nats outside refused rows, or numbers inside them",
                "a finite number or -inf for each row that has a likelihood, NaN for each row that is unavailable",
            )
        if self.refused.any() and not self.reason:
            raise ParameterError("A refusal without a reason", "reason and instead")
        weakest([*set(kinds)] or [Kind.EXACT])

    @classmethod
    def refuse(cls, n: int, reason: str, instead: str, **about: Any) -> "LogProb":
        """n rows that have no likelihood: why, and what to call in its place."""
        nan = np.full(n, math.nan)
        return cls(Kind.UNAVAILABLE, nan, reason=reason, instead=instead, **{"by": "", **about})  # type: ignore[arg-type]

    @classmethod
    def concat(cls, parts: "Sequence[LogProb]") -> "LogProb":
        """The rows of several LogProbs of one variable, one after the other.

        Raises:
            Incomparable: when the parts differ in variable, target or measure.
        """
        if not parts:
            raise ParameterError("No LogProb to join", "at least one")
        for name in ("of", "target", "measure"):
            _agree(name, *(getattr(part, name) for part in parts))
        prints = [part.event for part in parts]
        joined = None if any(p is None for p in prints) else Fingerprint.concat(prints)  # type: ignore[arg-type]
        random = any(part.stderr is not None for part in parts)
        keyed = all(part.draws is not None for part in parts)
        names = set.intersection(*(set(part.diagnostics) for part in parts))
        refusing = next((part for part in parts if part.reason), parts[0])
        return refusing.replace(
            kinds=np.concatenate([part.kinds for part in parts]),
            nats=np.concatenate([part.__dict__["nats"] for part in parts]),
            stderr=np.concatenate([part._errors() for part in parts]) if random else None,
            draws=np.concatenate([part.draws for part in parts]) if keyed else None,  # type: ignore[misc]
            diagnostics={name: np.concatenate([part.diagnostics[name] for part in parts]) for name in names},
            by=" | ".join(dict.fromkeys(part.by for part in parts if part.by)),
            event=joined,
        )

    def replace(self, **changes: Any) -> "LogProb":
        """The same LogProb with some fields changed, refusals included."""
        return replace(self, **{"nats": self.__dict__["nats"], **changes})

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, rows: Any) -> "LogProb":
        """Some rows, by slice, mask or index array, as a LogProb."""
        rows = slice(rows, rows + 1 or None) if isinstance(rows, int | np.integer) else rows
        taken = {
            name: None if (value := self.__dict__[name]) is None else value[rows]
            for name in ("kinds", "nats", "stderr", "draws", "event")
        }
        return self.replace(**taken, diagnostics={name: d[rows] for name, d in self.diagnostics.items()})

    @property
    def kind(self) -> Kind:
        """The weakest kind among the rows."""
        return weakest([*set(self.kinds)] or [Kind.EXACT])

    @property
    def refused(self) -> np.ndarray:
        """Which rows have no number, shape (n,), bool."""
        return self.kinds == Kind.UNAVAILABLE

    @property
    def impossible(self) -> np.ndarray:
        """Which rows have probability zero (-inf), shape (n,), bool."""
        return np.isneginf(self.__dict__["nats"])

    def _errors(self) -> np.ndarray:
        return np.zeros(len(self)) if self.stderr is None else self.stderr

    def _error_of_sum(self, weights: np.ndarray | float = 1.0) -> float | None:
        """Rows that share draws add linearly, independent ones in quadrature."""
        if self.stderr is None:
            return None
        errors = self.stderr * weights
        if self.draws is not None:
            errors = np.bincount(np.unique(self.draws, return_inverse=True)[1], weights=errors)
        return float(np.sqrt(np.sum(errors**2)))

    def sum(self) -> Summary:
        """The total in nats. Its kind is the weakest row's: log-mean-exp numbers stay lower bounds whatever n."""
        n, total = len(self), float(self.nats.sum())
        spread = self._between(self.nats) * n
        return Summary(total, "nats", self.kind, n, self._error_of_sum(), spread, int(self.impossible.sum()), self.by)

    def mean(self) -> Summary:
        """The mean a row in nats; Monte Carlo error, between-row error and side of the bias stay apart."""
        s, n = self.sum(), max(len(self), 1)
        error = None if s.monte_carlo is None else s.monte_carlo / n
        return replace(s, value=s.value / n, unit="nats/row", monte_carlo=error, between_rows=s.between_rows / n)

    @staticmethod
    def _between(values: np.ndarray) -> float:
        if len(values) < 2 or not np.isfinite(values).all():
            return math.nan
        return float(values.std(ddof=1) / math.sqrt(len(values)))

    def bits_per_dim(self) -> Summary:
        """Code length in bits per observed cell: - log2 p(x) / dims, total over total.

        Raises:
            Incomparable: whole numbers scored by a density have no code length: declare ``levels`` (or dequantise).
        """
        about = self._about("bits per dimension")
        if about.integers and "lebesgue" in self.measure and self.of == "x":
            raise Incomparable(
                "Whole numbers were scored by a density, which can be made as high as one likes at isolated points",
                "a counting measure or dequantised data",
                "Declare the levels: events.Array(shape, levels=...), or score with dequantisation",
            )
        return self._bits(about.dims, "bits/dim")

    def bits_per_byte(self) -> Summary:
        """Code length in bits per byte of the original text; raises Incomparable for anything that is not text."""
        about = self._about("bits per byte")
        if about.bytes is None:
            raise Incomparable("Bits per byte of data that are not text", "an event of type Text", "Use bits_per_dim()")
        return self._bits(about.bytes, "bits/byte")

    def _about(self, what: str) -> Fingerprint:
        if self.event is None:
            raise Incomparable(f"{what} of a LogProb without a fingerprint", "one that came from model.log_prob(x)")
        return self.event

    def _bits(self, sizes: np.ndarray, unit: str) -> Summary:
        s, size = self.mean(), float(sizes.mean())
        ratio = -s.value / size
        spread = self._between(-self.nats - ratio * sizes) / size
        flipped = {Kind.LOWER: Kind.UPPER, Kind.UPPER: Kind.LOWER}.get(s.kind, s.kind)
        error = None if s.monte_carlo is None else s.monte_carlo / size / math.log(2)
        return replace(
            s, value=ratio / math.log(2), unit=unit, kind=flipped, monte_carlo=error, between_rows=spread / math.log(2)
        )

    def __add__(self, other: "LogProb") -> "LogProb":
        if not isinstance(other, LogProb):
            return NotImplemented
        of = _chain(self.of, other.of)
        measures = sorted({*self.measure.split(" x "), *other.measure.split(" x ")} - {""})
        return self._combine(
            other,
            lambda a, b: weakest([a, b]),
            np.add,
            of=of,
            measure=" x ".join(measures),
            target=_target(self.target, other.target, " x "),
            by=" + ".join(filter(None, (self.by, other.by))),
        )

    def __sub__(self, other: "LogProb") -> "LogProb":
        if not isinstance(other, LogProb):
            return NotImplemented
        _agree("of", self.of, other.of)
        _agree("measure", self.measure, other.measure)
        return self._combine(
            other,
            _difference_kind,
            np.subtract,
            measure=RATIO,
            target=_target(self.target, other.target, " / "),
            by=" - ".join(filter(None, (self.by, other.by))),
        )

    def _combine(self, other: "LogProb", kind: Callable, add: np.ufunc, **about: Any) -> "LogProb":
        if len(self) != len(other) or (self.event and other.event and not self.event.same_rows(other.event)):
            raise Incomparable(
                f"Two LogProbs of different rows ({len(self)} and {len(other)})",
                "the same rows in the same order",
                "Score both models on one data set",
            )
        table = {(a, b): kind(a, b) for a, b in set(zip(self.kinds, other.kinds, strict=True))}
        kinds = np.empty(len(self), dtype=object)
        kinds[:] = [table[pair] for pair in zip(self.kinds, other.kinds, strict=True)]
        with np.errstate(invalid="ignore"):
            nats = add(self.__dict__["nats"], other.__dict__["nats"])
        undefined = np.isnan(nats) & (kinds != Kind.UNAVAILABLE)
        kinds[undefined] = Kind.UNAVAILABLE
        both = "the row is impossible under both models: 0/0 has no logarithm" if undefined.any() else ""
        stderr, draws = _joint_error(self, other)
        return self.replace(
            kinds=kinds,
            nats=np.where(kinds == Kind.UNAVAILABLE, math.nan, nats),
            stderr=stderr,
            draws=draws,
            event=self.event or other.event,
            diagnostics={},
            reason=self.reason or other.reason or both,
            instead=self.instead or other.instead or ("compare the other rows" if both else ""),
            **about,
        )

    def frame(self) -> Any:
        """A pyarrow.Table: row, log_prob, stderr, kind, by, of, target, measure, reason; null where there is none."""
        n, refused = len(self), self.refused
        return frames.table(
            {
                "row": np.arange(n) if self.event is None else self.event.keys,
                "log_prob": np.ma.MaskedArray(self.__dict__["nats"], refused),
                "stderr": np.ma.MaskedArray(self._errors(), refused | (self.stderr is None) | np.isnan(self._errors())),
                "kind": [str(kind) for kind in self.kinds],
                "by": [self.by] * n,
                "of": [self.of] * n,
                "target": [self.target] * n,
                "measure": [self.measure] * n,
                "reason": [self.reason if r else None for r in refused],
            }
        )

    def __repr__(self) -> str:
        rows = f"{len(self)} row" + "s" * (len(self) != 1)
        if self.refused.all():
            return f"LogProb(unavailable, {rows}: {self.reason}; instead: {self.instead})"
        mean = self[~self.refused].mean()
        refused = f", {int(self.refused.sum())} refused: {self.reason}" if self.refused.any() else ""
        density = ", density: may be > 0" if "lebesgue" in self.measure else ""
        about = f"of {self.of} under {self.target}, measure {self.measure or 'unknown'}{density}"
        return f"LogProb({mean}, {rows}{refused}; by {self.by or 'the model'}; {about})"


def _plain(values: Any) -> Any:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values


def _vector(values: Any, name: str, n: int | None = None) -> np.ndarray:
    vector = np.array(_plain(values), dtype=np.float64)
    if vector.ndim != 1 or (n is not None and len(vector) != n):
        raise ShapeError(f"{name} has shape {vector.shape}", f"one number a row, ({'n' if n is None else n},)")
    return vector


def _agree(name: str, *values: str) -> None:
    if len(set(values)) > 1:
        raise Incomparable(
            f"LogProbs that differ in {name}: {', '.join(sorted(set(map(repr, values))))}",
            f"one {name}",
            "Fit both models to one event and score the same variable",
        )


def _target(a: str, b: str, sign: str) -> str:
    if a == b:
        return a
    if "p" not in (a, b):
        raise Incomparable(f"Numbers about two different distributions, {a} and {b}", "one of them about p itself")
    return f"{a}{sign}{b}"


def _chain(a: str, b: str) -> str:
    """The variable of log p(a) + log p(b): "x|y" + "y" is "x,y". Anything else is no density."""
    for one, two in ((a, b), (b, a)):
        x, _, given = one.partition("|")
        y, _, rest = two.partition("|")
        conditions = set(filter(None, given.split(",")))
        if conditions == set(y.split(",")) | set(filter(None, rest.split(","))) and not set(x.split(",")) & conditions:
            return f"{x},{y}" + (f"|{rest}" if rest else "")
    raise Incomparable(
        f"log p({a}) + log p({b}) is no log-probability",
        "the chain rule: log p(x|y) + log p(y)",
        "To total the rows of one variable use .sum() or LogProb.concat",
    )


def _joint_error(a: LogProb, b: LogProb) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Standard errors of a row-wise sum or difference: shared draws add linearly, independent ones in quadrature."""
    if a.stderr is None or b.stderr is None:
        random = a if b.stderr is None else b
        return random.stderr, random.draws
    if a.draws is None or b.draws is None:
        return np.hypot(a.stderr, b.stderr), None
    shared = a.draws == b.draws
    errors = np.where(shared, a.stderr + b.stderr, np.hypot(a.stderr, b.stderr))
    return errors, np.where(shared, a.draws, a.draws * np.uint64(0x9E3779B97F4A7C15) ^ b.draws)

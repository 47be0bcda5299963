"""Log-likelihoods that know what kind of number they are."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from probgen import frames
from probgen.errors import Incomparable, LikelihoodUnavailable, ParameterError, ShapeError
from probgen.logprob.draws import error_of_sum, joined_errors, joint_errors, keys_of_rows
from probgen.logprob.fingerprint import Fingerprint, agree, chain, joint_measure, joint_rows, joint_target
from probgen.logprob.kinds import RATIO, Kind, Summary, difference_kind, kinds_of_rows, weakest


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
        components: Of a sum or difference: its terms' (stderr, draws), so that shared draws stay known.

    ``+`` is the chain rule (log p(x|y) + log p(y)); ``-`` is a log ratio of two models on the same rows:
    exact - lower = upper, lower - upper = lower, lower - lower raises Incomparable. Both need the same rows.
    """

    kinds: Any
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
    components: tuple[tuple[np.ndarray, np.ndarray], ...] = field(default=(), kw_only=True)

    __array_ufunc__ = None  # numbers from NumPy meet + and - as any other foreign thing does

    def __post_init__(self) -> None:
        nats = _vector(self.__dict__["nats"], "nats")
        n = len(nats)
        object.__setattr__(self, "nats", nats)
        object.__setattr__(self, "kinds", kinds_of_rows(self.kinds, n))
        refused = self.refused
        if (np.isnan(nats) != refused).any():
            raise ParameterError(
                "NaN nats outside refused rows, or numbers inside them",
                "a finite number or -inf for each row that has a likelihood, NaN for each row that is unavailable",
                "Give refused rows the kind unavailable",
            )
        if np.isposinf(nats).any() and self.measure != RATIO:
            raise ParameterError("nats of +inf", "finite numbers or -inf: no density is infinite", "Check the model")
        for name in ("stderr", "draws", "event"):
            value = getattr(self, name)
            if value is not None and len(value) != n:
                raise ShapeError(
                    f"{name} of {len(value)} rows for {n} nats", f"one a row, ({n},)", "Give one for each row"
                )
        if self.stderr is not None:
            object.__setattr__(self, "stderr", _vector(self.stderr, "stderr", n))
            if (self.stderr < 0).any():
                raise ParameterError(
                    "A negative standard error", "stderr >= 0, or NaN where unknown", "Give None if exact"
                )
        object.__setattr__(self, "draws", keys_of_rows(self))
        rows = {name: np.asarray(_plain(values)) for name, values in self.diagnostics.items()}
        object.__setattr__(self, "diagnostics", rows)
        for name, values in rows.items():
            if values.shape != (n,):
                raise ShapeError(f"diagnostics[{name!r}] has shape {values.shape}", f"one a row, ({n},)", "Reduce it")
        self._keep_reasons(refused)
        weakest([*set(self.kinds)] or [Kind.EXACT])

    def _keep_reasons(self, refused: np.ndarray) -> None:
        """``reason`` and ``instead`` may come one a row; read whole, they name each distinct one once."""
        for name in ("reason", "instead"):
            rows = np.empty(len(refused), dtype=object)
            rows[:] = getattr(self, name)
            rows[~refused] = None
            if any(not text for text in rows[refused]):
                raise ParameterError(f"A refusal without {name}", "reason and instead", "Say why, and what to call")
            self.__dict__[f"_{name}s"] = rows
            object.__setattr__(self, name, "; ".join(dict.fromkeys(rows[refused])))

    @classmethod
    def refuse(cls, n: int, reason: str, instead: str, **about: Any) -> "LogProb":
        """n rows that have no likelihood: why, and what to call in its place."""
        nan = np.full(n, math.nan)
        return cls(Kind.UNAVAILABLE, nan, reason=reason, instead=instead, **{"by": "", **about})

    @classmethod
    def concat(cls, parts: "Sequence[LogProb]") -> "LogProb":
        """The rows of several LogProbs of one variable, one after the other.

        Raises:
            Incomparable: when the parts differ in variable, target, measure or event.
        """
        if not parts:
            raise ParameterError("No LogProb to join", "at least one", "Score some rows first")
        for name in ("of", "target", "measure"):
            agree(name, *(getattr(part, name) for part in parts))
        prints = [part.event for part in parts]
        joined = None if any(p is None for p in prints) else Fingerprint.concat(prints)  # type: ignore[arg-type]
        names = set.intersection(*(set(part.diagnostics) for part in parts))
        return parts[0].replace(
            kinds=np.concatenate([part.kinds for part in parts]),
            nats=np.concatenate([part.__dict__["nats"] for part in parts]),
            **joined_errors(parts),
            diagnostics={name: np.concatenate([part.diagnostics[name] for part in parts]) for name in names},
            by=" | ".join(dict.fromkeys(by for part in parts for by in part.by.split(" | ") if by)),
            event=joined,
            reason=np.concatenate([part.__dict__["_reasons"] for part in parts]),
            instead=np.concatenate([part.__dict__["_insteads"] for part in parts]),
        )

    def replace(self, **changes: Any) -> "LogProb":
        """The same LogProb with some fields changed, refusals included."""
        kept = {
            "nats": self.__dict__["nats"],
            "reason": self.__dict__["_reasons"],
            "instead": self.__dict__["_insteads"],
        }
        return replace(self, **{**kept, **changes})

    def __len__(self) -> int:
        return len(self.kinds)

    def __iter__(self) -> "Iterator[LogProb]":
        return (self[i] for i in range(len(self)))

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise Incomparable("A LogProb as a plain array, which would lose its kinds", ".nats", "np.asarray(lp.nats)")

    def __getitem__(self, rows: Any) -> "LogProb":
        """Some rows, by number, slice, mask or index array, as a LogProb."""
        if isinstance(rows, int | np.integer):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"row {rows} of {len(self)}")
            rows = slice(rows, rows + 1 or None)
        taken = {
            name: None if (value := self.__dict__[name]) is None else value[rows]
            for name in ("kinds", "nats", "stderr", "draws", "event")
        }
        taken |= {name: self.__dict__[f"_{name}s"][rows] for name in ("reason", "instead")}
        parts = tuple((errors[rows], keys[rows]) for errors, keys in self.components)
        return self.replace(
            **taken, components=parts, diagnostics={name: d[rows] for name, d in self.diagnostics.items()}
        )

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

    @property
    def pointwise(self) -> bool:
        """Whether each row is a predictive density by itself, so that the rows' sum is not that of a joint."""
        return self.measure != RATIO and self.target.startswith(("p(x_i | D", "E_q[p(x_i |"))

    def sum(self) -> Summary:
        """The total in nats. Its kind is the weakest row's: log-mean-exp numbers stay lower bounds whatever n.

        Raises:
            Incomparable: posterior predictive densities of single rows: they share parameters, and do not multiply.
        """
        if self.pointwise and len(self) > 1:
            raise Incomparable(
                f"The sum of {len(self)} pointwise predictive densities {self.target}: rows share parameters, so that "
                "it is not the log-density of all rows together",
                "one row, or the mean a row",
                "lp.mean() is the expected log predictive density; probgen.loo(model, x) takes each row's own data out",
            )
        return self._total()

    def _total(self) -> Summary:
        n, nats = len(self), self.nats
        if np.isposinf(nats).any() and np.isneginf(nats).any():
            raise Incomparable(
                "Some rows are impossible under one model and others under the other: their sum is undefined",
                "finite log ratios",
                "Sum the finite rows, lp[np.isfinite(lp.nats)], and report the others by number",
            )
        total = float(nats.sum())
        spread = self._between(nats) * n
        return Summary(total, "nats", self.kind, n, error_of_sum(self), spread, int(self.impossible.sum()), self.by)

    def mean(self) -> Summary:
        """The mean a row in nats; Monte Carlo error, between-row error and side of the bias stay apart."""
        s, n = self._total(), len(self)
        if n == 0:
            raise ParameterError("The mean of no rows", "at least one row", "Check the selection")
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
        if about.integers and "lebesgue" in self.measure and not self.of.partition("|")[0].endswith("+u"):
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
            raise Incomparable(
                f"{what} of a LogProb without a fingerprint", "one that came from model.log_prob(x)", "Score it there"
            )
        return self.event

    def _bits(self, sizes: np.ndarray, unit: str) -> Summary:
        if self.kind is Kind.SCORE:
            raise Incomparable("A score is no code length", "a likelihood", "Rank scores by .mean() among their own")
        s, size = self.mean(), float(sizes.mean())
        if size == 0:
            raise Incomparable("No cell was observed", "at least one observed cell", "Drop rows that are all missing")
        ratio = -s.value / size
        spread = self._between(-self.nats - ratio * sizes) / size if math.isfinite(ratio) else math.nan
        flipped = {Kind.LOWER: Kind.UPPER, Kind.UPPER: Kind.LOWER}.get(s.kind, s.kind)
        error = None if s.monte_carlo is None else s.monte_carlo / size / math.log(2)
        return replace(
            s, value=ratio / math.log(2), unit=unit, kind=flipped, monte_carlo=error, between_rows=spread / math.log(2)
        )

    def __add__(self, other: "LogProb") -> "LogProb":
        if not isinstance(other, LogProb):
            return NotImplemented
        of = chain(self.of, other.of)
        if (self.measure == RATIO) != (other.measure == RATIO):
            raise Incomparable(
                "A log ratio plus a log-probability", "two ratios, or two log-probabilities", "Add first"
            )
        return self._combine(
            other,
            lambda a, b: weakest([a, b]),
            np.add,
            of=of,
            measure=joint_measure(self.measure, other.measure),
            target=joint_target(self.target, other.target, " x "),
            event=joint_rows(self.event, other.event),
            by=" + ".join(filter(None, (self.by, other.by))),
        )

    def __sub__(self, other: "LogProb") -> "LogProb":
        if not isinstance(other, LogProb):
            return NotImplemented
        agree("of", self.of, other.of)
        agree("measure", self.measure, other.measure)
        return self._combine(
            other,
            difference_kind,
            np.subtract,
            measure=RATIO,
            target=joint_target(self.target, other.target, " / "),
            by=" - ".join(filter(None, (self.by, other.by))),
        )

    def _combine(
        self, other: "LogProb", kind: Callable, add: np.ufunc, event: Fingerprint | None = None, **about: Any
    ) -> "LogProb":
        known = event is not None or not (self.event and other.event) or self.event.same_rows(other.event)
        if len(self) != len(other) or not known:
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
        reasons, insteads = (
            np.where(self.refused, self.__dict__[name], other.__dict__[name]) for name in ("_reasons", "_insteads")
        )
        reasons[undefined] = "the row is impossible under both models: 0/0 has no logarithm"
        insteads[undefined] = "compare the other rows"
        return self.replace(
            kinds=kinds,
            nats=np.where(kinds == Kind.UNAVAILABLE, math.nan, nats),
            **joint_errors(self, other),
            event=event or self.event or other.event,
            diagnostics={},
            reason=reasons,
            instead=insteads,
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
                "kind": np.array([str(kind) for kind in self.kinds], dtype=str),
                "by": np.full(n, self.by),
                "of": np.full(n, self.of),
                "target": np.full(n, self.target),
                "measure": np.full(n, self.measure),
                "reason": np.ma.MaskedArray(np.where(refused, self.__dict__["_reasons"], "").astype(str), ~refused),
            }
        )

    def __repr__(self) -> str:
        rows = f"{len(self)} row" + "s" * (len(self) != 1)
        if not len(self):
            return f"LogProb({rows})"
        if self.refused.all():
            return f"LogProb(unavailable, {rows}: {self.reason}; instead: {self.instead})"
        nats = self[~self.refused]
        undefined = np.isposinf(nats.nats).any() and np.isneginf(nats.nats).any()
        mean = f"{self.kind}, mean undefined: +inf and -inf" if undefined else nats.mean()
        refused = f", {int(self.refused.sum())} refused: {self.reason}" if self.refused.any() else ""
        density = ", density: may be > 0" if "lebesgue" in self.measure else ""
        about = f"of {self.of} under {self.target}, measure {_short(self.measure) or 'unknown'}{density}"
        return f"LogProb({mean}, {rows}{refused}; by {self.by or 'the model'}; {about})"


def _short(measure: str) -> str:
    """A product of many columns by its first two."""
    parts = measure.split(" x ")
    return measure if len(parts) <= 6 else f"{parts[0]} x {parts[1]} x ... ({len(parts)} columns)"


def _plain(values: Any) -> Any:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else values


def _vector(values: Any, name: str, n: int | None = None) -> np.ndarray:
    vector = np.array(_plain(values), dtype=np.float64)
    if vector.ndim != 1 or (n is not None and len(vector) != n):
        raise ShapeError(
            f"{name} has shape {vector.shape}", f"one number a row, ({'n' if n is None else n},)", "Sum over the cells"
        )
    return vector

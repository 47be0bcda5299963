"""Likelihood weighting: a lower bound where no exact sum exists, or where it is too large."""

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen.errors import ParameterError
from probgen.estimate.weights import log_mean, quality, reliable
from probgen.events import row_hash
from probgen.logprob import Kind, LogProb
from probgen.models.bayesnet import graph
from probgen.models.bayesnet.scoring import measure

if TYPE_CHECKING:
    from probgen.models.bayesnet.network import BayesianNetwork

__all__ = ["LikelihoodWeighting", "check_samples", "judged", "stream", "streams"]


@dataclass(frozen=True)
class LikelihoodWeighting:
    """log of the mean, over draws of the missing cells, of the probability of the observed ones. Kind lower.

    Missing cells are drawn from their conditionals, parents first; those with nothing observed below them are left
    out. A row without a gap above an observed cell needs no draws and is exact. As with ``IWAE``, a pilot that never
    enters the number decides row by row whether a standard error is printed; where the observed cells are improbable
    under most draws the bound is loose, and -inf where none of them allows the row.

    Arguments:
        samples: Draws a row.

    Fung and Chang (1990); Shachter and Peot (1990).
    """

    samples: int = 1000

    def __post_init__(self) -> None:
        check_samples(self.samples)

    def __call__(self, model: Any, x: Tensor, given: Any = None, *, generator: torch.Generator) -> LogProb:
        if not hasattr(model, "conditional"):
            return LogProb.refuse(
                len(x), f"{type(model).__name__} is no Bayesian network", "log_prob(x) without by=", by=repr(self)
            )
        if given is not None:
            raise ParameterError("given= with likelihood weighting", "the cells themselves", "Put them into the rows")
        keys = streams(x, generator)
        found = [self._row(model, row, int(key)) for row, key in zip(x, keys, strict=True)]
        nats, stderr, ess, k = (np.array(column) for column in zip(*found, strict=True))
        exact = np.isnan(ess)
        kinds = np.where(exact, str(Kind.EXACT), str(Kind.LOWER))
        return LogProb(
            list(kinds),
            nats,
            by=repr(self),
            stderr=stderr,
            draws=keys,
            measure=measure(model),
            diagnostics={"ess": ess, "pareto_k": k, "samples": np.where(exact, 0, self.samples)},
        )

    def _row(self, net: "BayesianNetwork", row: Tensor, key: int) -> tuple[float, float, float, float]:
        """Nats, standard error, effective sample size and Pareto k of one row; NaN sizes where nothing was drawn."""
        needed = graph.ancestors(net.parents, [n for n in net.variables if not row[net.index[n]].isnan()])
        order = [name for name in net.order if name in needed]
        if not any(bool(row[net.index[name]].isnan()) for name in order):
            return float(_weights(net, row, order, 1, torch.Generator())[0]), 0.0, math.nan, math.nan
        pilot, main = (_weights(net, row, order, self.samples, stream(key, salt)) for salt in ("pilot", "main"))
        return judged(pilot, main)


def check_samples(samples: Any) -> None:
    if isinstance(samples, bool) or not isinstance(samples, int | np.integer) or samples < 2:
        raise ParameterError(f"samples={samples!r}", "a whole number of draws, at least 2")


def judged(pilot: Tensor, main: Tensor) -> tuple[float, float, float, float]:
    """log of the mean weight of the main draws, its standard error (NaN where the pilot forbids to trust one), and
    the pilot's effective sample size and Pareto k, from log weights (samples,)."""
    ess, k = quality(pilot[:, None])
    nats, stderr = log_mean(main[:, None])
    trusted = bool(reliable(ess, k, len(pilot))[0])
    error = max(float(stderr), float(log_mean(pilot[:, None])[1])) if trusted else math.nan
    return float(nats), error, float(ess), float(k)


def _weights(net: "BayesianNetwork", row: Tensor, order: list[str], samples: int, generator: torch.Generator) -> Tensor:
    """log of the product of the observed cells' conditionals under draws of the missing ones, (samples,), in nats."""
    values = row.repeat(samples, 1)
    total = row.new_zeros(samples)
    for name in order:
        column, part = net.index[name], net.conditional(name)
        parents = values[:, [net.index[parent] for parent in net.parents[name]]]
        if row[column].isnan():
            values[:, column] = part.sample(parents, generator)
        else:
            total = total + part.log_prob(values[:, column], parents)
    return total


def streams(x: Tensor, generator: torch.Generator) -> np.ndarray:
    """A key a row of the seed and the row's content alone, (n,), uint64."""
    seed = np.array([generator.initial_seed() % 2**64], dtype=np.uint64)
    both = row_hash(x) ^ row_hash(seed.view(np.int64)[:, None])
    return row_hash(both.view(np.int64)[:, None])


def stream(key: int, salt: str) -> torch.Generator:
    """A row's own generator; another salt gives independent draws."""
    digest = hashlib.blake2b(f"{key}{salt}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

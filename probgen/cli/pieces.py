"""Scoring of some rows, or of all; where it takes long piece by piece, with what is left in sight."""

import time
from typing import Any

import numpy as np

from probgen.cli.outputs import counted, say
from probgen.datasets import Dataset
from probgen.logprob import LogProb
from probgen.model import GenerativeModel, Latent
from probgen.training import Progress

__all__ = ["scored"]

_LOOK = 8  # rows that tell the pace
_PIECE = 5.0  # seconds of work at a time
_LONG = 60.0  # seconds that a user is warned of


def scored(model: GenerativeModel, data: Dataset, rows: int | None, by: Any, seed: int) -> LogProb:
    """``model.log_prob`` of all rows, or of at most so many, drawn at random, which keep their numbers.

    Where latents are integrated out a row may take seconds: then it goes by pieces. The values are those of one call:
    the draws of a row depend on the seed and its content alone.
    """
    latent = isinstance(model, Latent)
    if rows is None and not latent:
        return model.log_prob(data.x, by=by, seed=seed)
    checked = model._check(data.x)
    numbers = np.arange(n := len(checked))
    if rows is not None:
        numbers = np.sort(np.random.default_rng(seed).permutation(n)[:rows])

    def score(some: np.ndarray) -> LogProb:
        return model.log_prob(data.restore(checked[some]), by=by, seed=seed)

    if not latent or len(numbers) <= 2 * _LOOK:
        return score(numbers).replace(event=checked.about[numbers])
    began = time.perf_counter()
    parts = [score(numbers[:_LOOK])]
    each = max((time.perf_counter() - began) / len(parts[0]), 1e-6)
    left = numbers[_LOOK:]
    if (seconds := len(left) * each) > _LONG:
        say(f"probgen: about {_spoken(seconds)} for {counted(len(numbers), 'row')}; {_faster(by)}")
    step = max(_LOOK, int(_PIECE / each))
    with Progress("Scoring", len(left)) as progress:
        for first in range(0, len(left), step):
            progress.to(first)
            parts.append(score(left[first : first + step]))
    return LogProb.concat(parts).replace(event=checked.about[numbers])


def _faster(by: Any) -> str:
    some = "--rows 500 scores some, drawn at random"
    return some if by else f"{some}; --by iwae:samples=200 is a looser bound in less time"


def _spoken(seconds: float) -> str:
    """Such as 3 min, 5.2 h."""
    return f"{seconds / 3600:.2g} h" if seconds >= 5400 else f"{max(seconds / 60, 1):.0f} min"

"""What a hidden Markov model looks like."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from probgen import plots
from probgen.events import Panel, Ragged
from probgen.models.hmm.queries import _regimes, decode, posterior

if TYPE_CHECKING:
    from probgen.models.hmm.hmm import HMM

_LONGEST = 2000  # steps drawn


@torch.no_grad()
def plot(hmm: "HMM", x: Ragged, given: Ragged | None, path: str | PathLike) -> Path:
    """The first sequence, at most its first 2000 steps: values with the decoded path, posterior, graph of moves."""
    first = x[0]
    inputs = None if given is None else given[0]
    decoded = decode(hmm, first, inputs, "viterbi")[0][:_LONGEST]
    shares = posterior(hmm, first, inputs, False).marginals[0][:_LONGEST]
    values = first.values.reshape(len(first.values), -1).numpy()[:_LONGEST]
    names = list(hmm.event.columns) if isinstance(hmm.event, Panel) else None
    plots.sequence(
        path,
        states=(values, decoded, _means(hmm)),
        heat=shares,
        graph=(_moves(hmm), hmm.transitions.labels()),
        names=names,
    )
    return Path(path)


def _means(hmm: "HMM") -> np.ndarray | None:
    """The mean cells of each state, (K, width), where they don't depend on anything else."""
    if hmm.emission.covariates:
        return None
    uses = torch.arange(hmm.states) if hmm.tie is None else torch.tensor(hmm.tie)
    return hmm.emission.mean()[uses].numpy()


def _moves(hmm: "HMM") -> np.ndarray:
    """p(next state | state) between the states that a user counts; expanded states weigh by how often they are held."""
    matrix = hmm.transitions.log_matrix().exp()
    if hmm.transitions.size == hmm.states:
        return matrix.numpy()
    held = torch.full((len(matrix),), 1 / len(matrix), dtype=matrix.dtype)
    for _ in range(500):
        held = held @ matrix
    sums = _regimes(hmm, (held[:, None] * matrix))
    rows = _regimes(hmm, sums.mT).mT
    return (rows / rows.sum(1, keepdim=True).clamp(min=1e-300)).numpy()

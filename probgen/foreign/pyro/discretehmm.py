"""Pyro's DiscreteHMM and our HiddenMarkov, which disagree on the first step: Pyro moves once before it observes."""

from typing import Any

import pyro.distributions as dist
import torch

from probgen.errors import ParameterError, StructureError
from probgen.models.hmm import HMM, HiddenMarkov

__all__ = ["export", "from_discrete"]


def from_discrete(foreign: Any) -> HiddenMarkov:
    """A DiscreteHMM of a known duration as HiddenMarkov: its first move is taken into the initial distribution."""
    if not isinstance(foreign, dist.DiscreteHMM):
        raise StructureError(f"Pyro's {type(foreign).__name__}", "a DiscreteHMM")
    duration = foreign.duration
    moves = foreign.transition_logits
    if duration is None or foreign.batch_shape or moves.ndim > 3:
        raise StructureError(
            f"A DiscreteHMM of batch shape {tuple(foreign.batch_shape)} and duration {duration}",
            "no batch and a known duration",
            "DiscreteHMM(..., duration=T)",
        )
    first = moves if moves.ndim == 2 else moves[0]
    initial = (foreign.initial_logits[:, None] + first).logsumexp(0)
    moves = moves[0] if moves.ndim == 3 and len(moves) == 1 else moves
    return HiddenMarkov(initial, moves, foreign.observation_dist, duration)


def export(model: Any, duration: int | None = None) -> Any:
    """A DiscreteHMM whose first move goes nowhere, so that its numbers are ours."""
    if not isinstance(model, HMM) or model.context is not None or model.emission.covariates:
        raise StructureError(f"{model!r}", "an HMM without inputs and lags", "DiscreteHMM has none")
    if isinstance(duration, bool) or not isinstance(duration, int) or duration < 1:
        raise ParameterError(f"duration={duration!r}", "the number of steps, for the first differs from the others")
    initial, matrix = (part.detach() for part in model.transitions())
    stay = torch.eye(len(initial), dtype=matrix.dtype).log()
    moves = torch.cat([stay[None], matrix.expand(duration - 1, -1, -1)])
    cells = model.emission.cells(model._uses)
    return dist.DiscreteHMM(initial, moves, cells.to_event(len(cells.batch_shape) - 1), duration=duration)

"""How long, how fast and on how many rows a step to train."""

import math
from dataclasses import dataclass
from os import PathLike
from typing import Any

from probgen.errors import ParameterError

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """How to train.

    Arguments:
        steps: Gradient steps; or
        budget: seconds, turned into steps once, by a pilot, and recorded.
        batch_size: Rows a step, of all ranks together.
        learning_rate: Peak of a linear warm-up and a cosine that ends at 1 % of it.
        warmup: Steps of it.
        weight_decay: Decoupled from the gradient, as a multiple of the learning rate (Loshchilov and Hutter 2019).
        clip: Largest gradient norm; 0 for none.
        ema: Decay of an exponential moving average of the parameters, which the model ends with; 0 for none.
        validation: Share of rows held out to choose the best state; 0 for none.
        patience: Evaluations without a gain before stopping early; 0 never stops.
        grace: Share of the steps in which patience does not run out.
        evaluations: How often the validation rows are scored.
        checkpoint: A folder for the whole training state.
        every: Steps between checkpoints.
        resume: Go on from the checkpoint, with as many ranks: the same bits as an unbroken run.
    """

    steps: int | None = None
    budget: float | None = None
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.0
    clip: float = 100.0
    ema: float = 0.0
    validation: float = 0.1
    patience: int = 0
    grace: float = 0.0
    evaluations: int = 40
    checkpoint: str | PathLike | None = None
    every: int = 500
    resume: bool = False

    def __post_init__(self) -> None:
        whole = {"steps": 1, "batch_size": 1, "evaluations": 1, "every": 1, "warmup": 0, "patience": 0}
        for name, least in {**whole, "budget": 1e-9, "learning_rate": 0, "weight_decay": 0, "clip": 0}.items():
            value = getattr(self, name)
            if value is None and name in ("steps", "budget"):
                continue
            right = isinstance(value, int if name in whole else int | float) and not isinstance(value, bool)
            if not right or not (least <= value < math.inf):
                raise ParameterError(
                    f"{name}={value!r}", f"a {'whole ' * (name in whole)}number >= {least}", "Change it"
                )
        for name in ("ema", "validation", "grace"):
            if not isinstance(getattr(self, name), int | float) or not 0 <= getattr(self, name) < 1:
                raise ParameterError(f"{name}={getattr(self, name)!r}", "a share: 0 <= share < 1", "Change it")
        if self.resume and self.checkpoint is None:
            raise ParameterError(
                "resume=True without a checkpoint", "checkpoint=FOLDER", "Name the folder to resume from"
            )

    def facts(self) -> dict[str, Any]:
        """What a resumed run must share with the first one."""
        return {name: value for name, value in vars(self).items() if name not in ("checkpoint", "every", "resume")}

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at a step."""
        ramp = min(1.0, (step + 1) / max(1, min(self.warmup, steps // 10)))
        return self.learning_rate * ramp * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))

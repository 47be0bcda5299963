"""The door to diffusers: its unconditional models from a local folder, with typed likelihoods."""

import copy
import json
import math
from pathlib import Path
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.errors import LikelihoodUnavailable, MissingExtra, ParameterError, StoreError, StructureError
from probgen.estimate.ode import ProbabilityFlow
from probgen.events import Array, Event
from probgen.logprob import LogProb
from probgen.model import FitReport, GenerativeModel
from probgen.models.diffusion.trig import END, SOLVERS, flow_times, solve

__all__ = ["DiffusersModel", "read", "wrap"]

_BATCH = 256
_PREDICTIONS = ("epsilon", "sample", "v_prediction")


class DiffusersModel(GenerativeModel):
    """An unconditional UNet2DModel with its noise schedule, behind the verbs of every other model.

    The schedule's noise levels are angles: y = cos(a) x + sin(a) z with cos(a)^2 = alphas_cumprod. ``log_prob``
    integrates the probability flow between the first and the last of them, the network's timestep interpolated: it is
    about x + N(0, tan(a_0)^2), which its target says, and takes the last level for pure noise. Above 64 cells the trace
    is estimated (Hutchinson), so the number is an estimate with its standard error; of integer pixels, dequantised, a
    lower bound in expectation.

    ``sample`` follows the same flow in ``steps`` steps, or, with ``sampler="scheduler"``, the folder's own scheduler.

    Arguments:
        unet: diffusers' UNet2DModel, without classes.
        scheduler: One with ``alphas_cumprod``, as DDPM, DDIM, PNDM and DPM-Solver have.
        event: Array of (channels, height, width) reals in the network's own scale, [-1, 1], which None takes; or with
            levels=256 the integer pixels that it was trained on.

    Song et al. (2021), the probability flow; Theis, van den Oord and Bethge (2016), dequantisation.
    """

    angles: Tensor

    def __init__(self, unet: Any, scheduler: Any, event: Event | None = None) -> None:
        shape = _checked(unet, scheduler)
        event = Array(shape) if event is None else event
        super().__init__(event)
        if event.shape not in (shape, shape[1:] if shape[0] == 1 else shape):  # type: ignore[attr-defined]
            raise StructureError(f"event={event!r}", f"an Array of shape {shape}, as the network's images")
        self.unet, self.scheduler = unet, scheduler
        self.unet.requires_grad_(False)
        _plain_attention(unet)
        self.image, self.prediction = shape, scheduler.config.prediction_type
        angles = torch.as_tensor(scheduler.alphas_cumprod, dtype=torch.float64).sqrt().arccos()
        self.register_buffer("angles", angles)
        self.flow_dim = math.prod(shape)
        self.flow_random = event.levels is not None  # type: ignore[attr-defined]
        self.flow_target = f"p^ODE + N(0, {math.tan(float(angles[0])):.2g}^2)"
        self.report = FitReport((), 0, "imported")
        self.eval()

    @classmethod
    def suits(cls, event: Event) -> str | None:
        if not isinstance(event, Array):
            return f"its network takes images, not {type(event).__name__}"
        if event.levels is None and event.support != "real":
            return "images are reals in [-1, 1], or integers by levels="
        return "levels must be the same for every pixel" if isinstance(event.levels, tuple) else None

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        raise StructureError("A diffusers model for an event", "a trained one", "probgen.wrap(folder)")

    # The flow

    def _flow_start(self, x: Tensor, given: None, noise: Tensor) -> tuple[Tensor, float, Tensor]:
        cells = x.reshape(len(x), -1)
        width, levels = 1.0, self.event.levels  # type: ignore[attr-defined]
        if levels is not None:
            width = 2 / levels
            cells = (cells + torch.special.ndtr(noise)) * width - 1
        shrink = math.cos(float(self.angles[0]))
        nats = torch.full((len(x),), self.flow_dim * (math.log(width) + math.log(shrink)), dtype=torch.float64)
        return shrink * cells, 0.0, nats

    def _flow_velocity(self, y: Tensor, t: Tensor, given: None) -> Tensor:
        """dy/dt where t in [0, pi/2] stretches over the schedule's angles."""
        first, last = float(self.angles[0]), float(self.angles[-1])
        angle = first + (last - first) * float(t[0]) / END
        timestep = torch.full((len(y),), self._timestep(angle), dtype=y.dtype)
        found = self.unet(y.reshape(-1, *self.image), timestep).sample.reshape(y.shape)
        return (last - first) / END * self._velocity(found, y, math.cos(angle), math.sin(angle))

    def _timestep(self, angle: float) -> float:
        """The schedule's number of an angle, between its numbers."""
        after = int(torch.searchsorted(self.angles, angle).clamp(1, len(self.angles) - 1))
        low, high = self.angles[after - 1], self.angles[after]
        return after - 1 + float((angle - low) / (high - low))

    def _velocity(self, found: Tensor, y: Tensor, cos: float, sin: float) -> Tensor:
        """cos noise - sin data, from what the network predicts."""
        if self.prediction == "v_prediction":
            return found
        if self.prediction == "epsilon":
            return (found - sin * y) / cos
        return (cos * y - found) / sin  # it predicts the data

    # Hooks

    def model(self, x: Tensor | None = None, given: None = None, n: int = 1) -> Tensor:
        if x is not None:
            raise LikelihoodUnavailable(
                "a flow's program has no density to condition on", "log_prob(x), which integrates along the flow"
            )
        with pyro.plate("rows", n):
            loc = torch.zeros(n, self.flow_dim, dtype=self._dtype)
            noise = pyro.sample("y", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            return pyro.deterministic("x", self._along(noise, 40, "ab2"))

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    def _fit(self, x: Any, given: None, *, generator: torch.Generator) -> FitReport:
        raise StructureError("fit of a diffusers model", "training by diffusers", "Or train probgen.Diffusion")

    def _log_prob(self, x: Tensor, given: None, *, generator: torch.Generator) -> LogProb:
        return ProbabilityFlow()(self, x, given, generator=generator)

    def _sample(
        self, n: int, given: None, *, generator: torch.Generator, sampler: str = "ab2", steps: int | None = None
    ) -> Tensor:
        """By the flow with "ab2", "heun" or "rk4" (40 steps if not told), or by the folder's own "scheduler"."""
        if sampler not in (*SOLVERS, "scheduler"):
            raise ParameterError(f"sampler={sampler!r}", f"one of {', '.join((*SOLVERS, 'scheduler'))}")
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise ParameterError(f"steps={steps!r}", "a whole number, at least 1")
        parts = []
        for size in [_BATCH] * (n // _BATCH) + [n % _BATCH] * bool(n % _BATCH):
            noise = torch.randn(size, self.flow_dim, generator=generator, dtype=self._dtype)
            if sampler == "scheduler":
                parts.append(self._scheduled(noise, steps, generator))
            else:
                parts.append(self._along(noise, steps or 40, sampler))
        return torch.cat(parts)

    def sample_target(self, sampler: str = "ab2", steps: int | None = None) -> str:
        if sampler == "scheduler":
            name = type(self.scheduler).__name__
            return f"{name}, {steps or self.scheduler.config.num_train_timesteps} steps"
        return f"{self.flow_target}, {steps or 40} steps of {sampler}"

    def _along(self, noise: Tensor, steps: int, sampler: str) -> Tensor:
        def field(y: Tensor, t: float) -> Tensor:
            return self._flow_velocity(y, torch.full((len(y),), t, dtype=y.dtype), None)

        y = solve(field, noise, flow_times(steps), sampler)
        return self._outside(y / math.cos(float(self.angles[0])))

    def _scheduled(self, noise: Tensor, steps: int | None, generator: torch.Generator) -> Tensor:
        own = copy.deepcopy(self.scheduler)
        own.set_timesteps(steps or own.config.num_train_timesteps)
        y = noise.reshape(-1, *self.image) * own.init_noise_sigma
        for t in own.timesteps:
            found = self.unet(own.scale_model_input(y, t), t).sample
            extra = {"generator": generator} if "generator" in own.step.__code__.co_varnames else {}
            y = own.step(found, t, y, **extra).prev_sample
        return self._outside(y.reshape(len(noise), -1))

    def _outside(self, cells: Tensor) -> Tensor:
        cells, levels = cells.to(torch.float64), self.event.levels  # type: ignore[attr-defined]
        if levels is not None:
            cells = ((cells + 1) * levels / 2).floor().clamp(0, levels - 1)
        return cells.reshape(len(cells), *self.event.shape)  # type: ignore[attr-defined]


def _plain_attention(unet: Any) -> None:
    """Attention by matrix products, which can be differentiated forwards."""
    parts = [part for part in unet.modules() if hasattr(part, "set_processor")]
    if parts:
        from diffusers.models.attention_processor import AttnProcessor

        for part in parts:
            part.set_processor(AttnProcessor())


def _checked(unet: Any, scheduler: Any) -> tuple[int, int, int]:
    """The shape of the network's images.

    Raises:
        StructureError: a network or schedule without a probability flow here.
    """
    if type(unet).__name__ != "UNet2DModel":
        raise StructureError(
            f"diffusers' {type(unet).__name__}", "a UNet2DModel over images", "Latent and text models have no p(image)"
        )
    if unet.config.num_class_embeds is not None or unet.config.class_embed_type is not None:
        raise StructureError(
            "A network with classes", "an unconditional one", "Its classes have no place in log_prob(x)"
        )
    channels, size = unet.config.in_channels, unet.config.sample_size
    if unet.config.out_channels != channels or size is None:
        raise StructureError(
            f"A network of {channels} to {unet.config.out_channels} channels and sample_size={size}",
            "as many out as in, and a size",
            "Learned variances are not read",
        )
    prediction = getattr(scheduler.config, "prediction_type", None)
    if not hasattr(scheduler, "alphas_cumprod") or prediction not in _PREDICTIONS:
        raise StructureError(
            f"{type(scheduler).__name__} of prediction_type={prediction!r}",
            f"a schedule with alphas_cumprod, of {', '.join(_PREDICTIONS)}",
            "DDPM, DDIM, PNDM and DPM-Solver schedulers have one",
        )
    height, width = (size, size) if isinstance(size, int) else size
    return int(channels), int(height), int(width)


def wrap(foreign: Any, event: Event | None = None) -> DiffusersModel:
    """A pipeline with an unconditional network."""
    parts = getattr(foreign, "components", {})
    if set(parts) != {"unet", "scheduler"}:
        raise StructureError(
            f"diffusers' {type(foreign).__name__} of {sorted(parts)}", "a pipeline of unet and scheduler alone"
        )
    return DiffusersModel(foreign.unet, foreign.scheduler, event)


def read(folder: Path, event: Event | None = None) -> DiffusersModel:
    """A folder that a pipeline was saved to: offline, safetensors only.

    Raises:
        StoreError: parts are missing or can't be read.
        MissingExtra: diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError as missing:
        raise MissingExtra("diffusers", "diffusers") from missing
    try:
        index = json.loads((folder / "model_index.json").read_text())
        parts = {name: value[1] for name, value in index.items() if isinstance(value, list) and value[0] is not None}
    except (OSError, ValueError, IndexError, AttributeError) as problem:
        raise StoreError(f"{folder / 'model_index.json'} can't be read", "one written by save_pretrained") from problem
    if set(parts) != {"unet", "scheduler"} or parts["unet"] != "UNet2DModel":
        raise StructureError(
            f"A pipeline of {', '.join(f'{name}={value}' for name, value in parts.items())}",
            "a UNet2DModel and a scheduler alone, as of DDPM and DDIM",
        )
    schedule = getattr(diffusers, str(parts["scheduler"]), None)
    if schedule is None or not str(parts["scheduler"]).endswith("Scheduler"):
        raise StructureError(f"A pipeline with a {parts['scheduler']}", "one of diffusers' schedulers")
    try:
        unet = diffusers.UNet2DModel.from_pretrained(
            folder / "unet", use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
        scheduler = schedule.from_pretrained(folder / "scheduler", local_files_only=True)
    except (OSError, ValueError, TypeError) as problem:
        text = " ".join(str(problem).split())[:200]
        raise StoreError(
            f"{folder} can't be read: {text}", "a folder of save_pretrained, with safetensors"
        ) from problem
    return DiffusersModel(unet, scheduler, event)

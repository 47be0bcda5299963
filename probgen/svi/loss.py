"""Stochastic variational inference on a foreign program: its ELBO, recorded once a batch shape and played back."""

import math
from typing import Any

import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from probgen.errors import FitError, StructureError
from probgen.svi.graph import Graph, gradients, record
from probgen.svi.program import Program, sites_of
from probgen.svi.rows import guide_terms, model_terms
from probgen.svi.structure import Structure

__all__ = ["NegativeELBO"]

_MOST_GRAPHS = 4


class NegativeELBO(nn.Module):
    """Minus the ELBO a row of a Pyro model and guide, in nats, with one draw of the guide.

    A batch of B rows out of N estimates  - mean_i [log p(x_i, z_i | theta) - log q(z_i | x_i, theta)]
    - [log p(theta) - log q(theta)] / N : what ``Trace_ELBO`` computes with the plate scaled by N / B, over N. Finite
    latents that the guide leaves alone are summed out row by row (TraceEnum_ELBO). Where the guide's draws are not
    reparameterised, or it has finite latents itself, Pyro's own estimator takes over.

    The program is recorded with its gradients at the first batch of each shape and played back after that, checked
    against the program itself at calls 1, 2, 4, 8, ...; ``notes`` says where it could not be.

    Arguments:
        rows: N, the rows that the global latents are inferred from.
        split: The batch tensor -> (x, given).
        record: Whether to record at all.

    Kingma and Welling (2014); Ranganath, Gerrish and Blei (2014) where draws are not reparameterised.
    """

    def __init__(self, program: Program, structure: Structure, rows: int, split: Any, record: bool = True) -> None:
        super().__init__()
        self.program, self.structure, self.rows, self.split = program, structure, rows, split
        self.record, self.notes = record, []  # type: ignore[var-annotated]
        self.graphs: dict[tuple, tuple[Graph, list[nn.Parameter]]] = {}
        self.calls = 0

    def forward(self, batch: Tensor, generator: torch.Generator, share: float = 1.0) -> Tensor:
        """The loss of one batch, a scalar; its gradients flow to the program's parameters.

        Raises:
            FitError: the loss is not finite; the site or parameter that made it so is named.
        """
        before = generator.get_state()
        if not (self.record and torch.is_grad_enabled()):
            loss = self.program_loss(batch, generator)
        else:
            loss = self._play(batch, generator, before)
        if not math.isfinite(float(loss.detach())):
            generator.set_state(before)
            raise FitError(*self._blame(batch, generator))
        return loss

    def program_loss(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """The loss by running the program itself."""
        with self.program.running(generator):
            return self._loss(batch)

    def _loss(self, batch: Tensor) -> Tensor:
        x, given = self.split(batch)
        if not self.structure.plain:
            return self._by_pyro(x, given)
        guide = self.program.trace_guide(x, given)
        values = {name: site["value"] for name, site in sites_of(guide).items() if name in self.structure.latents}
        rows_q, shared_q = guide_terms(guide, self.structure, len(x))
        rows_p, shared_p = model_terms(self.program, self.structure, x, given, values)
        return -(rows_p - rows_q).mean() - (shared_p - shared_q) / self.rows

    def _by_pyro(self, x: Tensor, given: Tensor | None) -> Tensor:
        scaled = _Scale(self.structure.plate, self.rows / len(x))
        model, guide = (scaled(program) for program in self.program.pair if program is not None)
        if self.structure.finite:
            elbo: Any = TraceEnum_ELBO(max_plate_nesting=self.structure.nesting, strict_enumeration_warning=False)
            model, guide = (config_enumerate(program, default="parallel") for program in (model, guide))
        else:
            elbo = Trace_ELBO(max_plate_nesting=self.structure.nesting)
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():  # without, it finds nothing to differentiate and refuses
            loss = elbo.differentiable_loss(model, guide, x, given) / self.rows
        return loss if wanted else loss.detach()

    # Recording

    def _play(self, batch: Tensor, generator: torch.Generator, before: Tensor) -> Tensor:
        key = (tuple(batch.shape), batch.dtype)
        if key not in self.graphs:
            if len(self.graphs) >= _MOST_GRAPHS or not self._record(batch, generator, key):
                return self.program_loss(batch, generator)
            generator.set_state(before)
        graph, parameters = self.graphs[key]
        loss, *slopes = graph(batch, generator=generator)
        self.calls += 1
        if self.calls & (self.calls - 1) == 0 and not self._agrees(loss, batch, before):
            self._give_up("its path or its constants change from step to step")
            generator.set_state(before)
            return self.program_loss(batch, generator)
        return _Played.apply(loss, slopes, *parameters)

    def _record(self, batch: Tensor, generator: torch.Generator, key: tuple) -> bool:
        """Records the loss and its gradients; False where the program does not allow it."""
        scratch = generator.clone_state()
        self.program_loss(batch, scratch)  # registers what the program creates at its first call
        self.program.adopt_leaves(self.program_loss(batch, scratch))
        parameters = list(self.program.parameters())
        try:
            with self.program.running(scratch):
                graph = record(lambda part: gradients(self._loss(part), parameters), batch, generator=scratch)
        except StructureError as problem:
            self._give_up(problem.came)
            return False
        self.graphs[key] = (graph, parameters)
        return True

    def _agrees(self, loss: Tensor | None, batch: Tensor, before: Tensor) -> bool:
        scratch = torch.Generator()
        scratch.set_state(before)
        with torch.no_grad():
            wanted = self.program_loss(batch, scratch)
        return loss is not None and bool(torch.isclose(loss, wanted, rtol=1e-4, atol=1e-5, equal_nan=True))

    def _give_up(self, reason: str) -> None:
        self.record = False
        self.graphs.clear()
        self.notes.append(f"the program runs step by step, not recorded: {reason}")

    # What went wrong

    @torch.no_grad()
    def _blame(self, batch: Tensor, generator: torch.Generator) -> tuple[str, str, str]:
        """The three facts of a non-finite loss: the first parameter, value or log-density that is not finite."""
        do = "The model keeps its best state so far; try a smaller learning_rate, or check the data's scale"
        for name, key in self.program.names.items():
            if not bool(self.program.values[key].isfinite().all()):
                return f"The parameter {name!r} became non-finite", "finite numbers", do
        x, given = self.split(batch)
        with self.program.running(generator):
            guide = self.program.trace_guide(x, given)
            guide.compute_log_prob()
            values = {name: site["value"] for name, site in sites_of(guide).items() if name in self.structure.latents}
            model = self.program.trace_model(x, given, values)
        for part, trace in (("guide", guide), ("model", model)):
            for name, site in sites_of(trace).items():
                for what in ("value", "log_prob"):
                    if not bool(site[what].isfinite().all()):
                        odd = site[what][~site[what].isfinite()].reshape(-1)[0].item()
                        where = "The log-density" if what == "log_prob" else "The value"
                        return f"{where} of the site {name!r} of the {part} became {odd}", "finite numbers", do
        return "The loss became non-finite, though no site did", "finite numbers", do


class _Played(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, slopes: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.slopes = slopes
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        factor = float(grad[0])
        slopes = ctx.slopes if factor == 1 else [None if s is None else s * factor for s in ctx.slopes]
        return (None, None, *slopes)


class _Scale(Messenger):
    """Weighs the sites of one plate: a batch stands for all rows."""

    def __init__(self, plate: str, factor: float) -> None:
        super().__init__()
        self.plate, self.factor = plate, factor

    def _pyro_sample(self, msg: Any) -> None:
        if any(frame.name == self.plate for frame in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.factor

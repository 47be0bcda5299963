"""Anybody's Pyro program as a model: fitted by variational inference or NUTS, sampled, scored row by row."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide, AutoNormal
from torch import Tensor, nn

from probgen.errors import NotFittedError, ParameterError, StructureError, nearest
from probgen.estimate import Ladder
from probgen.events import Array, Event, Table
from probgen.foreign.pyro import posterior
from probgen.foreign.pyro.batches import check_sites, side_by_side
from probgen.foreign.pyro.calls import Automatic, Call, signature_of
from probgen.foreign.pyro.drawing import Released, draw, template
from probgen.foreign.pyro.nuts import posterior_draws
from probgen.foreign.pyro.predictive import PosteriorPredictive
from probgen.foreign.pyro.rows import Rows
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel
from probgen.posterior import Draws, Plan
from probgen.svi import NegativeELBO, Program, Structure, check_guide, look
from probgen.training import Player, Schedule, train

__all__ = ["PyroProgram"]

_METHODS = ("svi", "nuts", "laplace")


class PyroProgram(GenerativeModel):
    """Anybody's Pyro program, unmodified, with the verbs of every other model; made by ``probgen.wrap``.

    The rows are the members of one plate, which tracing finds: its size follows the number of rows. Latents inside it
    are each row's own, those outside are shared.

    ``log_prob`` sums finite latents out exactly and is exact where no others are left; continuous latents of a row are
    integrated by importance sampling from the guide, up the ladder: a lower bound. Where latents are shared and have
    a posterior, the answer is log E_q[p(x | theta)] over its draws: an estimate, and its rows share those draws. Where
    a guide has parameters of its own for every training row (AutoNormal with local latents), or none that normal noise
    can be pushed through, rows are scored with a normal at the mode of log p(x, z).

    Pyro's parameter store is not touched: what the program registers there becomes a parameter of this model. A fit
    starts from the values that the program's networks had when it was wrapped, and trains those very networks; a copy
    of this model shares them where the program is a plain function.

    Arguments:
        pair: (model, guide), or a model alone. A guide is a function, a module, an autoguide or the class of one; None
            takes AutoNormal. Finite latents need no guide.
        event: What one row is.
        data: Name of the model's argument for the rows; None takes its first.
        plate: Name of the rows' plate, where several have their number.
        given: Name of the argument for the covariates, one row a row; needs ``context``, their event.
        constants: Values of the model's other arguments.
        condition: Values of shared latents that are held fixed.
        fitted: The pair has been trained outside: parameters are taken from Pyro's store as they stand.
        dtype: Of the tensors that the program gets; None takes torch's default.

    Raises:
        StructureError: when data come, where the program or guide does not fit; plate or site are named.
        ParameterError: an argument that the model does not have, or one without a value.
    """

    program: Program

    def __init__(
        self,
        pair: Any,
        event: Event,
        data: str | None = None,
        plate: str | None = None,
        given: str | None = None,
        context: Event | None = None,
        constants: Mapping[str, Any] | None = None,
        condition: Mapping[str, Any] | None = None,
        fitted: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(event)
        if (given is None) != (context is None):
            raise ParameterError(
                f"given={given!r}, context={context!r}", "both or none", "Name the argument, and its event"
            )
        self.pair = pair if isinstance(pair, tuple) and len(pair) == 2 else (pair, None)
        self._check_pair()
        self.plate, self.given, self.context, self.fitted, self.dtype = plate, given, context, fitted, dtype
        self.constants, self.condition = dict(constants or {}), dict(condition or {})
        signature = signature_of(self.pair[0])
        if data is None and not signature.parameters:
            raise ParameterError("A program without arguments", "one that takes its data", "def model(x): ...")
        self.data = next(iter(signature.parameters)) if data is None else data
        self._tensor = dtype or torch.get_default_dtype()
        self._fixed = {name: torch.as_tensor(value, dtype=self._tensor) for name, value in self.condition.items()}
        self._call = partial(
            Call, signature=signature, data=self.data, given=given, constants=self.constants, fixed=self._fixed
        )
        self._start: list[tuple[nn.Parameter, Tensor]] = []
        self._forget()
        if fitted:
            self.program.take_store()
            self.report = FitReport((), 0, "imported")

    def _check_pair(self) -> None:
        program, guide = self.pair
        if not callable(program) or not (guide is None or callable(guide)):
            raise StructureError(
                f"{self.pair!r}", "a Pyro program, or (model, guide)", "wrap((model, guide), event=...)"
            )

    def _forget(self) -> None:
        """As when it was wrapped; a pair that was trained outside keeps what it has learnt."""
        program, guide = self.pair
        if not (self.fitted and self.report):
            for parameter, value in self._start:
                parameter.data.copy_(value)
            if isinstance(guide, AutoGuide) and not self.fitted:
                guide.prototype_trace = None
            ready = None if guide is None or isinstance(guide, type) else self._call(guide)
            self.program = Program(self._call(program), ready)
        self.rows: Rows | None = None

    def train(self, mode: bool = True) -> Self:
        """Tells the user's networks too, where they are the program or own it."""
        for part in self.pair:
            network = getattr(part, "__self__", part)
            if isinstance(network, nn.Module):
                network.train(mode)
        return super().train(mode)

    @classmethod
    def suits(cls, event: Event) -> str | None:
        if isinstance(event, Array | Table):
            return None
        return f"a program gets its rows as one tensor, not as {type(event).__name__}"

    @classmethod
    def for_event(cls, event: Event, **options: Any) -> Self:
        raise StructureError("A program for an event", "one that somebody wrote", "wrap((model, guide), event=...)")

    # The user's program

    def model(self, x: Any = None, given: Any = None, n: int = 1) -> Any:
        """The user's model on rows x; where there are none, n of them are drawn."""
        with poutine.block(hide_types=["param"]), self.program.running():  # they are ours, not the caller's
            if x is not None:
                return self.program.pair[0](x.to(self._tensor), self._cast(given))
            with Released():
                return self.program.pair[0](template(self.event, n, self._tensor), self._cast(given))

    def guide(self, x: Any = None, given: Any = None, n: int = 1) -> Any:
        if x is None or self.program.pair[1] is None:
            raise ParameterError("The guide q(z | x)", "rows to condition on, and a guide", "guide(x) after a fit")
        with poutine.block(hide_types=["param"]), self.program.running():
            return self.program.pair[1](x.to(self._tensor), self._cast(given))

    def _cast(self, part: Any) -> Any:
        return None if part is None else part.to(self._tensor)

    def _stand(self, n: int) -> tuple[Tensor, Tensor | None]:
        """Rows and covariates that stand for any."""
        x = template(self.event, n, self._tensor)
        return x, None if self.context is None else template(self.context, n, self._tensor)

    def _settle(self, structure: Structure, x: Tensor, given: Tensor | None, draws: Draws | None = None) -> None:
        self.rows = Rows(self.program, structure, self._stand, len(x), draws)
        self.rows.settle(x, given)

    @property
    def _known(self) -> Rows:
        if self.rows is None:
            raise NotFittedError("This program has not seen data", "a program that has", "Call .fit(x) first")
        return self.rows

    def _inspect(self, x: Tensor, given: Tensor | None, generator: torch.Generator) -> Structure:
        """Finds the structure, makes the guide where none was given, and holds the two against each other."""
        structure = look(self.program, x, given, self.plate, self._fixed)
        check_sites(self.program, structure, self.event, x, given)
        guide = self.pair[1]
        if self.program.pair[1] is None and set(structure.latents) - set(structure.finite):
            hidden = poutine.block(self.program.pair[0], hide=list(structure.finite))
            self.program.pair = (self.program.pair[0], Automatic((guide or AutoNormal)(hidden)))
        return check_guide(self.program, structure, x, given, generator=generator)

    # Fit

    def _fit(
        self,
        x: Tensor,
        given: Tensor | None,
        *,
        generator: torch.Generator,
        method: str = "svi",
        budget: float = 60.0,
        steps: int | None = None,
        batch_size: int = 128,
        learning_rate: float | None = None,
        validation: float = 0.1,
        weight_decay: float = 0.0,
        patience: int = 12,
        grace: float = 0.2,
        record: bool = True,
        progress: bool | None = None,
        draws: int = 1000,
        warmup: int = 1000,
        chains: int = 1,
    ) -> FitReport:
        """Stochastic variational inference on the ELBO; or draws of the latents, by NUTS or about their mode.

        Arguments:
            budget: Seconds of training, unless ``steps`` is given.
            learning_rate: None: 2e-3, or 0.05 for fewer than 1000 parameters.
            validation: Share of rows held out to choose the best state; none where rows have parameters of their own.
            record: Whether to play the program back from a recorded graph; the same numbers, several times faster.
            method: "svi", "nuts" or "laplace" (a normal at the mode, approximate).
            draws, chains: Of "nuts" and "laplace"; the program's parameters stay as they are then.
            warmup: Of NUTS: transitions of each chain in which its step size and metric are found.
        """
        if method not in _METHODS:
            raise ParameterError(f"method={method!r}", ", ".join(_METHODS), nearest(str(method), _METHODS))
        self._forget()
        self.train()
        x, given = x.to(self._tensor), self._cast(given)
        if method != "svi":
            return self._fit_draws(x, given, generator, Plan(method, draws, chains, warmup, progress=progress))
        structure = self._inspect(x, given, generator)
        matrix, split = side_by_side(x, given, in_order=not structure.amortised)
        loss = NegativeELBO(self.program, structure, len(x), split, record)
        parameters = self._learned(loss, matrix, generator)
        own = not structure.amortised
        usual = 2e-3 if sum(p.numel() for p in parameters) >= 1000 else 0.05
        plan = Schedule(
            steps=steps,
            budget=budget,
            batch_size=len(x) if own else batch_size,
            learning_rate=usual if learning_rate is None else learning_rate,
            weight_decay=weight_decay,
            validation=0.0 if own or len(x) < 50 else validation,
            patience=patience,
            grace=grace,
        )
        notes = self._notes(structure)
        if not parameters:
            with torch.no_grad():
                found = -float(loss.program_loss(matrix, generator))
            report = FitReport((found,), 0, "closed form", notes=("the program has no parameters",))
        else:
            player = Player(loss, parameters, whole=own)
            report = train(self.program, [player], matrix, plan, generator=generator, progress=progress)
        self._settle(structure, x, given)
        return replace(report, notes=(*report.notes, *notes, *loss.notes))

    def _fit_draws(self, x: Tensor, given: Tensor | None, generator: torch.Generator, plan: Plan) -> FitReport:
        structure = look(self.program, x, given, self.plate, self._fixed)
        if not structure.globals:
            raise StructureError(
                f"method={plan.method!r} over a program whose latents are all the rows' own",
                "latents that all rows share",
                'method="svi"',
            )
        check_sites(self.program, structure, self.event, x, given)
        found, objective, notes = posterior_draws(self.program, structure, x, given, plan, generator)
        self._settle(replace(structure, amortised=False), x, given, found)
        return FitReport(objective, plan.chains * (plan.draws + plan.warmup), "steps", notes=notes)

    def _learned(self, loss: NegativeELBO, matrix: Tensor, generator: torch.Generator) -> list[nn.Parameter]:
        """Runs the program until everything that it learns has been met, and keeps its first values."""
        batch = matrix if not loss.structure.amortised else matrix[:2]
        loss.program_loss(batch, generator)
        first = loss.program_loss(batch, generator)
        if first.requires_grad:
            self.program.adopt_leaves(first)
        self._start = [(p, p.detach().clone()) for p in self.program.parameters()]
        return list(self.program.parameters())

    def _notes(self, structure: Structure) -> tuple[str, ...]:
        notes = []
        if not structure.amortised:
            notes.append(
                f"the guide has parameters for every row ({', '.join(structure.locals)}): all rows go into each step, "
                "and new rows are scored from a normal at the mode"
            )
        if self.program.unregistered:
            notes.append(f"{len(self.program.unregistered)} parameters are trained that the program does not register")
        if structure.scaled:
            notes.append(f"the program scales {', '.join(structure.scaled)}")
        return tuple(notes)

    # The posterior of what rows share

    @property
    def draws(self) -> Draws | None:
        """Of the latents, after a fit: those of NUTS, or 1000 of the guide's; None where rows share none."""
        if self.rows is None or not self.rows.shares:
            return None
        return self.rows.draws or posterior.of_guide(self.rows)

    def _log_lik_draws(self, x: Tensor, given: Tensor | None, generator: torch.Generator) -> Tensor:
        return posterior.log_lik(self._known, self._cast(x), self._cast(given), self._drawn(), generator)

    def _log_prior_draws(self) -> Tensor:
        return posterior.log_prior(self._known, self._drawn())

    def _sample_prior(self, n: int, given: Tensor | None, generator: torch.Generator) -> Tensor:
        return posterior.sample_prior(self._known, n, self._templates(1), self._cast(given), generator)

    def _templates(self, n: int) -> list[Tensor]:
        return [template(self.event, n, self._tensor, other) for other in (False, True)]

    def _replicate(self, places: Tensor, n: int, given: Tensor | None, generator: torch.Generator) -> Iterator[Tensor]:
        """Data sets of n rows, each of one posterior draw of what rows share; rows' own latents are drawn anew."""
        thetas = posterior.thetas_of(self._known, self._drawn(), places)
        return posterior.replicates(self._known, thetas, self._templates(n), self._cast(given), generator)

    def _replicate_prior(self, reps: int, n: int, given: Tensor | None, generator: torch.Generator) -> Iterator[Tensor]:
        return posterior.replicates(self._known, [{}] * reps, self._templates(n), self._cast(given), generator)

    def _drawn(self) -> Draws:
        if (found := self.draws) is None:
            raise NotFittedError(
                "This program has no posterior draws", "latents that all rows share, and a fit", "fit(x, method='nuts')"
            )
        return found

    # Rows

    def posterior(self, n: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
        """Draws of the latents that all rows share, by name, each (n, ...)."""
        self._check_fitted()
        if self.rows is None:
            x, given = self._stand(6)
            self._settle(self._inspect(x, given, torch.Generator().manual_seed(0)), x, given)
        drawn = self._known.shared(n, torch.Generator().manual_seed(seed))
        return {name: torch.stack([theta[name] for theta in drawn]).numpy() for name in self._known.structure.globals}

    @property
    def latent_dim(self) -> int:
        """Unconstrained numbers a row; none to ask for where rows are not independent given the parameters."""
        if self.rows is None or self.rows.shares:
            raise AttributeError("latent_dim")
        return self.rows.cells

    def _log_joint(self, x: Any, z: Tensor, given: Any) -> Tensor:
        """log p(x, z) in unconstrained coordinates, finite latents summed out."""
        return self._known.log_joint(self._cast(x), self._cast(z), self._cast(given))

    def _propose(self, x: Any, given: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self._known.propose(self._cast(x), self._cast(given), self._cast(noise), self._known.point)

    def _log_prob(self, x: Tensor, given: Tensor | None, *, generator: torch.Generator) -> LogProb:
        x, given = self._cast(x), self._cast(given)
        if self.rows is None:  # trained outside, and these are the first data
            structure = self._inspect(x, given, torch.Generator().manual_seed(0))
            self._settle(structure, x, given)
        structure = self._known.structure
        if structure.scaled:
            reason = f"the program scales the log-density of {', '.join(structure.scaled)}"
            return LogProb.refuse(len(x), reason, "take poutine.scale out for scoring")
        if self._known.shares:
            return PosteriorPredictive()(self, x, given, generator=generator)
        if structure.locals:
            return Ladder()(self, x, given, generator=generator)
        rows = self._log_joint(x, torch.empty(1, len(x), 0), given)[0]
        return LogProb(Kind.EXACT, rows, by="Enumerate()" if structure.finite else "density")

    # Draws

    def _sample(self, n: int, given: Tensor | None, *, generator: torch.Generator) -> Tensor:
        """Rows from the program with every observation let loose; shared latents are drawn anew for every few rows.

        One condition gives (n, ...), m conditions give (m, n, ...).
        """
        given, many = self._cast(given), 1 if given is None else len(given)
        if given is not None:
            given = given.repeat_interleave(n, dim=0)
        if self.rows is None:
            x, some = self._stand(6)
            self._settle(self._inspect(x, some, generator), x, some)
        rows = n * many
        thetas = self._known.shared(min(rows, 256), generator)
        parts = torch.randperm(rows, generator=generator).tensor_split(len(thetas))
        drawn = []
        for part, theta in zip(parts, thetas, strict=True):
            stand = [template(self.event, len(part), self._tensor, other) for other in (False, True)]
            some = None if given is None else given[part]
            drawn.append(draw(self.program, self._known.structure, stand, some, theta, generator))
        x = torch.cat(drawn)[torch.cat(parts).argsort()].to(torch.float64)
        return x.reshape(many, n, *x.shape[1:]) if many > 1 else x

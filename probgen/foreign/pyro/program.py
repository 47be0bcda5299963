"""Anybody's Pyro program as a model: fitted by variational inference or NUTS, sampled, scored row by row."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide, AutoNormal
from torch import Tensor, nn

from probgen.errors import NotFittedError, ParameterError, StructureError, SupportError
from probgen.estimate import Ladder
from probgen.events import Array, Event, Table, row_hash, take
from probgen.foreign.pyro import coordinates
from probgen.foreign.pyro.calls import Automatic, Call, signature_of
from probgen.foreign.pyro.drawing import Released, draw, template
from probgen.foreign.pyro.nuts import Draws, nuts
from probgen.foreign.pyro.predictive import PosteriorPredictive
from probgen.foreign.pyro.proposal import laplace
from probgen.logprob import Kind, LogProb
from probgen.model import FitReport, GenerativeModel
from probgen.svi import NegativeELBO, Program, Structure, check_guide, look, sites_of
from probgen.training import Player, Schedule, train

__all__ = ["PyroProgram"]

_MOST_CELLS = 64  # local unconstrained numbers a row that a normal at the mode is sought for


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
    starts from the values that the program's networks had when it was wrapped, and trains those very networks.

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
    structure: Structure | None

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
        """As when it was wrapped."""
        for parameter, value in self._start:
            parameter.data.copy_(value)
        program, guide = self.pair
        ready = not isinstance(guide, type)
        if isinstance(guide, AutoGuide):
            guide.prototype_trace = None
        self.program = Program(self._call(program), self._call(guide) if guide is not None and ready else None)
        self.structure = None
        self.draws: Draws | None = None
        self._point: dict[str, Tensor] = {}
        self._modes: tuple[Any, ...] = ()
        self._smooth: bool | None = None
        self._rows = 1

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
        with self.program.running():
            if x is not None:
                return self.program.pair[0](x.to(self._tensor), self._cast(given))
            with Released():
                return self.program.pair[0](template(self.event, n, self._tensor), self._cast(given))

    def guide(self, x: Any = None, given: Any = None, n: int = 1) -> Any:
        if x is None or self.program.pair[1] is None:
            raise ParameterError("The guide q(z | x)", "rows to condition on, and a guide", "guide(x) after a fit")
        with self.program.running():
            return self.program.pair[1](x.to(self._tensor), self._cast(given))

    def _cast(self, part: Tensor | None) -> Tensor | None:
        return None if part is None else part.to(self._tensor)

    @property
    def _known(self) -> Structure:
        if self.structure is None:
            raise NotFittedError("This program has not seen data", "a program that has", "Call .fit(x) first")
        return self.structure

    def _inspect(self, x: Tensor, given: Tensor | None, generator: torch.Generator) -> Structure:
        """Finds the structure, makes the guide where none was given, and holds the two against each other."""
        structure = look(self.program, x, given, self.plate, self._fixed)
        self._check_support(structure, x, given)
        guide = self.pair[1]
        if self.program.pair[1] is None and set(structure.latents) - set(structure.finite):
            hidden = poutine.block(self.program.pair[0], hide=list(structure.finite))
            self.program.pair = (self.program.pair[0], Automatic((guide or AutoNormal)(hidden)))
        self._rows = len(x)
        self.structure = check_guide(self.program, structure, x, given, generator=generator)
        return self.structure

    def _check_support(self, structure: Structure, x: Tensor, given: Tensor | None) -> None:
        few = torch.arange(min(len(x), 64))
        with self.program.running(torch.Generator().manual_seed(0), fresh=True):
            sites = sites_of(self.program.trace_model(take(x, few), None if given is None else take(given, few), {}))
        for name in structure.observed:
            fn, value = sites[name]["fn"], sites[name]["value"]
            if isinstance(self.event, Array) and fn.support.is_discrete != self.event.discrete:
                kind = "whole numbers" if fn.support.is_discrete else "reals"
                raise StructureError(
                    f"The site {name!r} scores {kind}, the event is {self.event!r}",
                    "a distribution and an event of one kind",
                    "Binarise and declare levels=, or change the distribution: ContinuousBernoulli for grey values",
                )
            if not bool(fn.support.check(value).all()):
                raise SupportError(
                    f"The site {name!r} observes values outside its support {fn.support}", "values inside it",
                    "Change the distribution, or the data",
                )  # fmt: skip

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
        """Stochastic variational inference on the ELBO, or NUTS over the latents (``method="nuts"``).

        Arguments:
            budget: Seconds of training, unless ``steps`` is given.
            learning_rate: None: 2e-3, or 0.02 for fewer than 1000 parameters.
            validation: Share of rows held out to choose the best state; none where rows have parameters of their own.
            record: Whether to play the program back from a recorded graph; the same numbers, several times faster.
            draws, warmup, chains: Of NUTS; the program's parameters stay as they are then.
        """
        if method not in ("svi", "nuts"):
            raise ParameterError(f"method={method!r}", "'svi' or 'nuts'")
        if not self.fitted:
            self._forget()
        x, given = x.to(self._tensor), self._cast(given)
        if method == "nuts":
            return self._fit_nuts(x, given, generator, draws, warmup, chains)
        structure = self._inspect(x, given, generator)
        matrix, split = self._matrix(x, given, structure)
        loss = NegativeELBO(self.program, structure, len(x), split, record)
        parameters = self._learned(loss, matrix, generator)
        own = not structure.amortised
        plan = Schedule(
            steps=steps,
            budget=budget,
            batch_size=len(x) if own else batch_size,
            learning_rate=learning_rate or (2e-3 if sum(p.numel() for p in parameters) >= 1000 else 0.02),
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
            player = Player(loss, parameters)
            report = train(self.program, [player], matrix, plan, generator=generator, progress=progress)
        self._settle()
        return replace(report, notes=(*report.notes, *notes, *loss.notes))

    def _fit_nuts(
        self, x: Tensor, given: Tensor | None, generator: torch.Generator, draws: int, warmup: int, chains: int
    ) -> FitReport:
        for name, value, least in (("draws", draws, 4), ("warmup", warmup, 1), ("chains", chains, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ParameterError(f"{name}={value!r}", f"a whole number, at least {least}")
        structure = look(self.program, x, given, self.plate, self._fixed)
        if not structure.globals:
            raise StructureError(
                "NUTS over a program whose latents are all the rows' own", "latents that all rows share", 'method="svi"'
            )
        self._check_support(structure, x, given)
        self.draws = nuts(
            self.program, structure, x, given, draws=draws, warmup=warmup, chains=chains, generator=generator
        )
        self.structure = replace(structure, amortised=False)
        notes = (f"ess {self.draws.ess:.0f}, R-hat {self.draws.rhat:.3f}", *self.draws.notes)
        return FitReport(self.draws.objective, chains * (draws + warmup), "steps", notes=notes)

    def _matrix(self, x: Tensor, given: Tensor | None, structure: Structure) -> tuple[Tensor, Callable]:
        """Rows, covariates and row numbers side by side, for the loop; and the way back."""
        n, parts = len(x), [x.reshape(len(x), -1)]
        parts += [] if given is None else [given.reshape(n, -1)]
        wide = torch.float32 if self._tensor == torch.float32 else torch.float64
        matrix = torch.cat([*(p.to(wide) for p in parts), torch.arange(n, dtype=wide)[:, None]], 1)
        width, shape = parts[0].shape[1], x.shape[1:]
        more = () if given is None else given.shape[1:]

        def split(batch: Tensor) -> tuple[Tensor, Tensor | None]:
            if not structure.amortised:
                batch = batch[batch[:, -1].argsort()]  # the guide knows rows by their place
            cells = batch[:, :width].reshape(len(batch), *shape).to(self._tensor)
            return cells, None if given is None else batch[:, width:-1].reshape(len(batch), *more).to(self._tensor)

        return matrix, split

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

    def _settle(self) -> None:
        """Shared latents that the guide holds at one point are parameters."""
        if not self._known.globals:
            return
        one, two = self.shared_draws(2, torch.Generator().manual_seed(0))
        if all(torch.equal(one[name], two[name]) for name in one):
            self._point = one

    # Shared latents

    def shared_draws(self, n: int, generator: torch.Generator) -> list[dict[str, Tensor]]:
        """Draws of the shared latents: n of the guide's, or as many of those of NUTS as there are, each once."""
        names = self._known.globals
        if self._point or not names:
            return [self._point]
        if self.draws is not None:
            some = torch.randperm(len(self.draws.values[names[0]]), generator=generator)[:n]
            return [{name: self.draws.values[name][i] for name in names} for i in some]
        rows = 2 if self._known.amortised else self._rows
        x = template(self.event, rows, self._tensor)
        given = None if self.context is None else template(self.context, rows, self._tensor)
        with self.program.running(generator):
            sites = [sites_of(self.program.trace_guide(x, given)) for _ in range(n)]
        return [{name: site[name]["value"].detach() for name in names} for site in sites]

    @property
    def independent_draws(self) -> float:
        """How many independent ones the posterior's draws are worth; infinite for a guide's."""
        return math.inf if self.draws is None else max(self.draws.ess, 1.0)

    @property
    def posterior_target(self) -> str:
        return "E_q[p(x|theta)]" if self.draws is None else "p(x|data)"

    @property
    def local_cells(self) -> int:
        """Unconstrained numbers that every row has its own of."""
        return sum(coordinates.split_sizes(self._known))

    def log_weights(self, x: Any, given: Any, noise: Tensor, theta: Mapping[str, Tensor]) -> Tensor:
        """log p(x, z | theta) - log q(z | x, theta) at draws of z from normal noise (S, n, cells): (S, n), float64."""
        z, log_q = self._look_near(x, given, noise, theta)
        return self._joint(x, z, given, theta) - log_q.to(torch.float64)

    def posterior(self, n: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
        """Draws of the latents that all rows share, by name, each (n, ...)."""
        self._check_fitted()
        drawn = self.shared_draws(n, torch.Generator().manual_seed(seed))
        return {name: torch.stack([theta[name] for theta in drawn]).numpy() for name in self._known.globals}

    # Rows

    @property
    def latent_dim(self) -> int:
        """Unconstrained numbers a row; none to ask for where rows are not independent given the parameters."""
        if self.structure is None or (self.structure.globals and not self._point):
            raise AttributeError("latent_dim")
        return self.local_cells

    def _log_joint(self, x: Any, z: Tensor, given: Any) -> Tensor:
        """log p(x, z) in unconstrained coordinates, finite latents summed out."""
        return self._joint(x, z, given, self._point)

    def _joint(self, x: Any, z: Tensor, given: Any, theta: Mapping[str, Tensor]) -> Tensor:
        x, given = x.to(self._tensor), self._cast(given)
        return coordinates.joint(self.program, self._known, x, given, z.to(self._tensor), theta)

    def _propose(self, x: Any, given: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self._look_near(x, given, noise, self._point)

    def _look_near(self, x: Any, given: Any, noise: Tensor, theta: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Draws of each row's latents given shared ones, and their log-density."""
        x, given, noise = x.to(self._tensor), self._cast(given), noise.to(self._tensor)
        if not self._known.locals:
            return noise, torch.zeros(noise.shape[:2], dtype=torch.float64)
        if self._pushes(x, given, theta):
            return coordinates.guide_draws(self.program, self._known, x, given, noise, theta)
        mode, factor = self._mode(x, given)
        z = mode + (factor @ noise[..., None])[..., 0]
        normal = -0.5 * (noise.to(torch.float64).square() + math.log(2 * math.pi)).sum(-1)
        return z, normal - torch.linalg.slogdet(factor.to(torch.float64)).logabsdet

    def _pushes(self, x: Tensor, given: Tensor | None, theta: Mapping[str, Tensor]) -> bool:
        """Whether the guide's distributions can be drawn from by pushing noise; found once."""
        if self._smooth is None:
            serves = self._known.amortised and self._known.plain and self.program.pair[1] is not None
            self._smooth = serves and coordinates.pushable(self.program, self._known, x, given, theta)
        return self._smooth

    def _mode(self, x: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """A normal at the mode of each row's latents, at a typical draw of the shared ones; the last rows' are kept."""
        cells = self.local_cells
        if cells > _MOST_CELLS:
            raise StructureError(
                f"{cells} numbers of its own a row, and a guide that does not serve new rows", f"at most {_MOST_CELLS}",
                "Give an amortised guide, one that computes q(z | x) from x",
            )  # fmt: skip
        key = row_hash(x) if given is None else np.concatenate([row_hash(x), row_hash(given)])
        if not self._modes or not np.array_equal(self._modes[0], key):
            theta = self._typical()
            found = laplace(lambda u: self._joint(x, u[None], given, theta)[0], len(x), cells, self._tensor)
            self._modes = (key, *found)
        return self._modes[1], self._modes[2]

    def _typical(self) -> dict[str, Tensor]:
        """The draw of the shared latents that is nearest to the middle of a hundred."""
        drawn = self.shared_draws(101, torch.Generator().manual_seed(1))
        if len(drawn) == 1:
            return drawn[0]
        flat = torch.stack([torch.cat([value.reshape(-1) for value in theta.values()]) for theta in drawn])
        spread = (flat - flat.median(0).values).abs()
        return drawn[int((spread / spread.median(0).values.clamp(min=1e-12)).sum(1).argmin())]

    def _log_prob(self, x: Tensor, given: Tensor | None, *, generator: torch.Generator) -> LogProb:
        structure = self.structure or self._inspect(
            x.to(self._tensor), self._cast(given), torch.Generator().manual_seed(0)
        )
        if structure.scaled:
            reason = f"the program scales the log-density of {', '.join(structure.scaled)}"
            return LogProb.refuse(len(x), reason, "take poutine.scale out for scoring")
        if self.structure is not None and structure.globals and not self._point and self.draws is None:
            self._settle()
        if structure.globals and not self._point:
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
        if self.structure is None:
            self._inspect(template(self.event, 6, self._tensor), None if given is None else given[:6], generator)
        rows = n * many
        thetas = self.shared_draws(min(rows, 256), generator)
        parts = torch.randperm(rows, generator=generator).tensor_split(len(thetas))
        drawn = []
        for part, theta in zip(parts, thetas, strict=True):
            stand = [template(self.event, len(part), self._tensor, other) for other in (False, True)]
            some = None if given is None else given[part]
            drawn.append(draw(self.program, self._known, stand, some, theta, generator))
        x = torch.cat(drawn)[torch.cat(parts).argsort()].to(torch.float64)
        return x.reshape(many, n, *x.shape[1:]) if many > 1 else x

"""A family whose parameters have priors: its posterior, and all that is asked of a posterior."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from probgen.errors import StructureError
from probgen.events import Ragged, take
from probgen.logprob import LogProb
from probgen.model import FitReport
from probgen.posterior import predictive
from probgen.posterior.coordinates import Coordinates
from probgen.posterior.density import Density, Inner
from probgen.posterior.draws import Draws
from probgen.posterior.fitting import Found, Plan, judged, sampled
from probgen.posterior.kept import Kept

__all__ = ["Parametric", "fit"]

Values = Mapping[str, Tensor]


class Space(Protocol):
    """What draws of a posterior are vectors in: Coordinates, or tables as they are."""

    @property
    def size(self) -> int: ...

    def unpack(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]: ...

    def log_prior(self, z: Tensor, values: Values) -> Tensor: ...

    def draw(self, n: int, generator: torch.Generator) -> Tensor: ...


class _At(nn.Module):
    """A function of a model as a module, so that parameters can be put in its place for one call."""

    def __init__(self, model: nn.Module, function: Callable) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


@dataclass(frozen=True, eq=False)
class Parametric:
    """What a family tells of itself so that its parameters can have a posterior.

    Arguments:
        model: With its parameters.
        kept: Where the draws are.
        coordinates: Of the parameters' priors.
        parameters: The model's own parameters by name, from one value of each site of the coordinates.
        rows: log p(x_i | the parameters in place), (n,), differentiable, from checked (x, given).
        natural: The parameters in place as a user reads them.
        draw: (n, given, generator) to n draws from the parameters in place, n for each condition.
        steps: log p(x_t | x_<t) of all steps, (total,), from (x, given); None where there are none.
        states: K of a family whose likelihood is the same under all labels of K parts; 0 elsewhere.
        identified: Of the natural parameters those that data determine, where others turn into each other; () for all.
        recorded: Whether its density may be recorded as a graph.
        halves: From (x, given), what the likelihood reads of the parameters in place, and log p(x) with its gradient in
            that (``Density``'s inner), where there is a way faster than torch's own; None where there is none.
    """

    model: nn.Module
    kept: Kept
    coordinates: Space
    parameters: Callable[[Values], dict[str, Tensor]]
    rows: Callable[[Any, Any], Tensor]
    natural: Callable[[], Values]
    draw: Callable[[int, Any, torch.Generator], Any]
    steps: Callable[[Any, Any], Tensor] | None = None
    states: int = 0
    identified: tuple[str, ...] = ()
    recorded: bool = False
    halves: Callable[[Any, Any], tuple[Callable[[], tuple[Tensor, ...]], Inner]] | None = None

    def at(self, values: Values, function: Callable, *args: Any) -> Any:
        """What a function of the model gives when these values of the sites are in its place."""
        swapped = {f"model.{name}": value for name, value in self.parameters(values).items()}
        return functional_call(_At(self.model, function), swapped, args)

    def thetas(self, z: Tensor) -> Iterator[Values]:
        """Values of the sites, one draw after the other."""
        values, _ = self.coordinates.unpack(z)
        return ({name: value[i] for name, value in values.items()} for i in range(len(z)))

    def log_joint(self, x: Any, given: Any) -> Callable[[Tensor], Tensor]:
        """log p(x, theta(z)) + log |d theta / d z| as a function of z (P,)."""

        def joint(z: Tensor) -> Tensor:
            values, volume = self.coordinates.unpack(z[None])
            prior = self.coordinates.log_prior(z[None], values)
            one = {name: value[0] for name, value in values.items()}
            return self.at(one, self.rows, x, given).sum() + prior[0] + volume[0]

        return joint

    def density(self, x: Any, given: Any) -> Density:
        """log p(x, theta(z)) + log |d theta / d z| as samplers call it."""
        if self.halves is None:
            return Density(self.log_joint(x, given), self.coordinates.size, self.recorded)
        outer, inner = self.halves(x, given)

        def parts(z: Tensor) -> tuple[Tensor, ...]:
            values, volume = self.coordinates.unpack(z[None])
            prior = self.coordinates.log_prior(z[None], values)
            one = {name: value[0] for name, value in values.items()}
            return (prior[0] + volume[0], *self.at(one, outer))

        return Density(parts, self.coordinates.size, self.recorded, inner)

    # What a model's hooks ask

    def draws(self) -> Draws | None:
        return self.kept.draws(self.readable)

    @torch.no_grad()
    def readable(self, z: Tensor) -> dict[str, Tensor]:
        """Parameters as a user reads them, each (S, *shape), from z (S, P)."""
        found = [{n: v.detach().clone() for n, v in self.at(v, self.natural).items()} for v in self.thetas(z)]
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}

    @torch.no_grad()
    def log_lik(self, x: Any, given: Any, z: Tensor | None = None) -> Tensor:
        """log p(x_i | theta_s), (S, n), in chain-major order."""
        z = self.kept.z() if z is None else z
        return torch.stack([self.at(values, self.rows, x, given) for values in self.thetas(z)])

    @torch.no_grad()
    def log_prior(self) -> Tensor:
        """log p(theta_s), (S,), in the space of the sites (those of ``bayes_model``), in nats."""
        z = self.kept.z()
        return self.coordinates.log_prior(z, self.coordinates.unpack(z)[0])

    @torch.no_grad()
    def log_prob(self, x: Any, given: Any) -> LogProb:
        z, kept = self.kept.z(), self.kept

        def of_rows(some: Tensor) -> Tensor:
            whole = len(some) == len(x)
            part = x if whole else take(x, some)
            return self.log_lik(part, given if given is None or whole else take(given, some), z)

        return predictive.predictive(
            of_rows, len(x), len(z), method=kept.method, chains=kept.dependent, key=kept.numbers
        )

    @torch.no_grad()
    def log_prob_steps(self, x: Ragged, given: Any) -> LogProb:
        kept = self.kept
        if self.steps is None:
            raise StructureError(f"Steps of {type(self.model).__name__}", "a family over sequences")
        table = torch.stack([self.at(values, self.steps, x, given) for values in self.thetas(kept.z())])
        return predictive.predictive_steps(
            table, x.lengths, method=kept.method, chains=kept.dependent, key=kept.numbers
        )

    @torch.no_grad()
    def sample(self, n: int, given: Any, generator: torch.Generator) -> Any:
        """n draws of x, each (with conditions, each set of one for every condition) from a draw of the parameters."""
        z = self.kept.z()
        chosen = torch.randint(len(z), (n,), generator=generator).sort().values
        numbers, counts = chosen.unique_consecutive(return_counts=True)
        order = torch.randperm(n, generator=generator)
        return self._joined(z[numbers], counts.tolist(), order, given, generator)

    @torch.no_grad()
    def sample_prior(self, n: int, given: Any, generator: torch.Generator) -> Any:
        """n draws of x, each from parameters of its own, drawn from the prior."""
        z = self.coordinates.draw(n, generator)
        return self._joined(z, [1] * n, torch.arange(n), given, generator)

    @torch.no_grad()
    def sample_at(self, z: Tensor, n: int, given: Any, generator: torch.Generator) -> Any:
        """n draws of x that share one draw of the parameters, z (P,)."""
        return self.at(next(self.thetas(z[None])), self.draw, n, given, generator)

    def _joined(self, z: Tensor, counts: list[int], order: Tensor, given: Any, generator: torch.Generator) -> Any:
        """Draws of each of some parameters, as many as counted, in an order; conditions come first."""
        parts = [
            self.at(values, self.draw, count, given, generator)
            for values, count in zip(self.thetas(z), counts, strict=True)
        ]
        n = sum(counts)
        conditions = sum(map(len, parts)) // n
        place, first = torch.empty(conditions, n, dtype=torch.int64), 0
        at = 0
        for count in counts:
            own = torch.arange(conditions * count).reshape(conditions, count) + first
            place[:, at : at + count] = own
            first, at = first + conditions * count, at + count
        return take(_cat(parts), place[:, order].reshape(-1))


def _cat(parts: list[Any]) -> Any:
    if isinstance(parts[0], Ragged):
        return Ragged(torch.cat([p.values for p in parts]), torch.cat([p.lengths for p in parts]))
    return torch.cat(parts)


def watched(family: Parametric, draws: Values) -> tuple[dict[str, Tensor], str]:
    """Quantities (chains, draws, ...) that do not depend on which label a part has, and what they are."""
    if family.identified:
        kept = {name: value for name, value in draws.items() if name in family.identified}
        return kept, f"of log p(x, theta) and of what data determine: {', '.join(kept)}"
    if family.states < 2:
        return dict(draws), ""
    out = {}
    for name, value in draws.items():
        dims = [d for d in range(2, value.ndim) if value.shape[d] == family.states]
        if dims[:2] == [2, 3]:  # moves between parts
            out[name] = value.flatten(2, 3).sort(2).values
        else:
            out[name] = value.sort(dims[0]).values if dims else value
    return (
        out,
        f"of log p(x, theta) and of numbers sorted over the {family.states} parts, whose labels may change places",
    )


def fit(
    family: Parametric, x: Any, given: Any, start: Values, plan: Plan, generator: torch.Generator
) -> tuple[FitReport, Found]:
    """Draws from the posterior of the parameters given rows; the model's own parameters are left at the mode found.

    Arguments:
        start: Values of the sites near which the search for the mode begins; taken towards the priors where extreme.

    Raises:
        FitError: no finite density there. StructureError: no parameters.
    """
    coordinates = family.coordinates
    if not isinstance(coordinates, Coordinates) or not coordinates.size:
        raise StructureError("A model without parameters that have priors", "one with some", "There is nothing to fit")
    density = family.density(x, given)
    first = coordinates.bounded(coordinates.pack({n: v[None] for n, v in start.items()})[0])
    found = sampled(density, first.detach().numpy(), plan, generator)
    family.kept.put(plan.method, found)
    _place(family, found.mode)
    draws = family.draws()
    notes: tuple[str, ...] = ()
    if draws is not None:
        notes = judged(plan, found, *watched(family, draws.values))
    rows = len(x)
    steps = plan.chains * (plan.draws + plan.warmup) if plan.method == "nuts" else len(found.history)
    objective = tuple(float(np.mean(value)) / rows for value in (found.history[0], found.stats["lp"].numpy()))
    stopped = "converged" if plan.method == "laplace" else "steps"
    report = FitReport(objective, steps, stopped, found.seconds, notes=(*_PARAMETERS, *notes))
    return report, found


_PARAMETERS = ("log_prob and sample average over the posterior; questions of one set of parameters take the mode",)


@torch.no_grad()
def _place(family: Parametric, z: Tensor) -> None:
    """Puts a point into the model's own parameters."""
    one = next(family.thetas(z[None]))
    for name, value in family.parameters(one).items():
        family.model.get_parameter(name).copy_(value)

"""Posteriors over the parameters of a hidden Markov model, its states summed out."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen import chains
from probgen.errors import StructureError
from probgen.events import Ragged
from probgen.model import FitReport
from probgen.models.hmm import learning, queries

if TYPE_CHECKING:
    from probgen.models.hmm.hmm import HMM
    from probgen.posterior import Parametric, Plan

__all__ = ["fit_bayes", "parametric"]

_START = 100  # iterations of EM from which the search for the mode goes on


def parametric(hmm: "HMM", length: int = 20) -> "Parametric":
    """What a hidden Markov model tells of itself; its sites are those of ``bayes_model``, the raw parameters.

    Raises:
        StructureError: an emission without priors.
    """
    from probgen.posterior import Coordinates, Parametric

    def rows(x: Ragged, given: Ragged | None) -> Tensor:
        table = hmm.emission.log_prob(hmm._rows(x, given))[:, hmm._uses]
        return chains.log_likelihood(chains.Chain(*hmm.transitions(hmm._inputs(given)), table, x.lengths))

    def steps(x: Ragged, given: Ragged | None) -> Tensor:
        return chains.filter(hmm._chain(x, given)).nats

    def draw(n: int, given: Any, generator: torch.Generator) -> Ragged:
        return queries.simulate(hmm, n, given, length, generator)

    def natural() -> dict[str, Tensor]:
        return {**hmm.transitions.natural(), **hmm.emission.natural()}

    def halves(x: Ragged, given: Ragged | None) -> tuple[Any, Any]:
        data, inputs = hmm._rows(x, given), hmm._inputs(given)

        def outer() -> tuple[Tensor, ...]:
            return *hmm.transitions(inputs), hmm.emission.log_prob(data)[:, hmm._uses]

        def inner(*parts: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            return _counted(x.lengths, *parts)

        return outer, inner

    symmetric = hmm.tie is None and hmm.transitions.size == hmm.states
    return Parametric(
        hmm, hmm.kept, Coordinates(priors(hmm)), dict, rows, natural, draw, steps, hmm.states if symmetric else 0,
        recorded=True, halves=halves,
    )  # fmt: skip


def _counted(lengths: Tensor, initial: Tensor, transition: Tensor, table: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """log p(x) of W models, (W,), and its gradients in their log-potentials: expected counts (Fisher's identity)."""
    found = [
        chains.expected(chains.Chain(*parts, lengths), marginals=True)
        for parts in zip(initial, transition, table, strict=True)
    ]
    first = [one.initial if initial.ndim == 3 else one.initial.sum(0) for one in found]
    nats = torch.stack([one.nats.sum() for one in found])
    return nats, (
        torch.stack(first), torch.stack([one.transitions for one in found]),
        torch.stack([one.marginals for one in found]),  # type: ignore[misc]
    )  # fmt: skip


def priors(hmm: "HMM") -> dict[str, Any]:
    """Of the raw parameters, "emission.loc" and the like."""
    parts: dict[str, Any] = {"emission": hmm.emission, "transitions": hmm.transitions}
    return {f"{part}.{name}": prior for part, module in parts.items() for name, prior in module.priors().items()}


def fit_bayes(
    hmm: "HMM", data: learning.Data, x: Ragged, given: Ragged | None, generator: torch.Generator, plan: "Plan",
    climb: learning.Plan,
) -> FitReport:  # fmt: skip
    """Draws of the parameters, from starts about the mode that is nearest to the best of some runs of EM.

    Raises:
        StructureError: labels, or an emission without priors. FitError: as of EM, or no finite density.
    """
    from probgen.posterior import fit

    if data.allowed is not None:
        raise StructureError(
            f"labels with method={plan.method!r}", "sequences without labels", "Known states serve method='em'"
        )
    hmm.emission.priors()  # refuses before the search
    good = {name: value.clone() for name, value in hmm.state_dict().items()}
    try:
        learning.fit(hmm, data, generator, replace(climb, method="em", max_iter=min(climb.max_iter, _START)))
        family = parametric(hmm)
        start = {name: hmm.get_parameter(name).detach() for name in priors(hmm)}
        report, _ = fit(family, x, given, start, plan, generator)
    except BaseException:
        hmm.kept.clear()
        hmm.load_state_dict({name: value for name, value in good.items() if not name.startswith("kept.")}, strict=False)
        raise
    with torch.no_grad():
        hmm.log_likelihood = float(family.rows(x, given).sum())
    return report

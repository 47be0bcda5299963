"""Moves that depend on inputs."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.errors import ParameterError, StructureError
from probgen.transitions.transitions import Transitions, whole

__all__ = ["InputDriven"]


class InputDriven(Transitions):
    """p(z_t = j | z_{t-1} = i, u_t) = softmax_j(b_ij + W_ij . u_t), a multinomial regression a state (Bengio and
    Frasconi 1995). The start has parameters of its own and no inputs.

    Arguments:
        inputs: Columns of u_t.
        ridge: Precision of a normal prior on W, per unit of the input squared; it keeps W finite where inputs separate
            the moves. Inputs should have about unit scale.
    """

    def __init__(self, inputs: int = 1, ridge: float = 1e-3, states: int = 1) -> None:
        super().__init__()
        if not whole(inputs) or inputs < 1 or not 0 <= ridge < torch.inf:
            raise ParameterError(f"inputs={inputs}, ridge={ridge}", "a whole number of inputs >= 1, and ridge >= 0")
        self.inputs, self.ridge, self.states = inputs, ridge, states
        self.covariates = inputs
        self.initial_logits = nn.Parameter(torch.zeros(states, dtype=torch.float64))
        self.logits = nn.Parameter(torch.zeros(states, states, dtype=torch.float64))
        self.weight = nn.Parameter(torch.zeros(inputs, states, states, dtype=torch.float64))

    def log_initial(self) -> Tensor:
        return self.initial_logits.log_softmax(0)

    def log_matrix(self, given: Tensor | None = None) -> Tensor:
        if given is None:
            raise StructureError(
                "InputDriven moves without inputs", f"{self.inputs} columns of inputs, a row a step", "Pass given="
            )
        return (self.logits + torch.einsum("tp,pij->tij", given, self.weight)).log_softmax(-1)

    def penalty(self) -> Tensor:
        return -0.5 * self.ridge * self.weight.square().sum()

    def maximise(self, initial: Tensor, counts: Tensor, given: Tensor | None = None) -> list[int]:
        """A few quasi-Newton steps on the weights, taken only if they gain: generalised EM, still monotone."""
        present = [p.detach().clone() for p in (self.logits, self.weight)]
        search = torch.optim.LBFGS([self.logits, self.weight], max_iter=20, line_search_fn="strong_wolfe")
        scale = counts.sum().clamp(min=1.0)
        lost: list[float] = []

        def loss() -> Tensor:
            search.zero_grad()
            with torch.enable_grad():
                value = -((counts * self.log_matrix(given)).sum() + self.penalty()) / scale
                value.backward()
            lost.append(float(value.detach()))
            return value.detach()

        search.step(loss)
        with torch.no_grad():
            if not float(loss()) <= lost[0]:
                self.logits.copy_(present[0])
                self.weight.copy_(present[1])
            self.initial_logits.copy_(initial.log() - initial.sum().log())
        search.zero_grad()
        return (counts.sum((0, 2)) <= 1e-8).nonzero()[:, 0].tolist()

    def start(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            draws = torch.empty_like(self.logits).exponential_(generator=generator)
            rows = draws / draws.sum(1, keepdim=True) + torch.eye(self.states, dtype=torch.float64)
            self.logits.copy_(rows.log())
            self.weight.zero_()
            self.initial_logits.zero_()

    def priors(self) -> dict[str, dist.TorchDistribution]:
        return {name: dist.Normal(torch.zeros_like(p), 2.0).to_event(p.ndim) for name, p in self.named_parameters()}

    def natural(self) -> dict[str, Tensor]:
        return {"initial": self.log_initial().exp(), "intercept": self.logits, "weight": self.weight}

    @property
    def n_params(self) -> int:
        k = self.states
        return k - 1 + k * (k - 1) * (1 + self.inputs)

"""Networks whose outputs are the predictors of a response, or of a mixture of them."""

import torch
from torch import Tensor, nn

from probgen.model import FitReport
from probgen.models.regression.head import Head
from probgen.nn import MLP, reset
from probgen.training import Player, Schedule, train

__all__ = ["Network", "mixture_log_prob", "train_network"]

_EXTRAS = (-7.0, 9.0)  # logarithms of scales and shapes: no component may collapse onto a row


class Network(nn.Module):
    """From standardised covariates to K components' predictors and the logarithms of their weights.

    Arguments:
        inputs: Columns.
        hidden: Widths of hidden layers; none is a linear map.
        components: K.
    """

    start: Tensor

    def __init__(self, head: Head, inputs: int, hidden: tuple[int, ...], components: int) -> None:
        super().__init__()
        self.head, self.components = head, components
        outputs = components * (head.width + 1)
        self.layers = MLP((inputs, *hidden, outputs), last=0.1)
        self.register_buffer("start", torch.zeros(components, head.width, dtype=torch.float32))

    def forward(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """u (n, K, q) in the units of the fit, and log weights (n, K); float32 columns (n, d), float64 results."""
        out = self.layers(columns).reshape(len(columns), self.components, -1)
        u = (out[..., 1:] + self.start).to(torch.float64)
        places = self.head.places
        u = torch.cat([u[..., :places], u[..., places:].clamp(*_EXTRAS)], -1)
        return u, out[..., 0].to(torch.float64).log_softmax(-1)

    @torch.no_grad()
    def prepare(self, y: Tensor, generator: torch.Generator) -> None:
        """First values: each component stands where a part of the ordered responses does."""
        reset(self, generator)
        whole = self.head.start(y)
        self.start.copy_(whole.expand(self.components, -1))
        if self.components > 1:
            parts = y.sort().values.tensor_split(self.components)
            lead = torch.stack([self.head.start(part)[0] if len(part) else whole[0] for part in parts])
            self.start[:, 0] = lead.to(torch.float32)


def mixture_log_prob(head: Head, y: Tensor, u: Tensor, weights: Tensor) -> Tensor:
    """log sum_k w_k p(y | u_k), (n,), of u (n, K, q) and log weights (n, K). Bishop (1994), equation 22."""
    return (weights + head.log_prob(y[:, None], u)).logsumexp(-1)


class _Loss(nn.Module):
    """Minus the mean log-likelihood of rows (response, columns)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Tensor, generator: torch.Generator, share: float) -> Tensor:
        u, weights = self.network(batch[:, 1:])
        return -mixture_log_prob(self.network.head, batch[:, 0].to(torch.float64), u, weights).mean()


def train_network(
    model: nn.Module,
    network: Network,
    rows: tuple[Tensor, Tensor],
    plan: Schedule,
    generator: torch.Generator,
    progress: bool | None,
) -> FitReport:
    """Trains on responses (n,) and columns (n, d) in the units of the fit."""
    y, columns = rows
    if not plan.resume:
        network.prepare(y, generator)
    data = torch.cat([y[:, None], columns], 1).to(torch.float32)
    players = [Player(_Loss(network), list(network.parameters()))]
    return train(model, players, data, plan, generator=generator, progress=progress)

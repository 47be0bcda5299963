"""Token sequences to vectors, and what may come next after each token given a vector. Plain gated recurrent nets."""

import torch
from torch import Tensor, nn

from probgen.nn.layers import MLP, Linear, Table

__all__ = ["TextDecoder", "TextEncoder"]


class Gated(nn.Module):
    """A gated recurrent unit: (n, T, inputs) to states (n, T, width). Cho et al. (2014)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.of_input, self.of_state = Linear(inputs, 3 * width), Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        pushed, state, states = self.of_input(x), x.new_zeros(len(x), self.width), []
        for t in range(x.shape[1]):
            state = self.step(pushed[:, t], state)
            states.append(state)
        return torch.stack(states, 1)

    def step(self, pushed: Tensor, state: Tensor) -> Tensor:
        """The next state (n, width), from what the input pushes (n, 3 width)."""
        a, b, c = pushed.chunk(3, -1)
        d, e, f = self.of_state(state).chunk(3, -1)
        keep, look = torch.sigmoid(a + d), torch.sigmoid(b + e)
        return keep * state + (1 - keep) * torch.tanh(c + look * f)


class TextEncoder(nn.Module):
    """Padded token ids to a vector a row: the last state of a recurrent net, beside the mean of the tokens' vectors.

    Arguments:
        symbols: How many tokens there are.
        width: Of tokens and states.
        outputs: Numbers a row.
    """

    def __init__(self, symbols: int, width: int, outputs: int) -> None:
        super().__init__()
        self.table, self.gated = Table(symbols, width), Gated(width, width)
        self.out = MLP((2 * width, outputs), 1.6)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """ids (n, T) with anything behind the end of each row; lengths (n,), from 1."""
        vectors = self.table(ids)
        inside = torch.arange(ids.shape[1]) < lengths[:, None]
        mean = (vectors * inside[..., None]).sum(1) / lengths[:, None].to(vectors.dtype)
        last = self.gated(vectors)[torch.arange(len(ids)), lengths - 1]
        return self.out(torch.cat([last, mean], 1))


class TextDecoder(nn.Module):
    """Scores of every next token, and of the end, after each prefix of a text, given a vector z.

    A recurrent net reads the prefix, which costs nothing for further z; a perceptron joins its state with z at every
    step.

    Arguments:
        symbols: How many tokens there are; symbol ``symbols`` is the end, and begins a text.
        latent: Numbers of z.
        width: Of tokens, states and the perceptron.
    """

    def __init__(self, symbols: int, latent: int, width: int) -> None:
        super().__init__()
        self.symbols, self.width = symbols, width
        self.table, self.gated = Table(symbols + 1, width), Gated(width, width)
        self.of_state, self.of_z = Linear(width, width, 1.2), Linear(latent, width, 1.2)
        self.head = MLP((width, width, symbols + 1), 0.3)

    def states(self, ids: Tensor) -> Tensor:
        """After each prefix of ids (n, T), the empty one first: (n, T + 1, width)."""
        start = ids.new_full((len(ids), 1), self.symbols)
        return self.gated(self.table(torch.cat([start, ids], 1)))

    def scores(self, states: Tensor, z: Tensor) -> Tensor:
        """Log-odds of what comes next, (..., n, T, symbols + 1), of states (n, T, width) and z (..., n, latent)."""
        h = self.of_state(states) + self.of_z(z)[..., None, :]
        return self.head(nn.functional.silu(h))

    def first(self, n: int) -> Tensor:
        """States (n, width) before any token."""
        return self.next(self.table.weight.new_zeros(n, self.width), torch.full((n,), self.symbols))

    def next(self, state: Tensor, ids: Tensor) -> Tensor:
        """States (n, width) after one more token (n,)."""
        return self.gated.step(self.gated.of_input(self.table(ids)), state)

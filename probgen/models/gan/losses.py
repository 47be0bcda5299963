"""What discriminator and generator descend, and the penalties on the discriminator's slopes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["LOSSES", "discriminator_loss", "generator_loss", "interpolated_penalty", "slope_penalty"]

LOSSES = ("hinge", "non_saturating", "relativistic", "wasserstein")


def discriminator_loss(name: str, real: Tensor, fake: Tensor) -> Tensor:
    """Mean loss of the discriminator, from its numbers for n real and n generated rows, (n,) each.

    "relativistic": softplus(D(fake) - D(real)), pair by pair (Jolicoeur-Martineau 2019). "non_saturating":
    softplus(-D(real)) + softplus(D(fake)) (Goodfellow et al. 2014). "wasserstein": D(fake) - D(real) (Arjovsky,
    Chintala and Bottou 2017). "hinge": relu(1 - D(real)) + relu(1 + D(fake)) (Lim and Ye 2017).
    """
    if name == "relativistic":
        return softplus(fake - real).mean()
    if name == "non_saturating":
        return (softplus(-real) + softplus(fake)).mean()
    if name == "wasserstein":
        return (fake - real).mean()
    return ((1 - real).relu() + (1 + fake).relu()).mean()


def generator_loss(name: str, real: Tensor, fake: Tensor) -> Tensor:
    """Mean loss of the generator; only the relativistic one looks at real rows."""
    if name == "relativistic":
        return softplus(real - fake).mean()
    return softplus(-fake).mean() if name == "non_saturating" else -fake.mean()


def slope_penalty(on_rows: Tensor, *rows: Tensor) -> Tensor:
    """mean_i |dD(x_i)/dx_i|^2 of D's numbers for rows (n, width), summed over sets of rows, differentiable.

    R1 on real rows, R1 and R2 on real and generated ones. Mescheder, Geiger and Nowozin (2018), eqs. 9 and 10, twice
    theirs.

    Arguments:
        on_rows: D's numbers for all the rows.
        rows: Each set, which D's numbers were made of.
    """
    slopes = torch.autograd.grad(on_rows.sum(), list(rows), create_graph=True)
    return torch.stack([slope.square().sum(1).mean() for slope in slopes]).sum()


def interpolated_penalty(score: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """mean (|dD/dx| - 1)^2 at x = fake + share * (real - fake), share (n, 1). Gulrajani et al. (2017), eq. 3."""
    between = (fake + share * (real - fake)).detach().requires_grad_()
    (slope,) = torch.autograd.grad(score(between).sum(), between, create_graph=True)
    length = (slope.square().sum(1) + 1e-12).sqrt()  # the root's slope is infinite at 0
    return (length - 1).square().mean()

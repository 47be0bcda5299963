"""What is free in a state-space model: textbook structures as fixed matrices and masks."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from probgen.errors import ParameterError, nearest

__all__ = ["STRUCTURES", "Structure", "structure"]

STRUCTURES = ("free", "level", "trend", "ar")


@dataclass(frozen=True, eq=False)
class Structure:
    """Which entries of a state-space model are free, and what the others are.

    Arguments:
        names: Of the states; with several columns "level[0]", "level[1]", ...
        transition: A, shape (S, S); its first ``free_rows`` rows are replaced by free ones.
        free_rows: Rows of A to be learnt: all (free), one a column (ar) or none.
        noisy: States that noise enters, shape (S,).
        blocks: Noise of which pairs of states may be correlated, shape (S, S), bool.
        emission: C, shape (D, S); None where it is free.
        level: The states that carry the data's level, shape (S,); where there are none an offset d is free.
    """

    names: tuple[str, ...]
    transition: Tensor
    free_rows: int
    noisy: Tensor
    blocks: Tensor
    emission: Tensor | None
    level: Tensor

    @property
    def offset(self) -> bool:
        """Whether d is free."""
        return not bool(self.level.any())


def structure(kind: str, width: int, latent_dim: int | None, seasonal: int) -> Structure:
    """The structure of that name for ``width`` columns (Harvey 1989, chapter 2).

    Raises:
        ParameterError: an unknown name, or sizes that the structure can't have.
    """
    if kind not in STRUCTURES:
        raise ParameterError(f"structure={kind!r}", "a structure", nearest(str(kind), STRUCTURES))
    whole = isinstance(seasonal, int) and not isinstance(seasonal, bool)
    if not whole or seasonal < 0 or seasonal == 1 or (seasonal and kind not in ("level", "trend")):
        raise ParameterError(
            f"seasonal={seasonal!r} with structure={kind!r}",
            "0, or a period of at least 2 steps with structure='level' or 'trend'",
            "An autoregression of that many lags follows seasons too: structure='ar', latent_dim=period",
        )
    if kind == "free":
        return _free(_size(latent_dim, min(2, width), 1, "a number of states"))
    order = 1
    if kind == "ar":
        order = _size(latent_dim, width, width, f"lags times columns, a multiple of {width}") // width
    made = _for_each_column(_single(kind, order, seasonal), width)
    if latent_dim not in (None, len(made.names)):
        raise ParameterError(
            f"latent_dim={latent_dim} with structure={kind!r}", f"{len(made.names)} states, or None", "Leave it out"
        )
    return made


def _size(given: int | None, default: int, step: int, wanted: str) -> int:
    size = default if given is None else given
    if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % step:
        raise ParameterError(f"latent_dim={given!r}", f"{wanted}, at least 1", "Change it")
    return size


def _free(size: int) -> Structure:
    everywhere = torch.ones(size, dtype=torch.bool)
    return Structure(
        tuple(f"z{i}" for i in range(size)),
        torch.eye(size, dtype=torch.float64),
        size,
        everywhere,
        everywhere[:, None] & everywhere,
        None,
        ~everywhere,
    )


def _single(kind: str, order: int, seasonal: int) -> Structure:
    """A structure for one column; states of a block stand together, the observed one first."""
    if kind == "ar":
        parts = [("ar", torch.diag(torch.ones(order - 1), -1), 1)]
    elif kind == "trend":
        parts = [("level", torch.tensor([[1.0, 1.0], [0.0, 1.0]]), 2)]
    else:
        parts = [("level", torch.ones(1, 1), 1)]
    if seasonal:
        turn = torch.diag(torch.ones(seasonal - 2), -1)
        turn[0] = -1.0
        parts.append(("seasonal", turn, 1))
    size = sum(len(block) for _, block, _ in parts)
    names: list[str] = []
    noisy, emission = torch.zeros(size, dtype=torch.bool), torch.zeros(1, size, dtype=torch.float64)
    for name, block, noises in parts:
        noisy[len(names) : len(names) + noises] = True
        emission[0, len(names)] = 1.0
        names += [name] + [f"{name}.lag{lag}" for lag in range(1, len(block))]
    if kind == "trend":
        names[1] = "slope"
    level = torch.tensor([name == "level" for name in names])
    return Structure(
        tuple(names),
        torch.block_diag(*(block for _, block, _ in parts)).double(),
        int(kind == "ar"),
        noisy,
        torch.diag(noisy),
        emission,
        level,
    )


def _for_each_column(one: Structure, width: int) -> Structure:
    """Seemingly unrelated series: each column has its own states, their noises correlated across columns."""
    eye, ones = torch.eye(width, dtype=torch.float64), torch.ones(width, width)
    if width > 1:
        one = replace(one, names=tuple(f"{name}[{j}]" for name in one.names for j in range(width)))
    return replace(
        one,
        transition=torch.kron(one.transition, eye),
        free_rows=one.free_rows * width,
        noisy=one.noisy.repeat_interleave(width),
        blocks=torch.kron(one.blocks.float(), ones) > 0,
        emission=torch.kron(one.emission, eye),  # type: ignore[arg-type]
        level=one.level.repeat_interleave(width),
    )

"""Monte Carlo errors: rows and terms that share draws add linearly, independent ones in quadrature."""

import secrets
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

Terms = tuple[tuple[np.ndarray, np.ndarray], ...]


class Noisy(Protocol):
    """Numbers with standard errors: a LogProb."""

    @property
    def stderr(self) -> np.ndarray | None: ...

    @property
    def draws(self) -> np.ndarray | None: ...

    @property
    def components(self) -> Terms: ...

    def __len__(self) -> int: ...


def keys_of_rows(lp: Noisy) -> np.ndarray | None:
    """Stream keys of the rows: those given, else keys that no other stream has; None where nothing is random."""
    if lp.stderr is None or lp.components:
        return None
    if lp.draws is not None:
        return np.asarray(lp.draws).astype(np.uint64)
    return np.uint64(secrets.randbits(63)) + np.arange(len(lp), dtype=np.uint64)


def terms(lp: Noisy) -> Terms:
    """Errors and stream keys of every source of randomness; a number without any has errors of zero."""
    if lp.components:
        return lp.components
    if lp.stderr is None or lp.draws is None:
        return ((np.zeros(len(lp)), np.zeros(len(lp), dtype=np.uint64)),)
    return ((lp.stderr, lp.draws),)


def error_of_sum(lp: Noisy) -> float | None:
    """Standard error of the total over rows; None where nothing is random."""
    if lp.stderr is None:
        return None
    errors, keys = (np.concatenate(parts) for parts in zip(*terms(lp), strict=True))
    together = np.bincount(np.unique(keys, return_inverse=True)[1], weights=errors)
    return float(np.sqrt(np.sum(together**2)))


def joint_errors(a: Noisy, b: Noisy) -> dict[str, Any]:
    """Fields of a row-wise sum or difference."""
    if a.stderr is None or b.stderr is None:
        random = a if b.stderr is None else b
        return {"stderr": random.stderr, "draws": random.draws, "components": random.components}
    both = terms(a) + terms(b)
    errors, keys = (np.stack(parts) for parts in zip(*both, strict=True))
    shared = (keys[:, None] == keys[None]).astype(float)  # (terms, terms, rows)
    return {"stderr": np.sqrt(np.einsum("in,jn,ijn->n", errors, errors, shared)), "draws": None, "components": both}


def joined_errors(parts: Sequence[Noisy]) -> dict[str, Any]:
    """Fields of concatenated rows; every source of randomness stays known."""
    if all(part.stderr is None for part in parts):
        return {"stderr": None, "draws": None, "components": ()}
    stderr = np.concatenate([np.zeros(len(part)) if part.stderr is None else part.stderr for part in parts])
    own = [terms(part) for part in parts]
    width = max(map(len, own))
    blank = [(np.zeros(len(part)), np.zeros(len(part), dtype=np.uint64)) for part in parts]
    padded = [[*some, *[none] * (width - len(some))] for some, none in zip(own, blank, strict=True)]
    joined = tuple(
        (np.concatenate([errors for errors, _ in column]), np.concatenate([keys for _, keys in column]))
        for column in zip(*padded, strict=True)
    )
    if width == 1:
        return {"stderr": stderr, "draws": joined[0][1], "components": ()}
    return {"stderr": stderr, "draws": None, "components": joined}

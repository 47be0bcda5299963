"""Which sites a tensor was computed from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

__all__ = ["Followed", "Reads", "plain", "sources", "tracked"]

_METADATA = frozenset(
    ("__get__", "size", "dim", "ndimension", "stride", "numel", "nelement", "__len__", "type", "get_device",
     "is_floating_point", "is_complex", "is_contiguous", "element_size", "__hash__", "__repr__")
)  # fmt: skip
_MAKERS = frozenset(("tensor", "full", "new_tensor", "new_full", "arange", "scalar_tensor", "set_"))


class Reads:
    """The sites whose values left torch in one run: whatever comes after may depend on them.

    Attributes:
        escaped: Their names.
        on: Whether leaving counts; not while a distribution is only looked at.
    """

    def __init__(self) -> None:
        self.escaped: frozenset[str] = frozenset()
        self.on = True

    def note(self, names: frozenset[str]) -> None:
        if self.on:
            self.escaped |= names

    @staticmethod
    @contextmanager
    def paused(reads: "Reads | None") -> Iterator[None]:
        if reads is None:
            yield
            return
        reads.on = False
        try:
            yield
        finally:
            reads.on = True


class _Tracked(Tensor):
    """A tensor that knows the names of the sites it was computed from, through torch's operations."""

    _plain: Tensor
    _of: frozenset[str]
    _reads: Reads

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _followed(func, args, kwargs)


class Followed(TorchFunctionMode):
    """Inside, functions that make tensors of numbers (torch.tensor, torch.full) are followed as well."""

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _MAKERS:
            return _followed(func, args, kwargs)
        return func(*args, **(kwargs or {}))


def _followed(func: Callable, args: Any, kwargs: Any) -> Any:
    """The result of an operation, known to be computed from what its arguments were."""
    found = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, _Tracked)]
    if not found:
        return func(*args, **(kwargs or {}))
    reads = found[0]._reads
    names = frozenset().union(*(leaf._of for leaf in found))
    out = func(*plain(args), **(plain(kwargs) or {}))
    _note_writes(func, args, kwargs, names, reads)
    return _marked(out, names, reads, getattr(func, "__name__", "") in _METADATA)


def _note_writes(func: Callable, args: Any, kwargs: Any, names: frozenset[str], reads: Reads) -> None:
    """A tracked value written into another tensor: into a tracked one it is followed, into a plain one it leaves."""
    name = getattr(func, "__name__", "")
    writes = name in ("__setitem__", "__set__") or (name.endswith("_") and not name.endswith("__"))
    if writes or name.startswith("__i") or (kwargs and kwargs.get("out") is not None):
        if args and isinstance(args[0], _Tracked):
            args[0]._of |= names
        else:
            reads.note(names)


def _marked(out: Any, names: frozenset[str], reads: Reads, metadata: bool) -> Any:
    """The result of an operation, its tensors tracked; what is no tensor has left torch."""
    leaves, form = tree_flatten(out)
    if not metadata and any(not isinstance(leaf, Tensor | type(None)) for leaf in leaves):
        reads.note(names)
    return tree_unflatten([tracked(x, names, reads) if isinstance(x, Tensor) else x for x in leaves], form)


def tracked(tensor: Tensor, names: frozenset[str], reads: Reads) -> Tensor:
    """The tensor, known to be computed from some sites."""
    if isinstance(tensor, _Tracked):
        tensor = tensor._plain
    made = tensor.as_subclass(_Tracked)
    made._plain, made._of, made._reads = tensor, names, reads
    return made


def plain(values: Any) -> Any:
    """The same without tracking."""
    leaves, form = tree_flatten(values)
    return tree_unflatten([leaf._plain if isinstance(leaf, _Tracked) else leaf for leaf in leaves], form)


def sources(values: Any) -> frozenset[str]:
    """The names of the sites that some tensors were computed from."""
    return frozenset().union(*(leaf._of for leaf in tree_flatten(values)[0] if isinstance(leaf, _Tracked)))

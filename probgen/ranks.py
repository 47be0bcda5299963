"""Several processes that train one model: joined as torchrun says, heard in each step, ended together."""

import atexit
import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from probgen.errors import DataError, FitError, ParameterError, ProbgenError

__all__ = ["ALONE", "Ranks", "alone", "digest", "is_first", "joined", "keyed"]

TIMEOUT = timedelta(minutes=10)  # for a rank that neither answers nor dies

_SAID = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # by torchrun
_TEXT = 600  # bytes of an error's message that the other ranks hear
_ALONE: ContextVar[bool] = ContextVar("alone", default=False)
_groups: list[tuple[Any, Any]] = []  # the user's group and ours beside it, the latest


class Ranks:
    """The processes that fit one model, as one of them sees them. All must ask the same questions in the same order.

    Arguments:
        rank, size: Which of how many this one is.
        group: Of torch.distributed; None for a process alone, whose answers are its own.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size, self.group = rank, size, group
        self.interrupted = False

    def part(self, n: int) -> slice:
        """This rank's share of n rows: contiguous, sizes differ by at most one."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    # Questions to all

    def gather(self, own: Tensor) -> Tensor:
        """Everybody's tensor of one shape, (size, ...)."""
        if self.size == 1:
            return own[None]
        parts = [torch.empty_like(own) for _ in range(self.size)]
        self._ask(dist.all_gather, parts, own.contiguous())
        return torch.stack(parts)

    def sums(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor summed over the ranks, the same bits on all of them; one message a dtype and device."""
        if self.size == 1:
            return list(parts)
        kinds = dict.fromkeys((part.dtype, part.device) for part in parts)
        found: dict[int, Tensor] = {}
        for kind in kinds:
            places = [i for i, part in enumerate(parts) if (part.dtype, part.device) == kind]
            flat = torch.cat([parts[i].reshape(-1) for i in places])
            self._ask(dist.all_reduce, flat)
            for i, piece in zip(places, flat.split([parts[i].numel() for i in places]), strict=True):
                found[i] = piece.reshape(parts[i].shape)
        return [found[i] for i in range(len(parts))]

    def summed(self, totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sufficient statistics of all rows from those of each rank's."""
        return dict(zip(totals, self.sums(list(totals.values())), strict=True))

    def agreed(self, *numbers: float) -> list[float]:
        """The first rank's numbers: what clocks and chance have told it."""
        if self.size == 1:
            return list(numbers)
        return list(self.gather(torch.tensor(numbers, dtype=torch.float64))[0].tolist())

    def _ask(self, how: Callable, *tensors: Any) -> None:
        try:
            how(*tensors, group=self.group)
        except RuntimeError as problem:
            raise FitError(
                f"Rank {self.rank} of {self.size} lost the others: {_short(problem)}",
                "all ranks, to the end of the fit",
                "See the error of the rank that stopped first; a checkpoint= can be resumed",
            ) from problem

    # A common start

    def agree(self, generator: torch.Generator) -> None:
        """Gives all ranks the first one's random numbers."""
        if self.size > 1:
            generator.set_state(self._firsts([generator.get_state()])[0])

    def meet(self, model: nn.Module, generator: torch.Generator, *data: Tensor | None) -> None:
        """Gives all ranks the first one's parameters and random numbers.

        Raises:
            DataError: the ranks were given different rows. ParameterError: models of different shapes.
        """
        if self.size == 1:
            return
        state = model.state_dict()
        shapes = [(name, str(value.dtype), tuple(value.shape)) for name, value in state.items()]
        self._refuse_other(
            "rows",
            digest(part for part in data if part is not None),
            DataError,
            "the same rows for all of them, which fit() shares out",
        )
        self._refuse_other("models", _number(shapes), ParameterError, "one constructor call for all of them")
        with torch.no_grad():
            for value, first in zip(state.values(), self._firsts(state.values()), strict=True):
                value.copy_(first)
        self.agree(generator)

    def _refuse_other(self, what: str, mine: int, error: type[ProbgenError], wanted: str) -> None:
        others = self._unlike(mine)
        if others:
            raise error(
                f"Ranks {others} were given other {what} than rank 0", wanted,
                "Read them alike on each rank, or fit under `with probgen.training.alone():` a model a rank",
            )  # fmt: skip

    def _unlike(self, mine: int) -> list[int]:
        """Ranks whose number is not the first one's."""
        numbers = self.gather(torch.tensor([mine]))[:, 0].tolist()
        return [rank for rank, number in enumerate(numbers) if number != numbers[0]]

    def _firsts(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """The first rank's bytes of these tensors, which have the same shapes everywhere."""
        own = [value.detach().cpu().contiguous() for value in tensors]
        flat = torch.cat([value.reshape(-1).view(torch.uint8) for value in own])
        self._ask(lambda sent, group: dist.broadcast(sent, dist.get_global_rank(group, 0), group=group), flat)
        pieces = flat.split([value.numel() * value.element_size() for value in own])
        return [piece.clone().view(value.dtype).reshape(value.shape) for piece, value in zip(pieces, own, strict=True)]

    def check_alike(self, model: nn.Module, step: int) -> None:
        """That all ranks hold the same bits.

        Raises:
            FitError: they do not, so that no one model has been trained.
        """
        if self.size > 1 and (others := self._unlike(digest(model.state_dict().values()))):
            raise FitError(
                f"The parameters of ranks {others} are not those of rank 0 after step {step}",
                "the same bits on all ranks",
                "Buffers that follow a rank's own rows (batch normalisation) can't be shared out; nor can machines mix",
                step=step,
            )

    # A common end

    @contextmanager
    def together(self, step: int | None = None) -> Iterator[None]:
        """Work that ends with an error on all ranks if it does on one.

        Raises:
            FitError: another rank failed; its own error elsewhere.
        """
        if self.size == 1:
            yield
            return
        problem: Exception | None = None
        try:
            yield
        except Exception as caught:
            problem = caught
        if bool(self.gather(torch.tensor([problem is not None])).any()):
            self.fail(problem, step)

    def fail(self, problem: Exception | None, step: int | None) -> None:
        """Raises what went wrong here, or tells what did elsewhere; all ranks come here."""
        said = b"" if problem is None else f"{type(problem).__name__}: {_short(problem)}".encode()[:_TEXT]
        heard = self.gather(torch.tensor(list(said.ljust(_TEXT, b"\0")), dtype=torch.uint8))
        if problem is not None:
            raise problem
        texts = [bytes(text.tolist()).rstrip(b"\0").decode(errors="replace") for text in heard]
        rank = next(rank for rank, text in enumerate(texts) if text)
        raise FitError(f"Rank {rank} stopped with {texts[rank]}", "ranks that all go on", "Mend that one", step=step)

    def averaged(
        self,
        slope: Callable[[], tuple[float, Sequence[Tensor | None]]],
        parameters: Sequence[nn.Parameter],
        weight: float,
        step: int,
    ) -> tuple[float, Sequence[Tensor | None]]:
        """A loss and its gradient over the rows of all ranks, from this one's; the same bits on all ranks.

        One message carries the loss, who failed, who was interrupted, which parameters have a gradient, and the
        gradient. DistributedDataParallel does the same from hooks, which fire in ``backward()`` under its own
        ``forward`` alone: not for ``autograd.grad``, not for losses with slopes inside (a discriminator's penalty), and
        for two players it needs two copies of itself around modules that they share.

        Arguments:
            slope: Gives the mean loss of this rank's rows, and its gradient (empty where the loss is not finite).
            weight: This rank's share of the batch's rows; of 0 nothing is computed.

        Raises:
            FitError: another rank failed. KeyboardInterrupt: on all ranks, if one was interrupted.
        """
        if self.size == 1:
            return slope()
        problem, value, own = None, 0.0, []  # type: ignore[var-annotated]
        try:
            if weight:
                value, own = slope()  # type: ignore[assignment]
        except Exception as caught:
            problem = caught
        own = list(own) or [None] * len(parameters)
        marks = [weight * value if weight else 0.0, float(problem is not None), float(self.interrupted)]
        marks += [float(gradient is not None) for gradient in own]
        pieces = [
            torch.zeros_like(p) if gradient is None else gradient * weight
            for gradient, p in zip(own, parameters, strict=True)
        ]
        first = parameters[0]
        kind = torch.float64 if first.dtype == torch.float64 else torch.float32
        told, *sums = self.sums([torch.tensor(marks, dtype=kind, device=first.device), *pieces])
        loss, failed, interrupted, *seen = told.tolist()
        if failed:
            self.fail(problem, step)
        if interrupted:
            raise KeyboardInterrupt
        return loss, [total if has else None for total, has in zip(sums, seen, strict=True)]

    @contextmanager
    def heeding(self) -> Iterator[None]:
        """Ctrl-C waits for the next step, in which all ranks hear of it and stop at the same place."""
        if self.size == 1 or threading.current_thread() is not threading.main_thread():
            yield
            return

        def wait(*_: Any) -> None:
            self.interrupted = True

        before = signal.signal(signal.SIGINT, wait)
        try:
            yield
        finally:
            self.interrupted = False
            signal.signal(signal.SIGINT, before)

    def added(self, notes: tuple[str, ...]) -> tuple[str, ...]:
        """A report's notes, with one on a family that has nothing to share."""
        silent = self.size > 1 and not any(note.startswith((f"{self.size} ranks", "each of")) for note in notes)
        return (*notes, f"each of {self.size} ranks fitted all rows") if silent else notes

    def notes(self, what: str, n: int, shared: bool = True) -> tuple[str, ...]:
        """What the report says of them."""
        if self.size == 1:
            return ()
        return (f"{self.size} ranks shared {n} {what}" if shared else f"each of {self.size} ranks took all {n} {what}",)


ALONE = Ranks()


@contextmanager
def alone() -> Iterator[None]:
    """Fits inside use this process alone, whatever torchrun says: for a model of its own on each rank."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def joined() -> Ranks:
    """The ranks that torchrun started, or that the user's process group has; else this process alone.

    Its messages go through a group of their own: gloo for tensors on the CPU, nccl for those on CUDA.

    Raises:
        FitError: the others can't be reached. ParameterError: an environment that names no ranks.
    """
    if _ALONE.get() or not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        if not _announced():
            return ALONE
        _join()
    if dist.get_world_size() == 1:
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size(), _group())


def is_first() -> bool:
    """Whether this process is the one that talks to the user."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return not _announced() or os.environ["RANK"] == "0"


def _announced() -> bool:
    return all(os.environ.get(name) for name in _SAID) and os.environ["WORLD_SIZE"] != "1"


def _join() -> None:
    said = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    if not all(text.isdigit() for name, text in said.items() if text or name != "LOCAL_RANK"):
        raise ParameterError(f"The environment says {said}", "whole numbers", "Start with torchrun, or unset RANK")
    if 0 < torch.cuda.device_count() > int(said["LOCAL_RANK"] or said["RANK"]):
        torch.cuda.set_device(int(said["LOCAL_RANK"] or said["RANK"]))
    with _reaching(said["RANK"], said["WORLD_SIZE"]):
        dist.init_process_group(_backend(), timeout=TIMEOUT)
    atexit.register(_leave)


@contextmanager
def _reaching(rank: object, size: object) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as problem:
        raise FitError(
            f"Rank {rank} of {size} could not join: {_short(problem)}",
            "all ranks that the environment names",
            "Start them with torchrun; in a process of its own unset RANK and WORLD_SIZE",
        ) from problem


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def _group() -> Any:
    """Our group beside the user's default one, made once."""
    default = dist.group.WORLD
    if not _groups or _groups[0][0] is not default:
        with _reaching(dist.get_rank(), dist.get_world_size()):
            _groups[:] = [(default, dist.new_group(backend=_backend(), timeout=TIMEOUT))]
    return _groups[0][1]


def digest(tensors: Iterable[Tensor]) -> int:
    """A number below 2^63 of the bytes of tensors."""
    found = hashlib.blake2b(digest_size=8)
    for value in tensors:
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return int.from_bytes(found.digest()) >> 1


def keyed(*key: int) -> torch.Generator:
    """Random numbers that belong to a place: a step, a rank."""
    return torch.Generator().manual_seed(_number(key))


def _number(value: Any) -> int:
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest()) >> 1


def _short(problem: BaseException) -> str:
    text = " ".join(str(problem).split())
    return text if len(text) < 300 else f"{text[:300]}..."

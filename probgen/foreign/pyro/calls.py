"""How a user's function is called: the data and the covariates under the names that it gives them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from probgen.errors import ParameterError, nearest

__all__ = ["Automatic", "Call", "Fixed", "signature_of"]


def signature_of(function: Callable) -> inspect.Signature:
    """The arguments of a function, or of a module's forward."""
    return inspect.signature(function.forward if isinstance(function, nn.Module) else function)


class Call:
    """A user's model or guide as a function of (x, given).

    Arguments are handed over by position in the order of the model's signature, as ``SVI.step`` does, so that the guide
    may call them otherwise.

    Arguments:
        function: What is called.
        signature: Of the model.
        data, given: Names of the model's arguments for x and for the covariates.
        constants: All other arguments.
        fixed: Global latents held at given values.

    Raises:
        ParameterError: the model has no argument of a name, or one is left without a value.
    """

    def __init__(
        self,
        function: Callable,
        signature: inspect.Signature,
        data: str,
        given: str | None,
        constants: Mapping[str, Any],
        fixed: Mapping[str, Tensor],
    ) -> None:
        self.function, self.data, self.given = function, data, given
        self.constants, self.fixed = dict(constants), dict(fixed)
        self.order = _order(signature, data, given, self.constants)

    @property
    def automatic(self) -> bool:
        return isinstance(self.function, AutoGuide)

    def __call__(self, x: Any, given: Any = None) -> Any:
        named = {**self.constants, self.data: x}
        if self.given is not None:
            named[self.given] = given
        placed = [named.pop(name) for name in self.order]
        with Fixed(self.fixed):
            return self.function(*placed, **named)


def _order(signature: inspect.Signature, data: str, given: str | None, constants: Mapping[str, Any]) -> list[str]:
    parameters = signature.parameters
    known = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in (data, *([] if given is None else [given]), *constants):
        if name not in (*known, *named):
            raise ParameterError(
                f"The program has no argument {name!r}", "one of its own", nearest(name, known + named)
            )
    have = {data, given, *constants}
    lacking = [n for n in known + named if n not in have and parameters[n].default is inspect.Parameter.empty]
    if lacking:
        raise ParameterError(
            f"The program's argument {lacking[0]!r} has no value",
            "a value for every argument",
            f"constants={{{lacking[0]!r}: ...}}, or given={lacking[0]!r} with context= where every row has its own",
        )
    while known and known[-1] not in have:
        known.pop()
    gap = next((name for name in known if name not in have), None)
    if gap is not None:
        raise ParameterError(
            f"The program's argument {gap!r} stands before others and has no value",
            "a value",
            f"constants={{{gap!r}: ...}}",
        )
    return known


class Fixed(Messenger):
    """Holds latents at values; their log-densities stay."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["is_observed"] = self.values[msg["name"]], True
            msg["infer"] = {**msg["infer"], "fixed": True}


class Automatic:
    """An autoguide that was made for a program here, called as the program is."""

    automatic = True

    def __init__(self, guide: AutoGuide) -> None:
        self.guide = guide

    def __call__(self, x: Any, given: Any = None) -> Any:
        return self.guide(x, given)

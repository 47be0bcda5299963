"""A foreign Pyro model and guide with a parameter store of their own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.poutine import Trace
from torch import Tensor, nn
from torch.distributions import constraints

from probgen.errors import StructureError
from probgen.model import pyro_lock

__all__ = ["Program", "is_latent", "sites_of"]

Site = dict[str, Any]


def sites_of(trace: Trace) -> dict[str, Site]:
    """The sample sites of a trace by name, without plates and deterministic values."""
    nodes: Any = trace.nodes
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample"
        and type(site["fn"]).__name__ != "_Subsample"
        and not site["infer"].get("_deterministic")
    }


def is_latent(site: Site) -> bool:
    """Whether a site is neither observed nor an auxiliary draw of a guide."""
    return not site["is_observed"] and not site["infer"].get("is_auxiliary")


class Program(nn.Module):
    """A Pyro model and guide, called as ``model(x, given)`` and ``guide(x, given)``.

    They run under the one lock, in a parameter store that is theirs alone: what ``pyro.param``, ``pyro.module`` and
    PyroModules register becomes a parameter of this module (unconstrained), and Pyro's global store is left as it was.
    Parameters of networks that the program uses without registering them are found on the way back from the loss.

    Arguments:
        model: The generative program; must not change its structure from call to call.
        guide: The variational program; None where all latents are summed out.
    """

    def __init__(self, model: Callable, guide: Callable | None) -> None:
        super().__init__()
        self.pair = (model, guide)
        self.values = nn.ParameterDict()
        self.names: dict[str, str] = {}
        self.constraints: dict[str, constraints.Constraint] = {}
        self.unregistered: list[str] = []

    @contextmanager
    def running(self, generator: torch.Generator | None = None, *, fresh: bool = False) -> Iterator[None]:
        """The lock, the private store, validation off; all is put back afterwards.

        Arguments:
            generator: Of the program's draws; None leaves torch's global one to them.
            fresh: An empty store that is thrown away.
        """
        mine: Any = {"params": {}, "constraints": {}}
        if not fresh:
            mine["params"] = {name: self.values[key] for name, key in self.names.items()}
            mine["constraints"] = dict(self.constraints)
        with (
            pyro_lock(generator),
            pyro.validation_enabled(False),
            _references(),
            pyro.get_param_store().scope(mine) as store,
        ):
            yield
            found: Any = pyro.get_param_store().get_state()
            store.update(found)
        if not fresh:
            self._adopt(found)

    def _adopt(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        for name, value in found["params"].items():
            if name not in self.names:
                self.names[name] = "of:" + name.replace(".", "/")  # no name that a module has
                self.constraints[name] = found["constraints"].get(name, constraints.real)
                mine = value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach().clone())
                self.values[self.names[name]] = mine

    def adopt_leaves(self, loss: Tensor) -> None:
        """Takes up parameters that reach the loss although the program registers them nowhere."""
        known = {id(parameter) for parameter in self.parameters()}
        for leaf in _leaves(loss):
            if id(leaf) not in known and isinstance(leaf, nn.Parameter):
                key = f"found:{len(self.unregistered)}"
                self.values[key] = leaf
                self.unregistered.append(key)

    def take_store(self) -> None:
        """Parameters as they stand in Pyro's global store, for programs that were trained outside."""
        with pyro_lock():
            found: Any = pyro.get_param_store().get_state()
            self._adopt(found)

    # Traces; the caller holds ``running``

    def trace_guide(self, x: Any, given: Any, fixed: Mapping[str, Tensor] | None = None) -> Trace:
        guide = self.pair[1]
        if guide is None:
            return poutine.trace(lambda: None).get_trace()
        with poutine.condition(data=dict(fixed)) if fixed else nullcontext():
            return poutine.trace(guide).get_trace(x, given)

    def trace_model(self, x: Any, given: Any, values: Mapping[str, Tensor], enumerate_from: int | None = None) -> Trace:
        """The model with its latents put in; the other discrete ones enumerated from a dim on, else drawn."""
        model: Callable = poutine.condition(self.pair[0], data=dict(values))
        if enumerate_from is not None:
            model = poutine.enum(config_enumerate(model, default="parallel"), first_available_dim=enumerate_from)
        trace = poutine.trace(model).get_trace(x, given)
        trace.compute_log_prob()
        return trace

    def constrained(self) -> dict[str, Tensor]:
        """Registered parameters in the program's own space, by their Pyro names."""
        return {
            name: torch.distributions.transform_to(self.constraints[name])(self.values[key]).detach()
            for name, key in self.names.items()
        }

    def forward(self, *_: Any) -> None:
        raise StructureError("A program called as a network", "its model or guide", "Use Program.trace_model")


@contextmanager
def _references() -> Iterator[None]:
    """Keeps what the caller's parameters remember of themselves: reading a store's state makes them forget it."""
    values = [value for _, value in pyro.get_param_store().named_parameters()]
    known = [(value, value.__dict__["unconstrained"]) for value in values if "unconstrained" in value.__dict__]
    try:
        yield
    finally:
        for value, reference in known:
            value.__dict__["unconstrained"] = reference


def _leaves(loss: Tensor) -> list[Tensor]:
    """The leaf tensors under a loss, in a fixed order."""
    stack, seen, leaves = [loss.grad_fn], set(), []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        stack.extend(child for child, _ in reversed(node.next_functions))
    return leaves

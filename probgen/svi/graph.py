"""A tensor program recorded once and played back: ``torch.fx``'s make_fx, its graph made smaller, its draws private."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from probgen.errors import StructureError

__all__ = ["Graph", "gradients", "record"]

Function = Callable[..., tuple[Tensor | None, ...]]
_ATEN = torch.ops.aten
_RANDOM = torch.Tag.nondeterministic_seeded
_RETURNS_INPUT = (_ATEN.detach.default, _ATEN.lift_fresh_copy.default, _ATEN.alias.default)
_SHAPE_ONLY = {"ones_like", "zeros_like", "full_like", "new_zeros", "new_ones", "new_full"}  # of their first input
_RESHAPES = (_ATEN.expand.default, _ATEN.view.default, _ATEN._unsafe_view.default)
_FUNCTIONS = {
    "abs", "add", "addmm", "baddbmm", "bmm", "cat", "clamp", "div", "eq", "exp", "expm1", "ge", "gt", "le", "log",
    "log1p", "logsumexp", "lt", "maximum", "mean", "minimum", "mm", "mul", "neg", "reciprocal", "relu", "rsqrt",
    "sigmoid", "sqrt", "square", "stack", "sub", "sum", "t", "tanh", "transpose", "unsqueeze", "where",
}  # fmt: skip
_EXITS = (Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.data_ptr, Tensor.__dlpack__)
_METHODS = {"expand", "logical_and_", "normal_", "uniform_", "view"}


class Graph:
    """A recorded function of tensors; called as it was, with the generator that its draws come from.

    Every draw of the graph is taken from that generator, in the order of the recorded program, so that it consumes the
    same numbers as the program under ``model.pyro_lock(generator)``. Parameters are read in place at each call.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.held = module, _lift(module)
        self.play = module.forward  # past nn.Module's hooks

    def __call__(self, *inputs: Tensor, generator: torch.Generator) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            return self.play(*inputs, generator, *self.held)

    def __len__(self) -> int:
        """Operations that a call runs."""
        return sum(node.op.startswith("call") for node in self.module.graph.nodes)


def gradients(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The loss and its gradients, to be recorded together: no autograd is left to do at play-back."""
    return (loss.detach(), *torch.autograd.grad(loss, list(parameters), allow_unused=True))


def record(function: Function, *inputs: Tensor, generator: torch.Generator) -> Graph:
    """Records a function of tensors, whose random numbers come from torch's global generator.

    The caller holds ``pyro_lock``; the recording itself draws. A graph is good for inputs of the same shapes and
    dtypes only, and for programs whose path does not depend on numbers in tensors.

    Raises:
        StructureError: the function reads a number out of a tensor to decide what to do, computes outside torch (a
            compiled kernel: its result would be taken for a constant), or draws by an operation that takes no
            generator.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # a second or so, for those only who need it

    try:
        with _Inside():
            module = make_fx(function)(*inputs)
    except StructureError:
        raise
    except Exception as problem:  # whatever a program can not bear when its tensors are proxies
        raise StructureError(
            f"The program can't be recorded: {str(problem).splitlines()[0]}",
            "a path that no number in a tensor decides",
        ) from problem
    _privatise(module)
    _shrink(module, [*inputs, generator.clone_state()])
    return Graph(module)


class _Inside(TorchFunctionMode):
    """Refuses what takes numbers out of torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _EXITS:
            raise StructureError(f"The program calls Tensor.{func.__name__}", "operations of torch alone")
        return func(*args, **(kwargs or {}))


def _calls(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_function" and hasattr(node.target, "_schema")]


def _schema(node: fx.Node) -> Any:
    return node.target._schema  # type: ignore[union-attr]


def _is_random(node: fx.Node) -> bool:
    return _RANDOM in node.target.tags  # type: ignore[union-attr]


def _privatise(module: fx.GraphModule) -> None:
    """Gives the graph one more input, a generator, and every draw takes from it."""
    graph = module.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    with graph.inserting_after(last):
        source = graph.placeholder("generator")
    for node in filter(_is_random, _calls(graph)):
        takes = [argument.name for argument in _schema(node).arguments]
        packet = node.target.overloadpacket  # type: ignore[union-attr]
        if "generator" not in takes and "generator" in packet.overloads():
            node.target = packet.generator
        elif "generator" not in takes:
            raise StructureError(f"The program draws by {node.target}", "an operation that takes a generator")
        node.kwargs = {**node.kwargs, "generator": source}


def _lift(module: fx.GraphModule) -> list[Tensor]:
    """Makes inputs of the parameters, buffers and constants, which are slow to look up in a module at every call."""
    nodes = [node for node in module.graph.nodes if node.op == "get_attr"]
    last = [node for node in module.graph.nodes if node.op == "placeholder"][-1]
    for node in reversed(nodes):
        with module.graph.inserting_after(last):
            node.replace_all_uses_with(module.graph.placeholder(f"held_{node.name}"))
        module.graph.erase_node(node)
    module.recompile()
    return [getattr(module, str(node.target)) for node in nodes]


def _shrink(module: fx.GraphModule, inputs: list[Any]) -> None:
    """Folds constants, drops what changes nothing, computes nothing twice; each step leaves all values bit-equal."""
    values = _Values(module)
    with torch.no_grad():
        values.run(*inputs)
    touched = _touched(module.graph)
    _fold(module, values.of, touched)
    _drop(module.graph, values.of, touched)
    _merge(module, touched)
    module.graph.eliminate_dead_code()
    for node in _calls(module.graph):
        _bind(node, _schema(node).name.partition("::")[2])
    module.recompile()


def _bind(node: fx.Node, name: str) -> None:
    """The same kernel by a binding that parses its arguments faster than ``torch.ops`` does."""
    if node.target is _ATEN.pow.Tensor_Scalar and node.args[1] == 2:
        node.target, node.args = torch.mul, (node.args[0], node.args[0])
    elif name in _FUNCTIONS:
        node.target = getattr(torch, name)
    elif name in _METHODS:
        node.op, node.target = "call_method", name


class _Values(fx.Interpreter):
    """Remembers what every node gave."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.of: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.of[n] = super().run_node(n)
        return self.of[n]


def _touched(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose memory an operation writes into, their views included; these are left alone."""
    owner: dict[fx.Node, fx.Node] = {}
    written: set[fx.Node] = set()
    for node in _calls(graph):
        aliases = [r.alias_info for r in _schema(node).returns]
        first = next(iter(node.all_input_nodes), None)
        owner[node] = owner.get(first, first) if first is not None and any(aliases) else node
        for argument, value in zip(_schema(node).arguments, node.args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, fx.Node):
                written.add(owner.get(value, value))
    return {node for node, root in owner.items() if root in written} | written


def _fold(module: fx.GraphModule, values: dict[fx.Node, Any], touched: set[fx.Node]) -> None:
    """Replaces what depends on no input, parameter, buffer or draw by its value."""
    constant: set[fx.Node] = set()
    for node in _calls(module.graph):
        literal = node.target is _ATEN.lift_fresh_copy.default  # torch.tensor(0.5) in the program
        literal = literal or _schema(node).name.partition("::")[2] in _SHAPE_ONLY
        steady = not _schema(node).is_mutable and not _is_random(node) and isinstance(values[node], Tensor)
        if steady and node not in touched and (literal or all(n in constant for n in node.all_input_nodes)):
            constant.add(node)
    for i, node in enumerate(sorted(constant, key=list(module.graph.nodes).index)):
        if any(user not in constant for user in node.users):
            module.register_buffer(f"folded{i}", values[node].detach().clone())
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.get_attr(f"folded{i}"))


def _drop(graph: fx.Graph, values: dict[fx.Node, Any], touched: set[fx.Node]) -> None:
    """Takes out copies, reshapes to the same shape, twice transposed matrices, first powers."""
    for node in _calls(graph):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or node in touched or source in touched:
            continue
        twice = node.target is _ATEN.t.default and source.target is _ATEN.t.default
        same = node.target in _RESHAPES and source in values and _layout(values[node]) == _layout(values[source])
        first = node.target is _ATEN.pow.Tensor_Scalar and node.args[1] == 1
        if twice:
            node.replace_all_uses_with(source.args[0])  # type: ignore[arg-type]
        elif node.target in _RETURNS_INPUT or same or first:
            node.replace_all_uses_with(source)


def _layout(value: Any) -> tuple:
    return (value.shape, value.stride(), value.dtype)


def _merge(module: fx.GraphModule, touched: set[fx.Node]) -> None:
    """One node for equal operations on equal inputs."""
    seen: dict[Any, fx.Node] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            key: Any = (id(getattr(module, node.target)),)
        elif node.op != "call_function" or node in touched or not _is_pure(node):
            continue
        else:
            key = (node.target, _key(node.args), _key(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
        seen.setdefault(key, node)


def _is_pure(node: fx.Node) -> bool:
    """Whether a node gives the same for the same, and its memory is its own to share."""
    known = hasattr(node.target, "_schema") and not _schema(node).is_mutable and not _is_random(node)
    return known and not _schema(node).name.startswith("aten::empty")


def _key(part: Any) -> Any:
    """Arguments in a form that compares: 1, 1.0 and True differ."""
    if isinstance(part, fx.Node):
        return part
    if isinstance(part, list | tuple):
        return tuple(map(_key, part))
    if isinstance(part, dict):
        return tuple((name, _key(value)) for name, value in sorted(part.items()))
    return type(part), repr(part) if isinstance(part, float) else part

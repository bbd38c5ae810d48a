"""Which of NNCF's quantizers belongs to which operation, and how an operation goes back to FP32.

NNCF hooks quantizers onto calls of functions and names them by these calls (`…/query/linear/1` is the second call, so
layer 1). Its graph of the model says the rest: the parameter behind a product, and the quantizer before its input.
"""

import contextlib
import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.recipe.quantization import OpType

_HOOKS = "__nncf_hooks."
_RANGES = ("._scale_param_storage", ".input_low")  # a quantizer has one of these parameters; other hooks do not


@dataclass(frozen=True)
class QuantizedOp:
    """An operation that runs in 8 bits.

    Attributes:
        name: Of its module; of attention's product of queries and keys: of the module that computes it.
        kind: Of what type it is.
        weight_hooks: Names of the quantizers of its weight: one for each call of the module; none for `MatMul`.
        input_hooks: Names of the quantizers of its inputs; none for `Embedding`, or where only weights have 8 bits.
    """

    name: str
    kind: OpType
    weight_hooks: tuple[str, ...] = ()
    input_hooks: tuple[str, ...] = ()

    @property
    def hooks(self) -> frozenset[str]:
        """All of its quantizers."""
        return frozenset(self.weight_hooks + self.input_hooks)


def quantizable_ops(model: nn.Module, sample: dict[str, Tensor]) -> dict[str, OpType]:
    """Name -> type of everything that can be quantized, in forward order.

    Args:
        model: FP32 or quantized; stays as it is.
        sample: Model inputs.
    """
    return {op.name: op.kind for op in _ops(model, sample).values()}


def quantized_ops(model: Any, sample: dict[str, Tensor]) -> dict[str, QuantizedOp]:
    """Name -> operation of everything that is quantized, in forward order.

    Args:
        model: From `quantize`, `post_training`, `dynamic` or `load`; stays as it is.
        sample: Model inputs.
    """

    def is_quantized(op: QuantizedOp) -> bool:
        return len(op.input_hooks) >= 2 if op.kind == "MatMul" else bool(op.weight_hooks)

    return {name: op for name, op in _ops(model, sample).items() if is_quantized(op)}


def quantizers(model: Any) -> dict[str, Any]:
    """Hook name -> quantizer module of everything that is hooked onto the model."""
    from nncf.torch.function_hook import get_hook_storage

    return dict(get_hook_storage(model).named_hooks(remove_duplicate=False))


def return_to_fp32(model: Any, names: Collection[str], ops: Mapping[str, QuantizedOp]) -> None:
    """Takes the quantizers of these operations away for good; and the bias correction that was made for them.

    A quantizer that feeds other quantized operations too stays.

    Args:
        model: Changed in place.
        names: Keys of `ops`.
        ops: From `quantized_ops`, before or after others were returned.
    """
    from nncf.torch.function_hook import get_hook_storage

    for hook in _only_of(model, names, ops):
        get_hook_storage(model).delete_hook(hook)
    uncorrect_biases(model, names)


@contextlib.contextmanager
def bypassed(model: Any, names: Collection[str], ops: Mapping[str, QuantizedOp]) -> Iterator[None]:
    """As `return_to_fp32`, for the time of a `with`; afterwards the model is exactly what it was."""
    hooked = quantizers(model)
    switches = {hook: hooked[hook].enabled.clone() for hook in _only_of(model, names, ops)}
    corrected = uncorrect_biases(model, names)
    for hook in switches:
        hooked[hook].enabled.zero_()
    try:
        yield
    finally:
        for hook, switch in switches.items():
            hooked[hook].enabled.copy_(switch)
        _set_biases(model, corrected)


def uncorrect_biases(model: Any, names: Collection[str]) -> dict[str, Tensor]:
    """Gives these modules the biases that they had before NNCF corrected them for 8 bits.

    Returns:
        Parameter name -> corrected bias, of those that were changed.
    """
    originals: dict[str, Tensor] = getattr(model, "fp32_biases", {})
    mine = {f"{name}.bias": originals[f"{name}.bias"] for name in names if f"{name}.bias" in originals}
    corrected = {name: model.get_parameter(name).detach().clone() for name in mine}
    _set_biases(model, mine)
    return corrected


def _set_biases(model: Any, biases: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, bias in biases.items():
            model.get_parameter(name).copy_(bias)


def _only_of(model: Any, names: Collection[str], ops: Mapping[str, QuantizedOp]) -> list[str]:
    """Hooks of these operations that no other operation needs that still has all of its own."""
    present = set(quantizers(model))
    others = [op.hooks for op in ops.values() if op.name not in names and op.hooks <= present]
    mine: set[str] = set().union(*(ops[name].hooks for name in names))
    return sorted((mine & present).difference(*others))


def _ops(model: Any, sample: dict[str, Tensor]) -> dict[str, QuantizedOp]:
    """Everything that can be quantized, with the hooks that it has; calls of the same module are one operation."""
    from nncf.torch.function_hook.nncf_graph.nncf_graph_builder import build_nncf_graph

    training = model.training
    with torch.no_grad():
        graph: Any = build_nncf_graph(model.eval(), sample)
    model.train(training)
    found: dict[str, QuantizedOp] = {}
    for node in sorted(graph.get_all_nodes(), key=lambda node: node.node_id):
        if (op := _op(graph, node)) is not None:
            before = found.get(op.name, replace(op, weight_hooks=(), input_hooks=()))
            weights, inputs = before.weight_hooks + op.weight_hooks, before.input_hooks + op.input_hooks
            found[op.name] = replace(op, weight_hooks=_once(weights), input_hooks=_once(inputs))
    return found


def _op(graph: Any, node: Any) -> QuantizedOp | None:
    from nncf.torch.graph import operator_metatypes as om

    kinds: dict[Any, OpType] = {om.PTLinearMetatype: "Linear", om.PTEmbeddingMetatype: "Embedding"}
    if node.metatype in kinds:
        weight, hook = _origin(graph, node, 1)
        if weight is None or weight.node_type != "nncf_model_const":
            return None
        inputs = _hooks(_origin(graph, node, 0)[1]) if node.metatype is om.PTLinearMetatype else ()
        return QuantizedOp(weight.node_name.rpartition(".")[0], kinds[node.metatype], _hooks(hook), inputs)
    if node.metatype in (om.PTMatMulMetatype, om.PTScaledDotProductAttentionMetatype):
        (queries, first), (keys, second) = _origin(graph, node, 0), _origin(graph, node, 1)
        names = [_op(graph, n) for n in (queries, keys) if n is not None and n.metatype is om.PTLinearMetatype]
        if len(names) == 2 and queries is not keys:
            return QuantizedOp(_common(*(op.name for op in names if op)), "MatMul", (), _hooks(first, second))
    return None


def _origin(graph: Any, node: Any, port: int) -> tuple[Any | None, str]:
    """What computes an input, looking through operations that only move values; and the quantizer on the way or ''."""
    found = ""
    source = _source(graph, node, port)
    while source is not None:
        hook = _quantizer(graph, source)
        if not hook and source.metatype not in _moves_values():
            break
        found = found or hook
        source = _source(graph, source, 0)
    return source, found


def _source(graph: Any, node: Any, port: int) -> Any | None:
    return next((e.from_node for e in graph.get_input_edges(node) if e.input_port_id == port), None)


def _quantizer(graph: Any, node: Any) -> str:
    """Name of the hook that this node is part of, if it is a quantizer."""
    for edge in graph.get_input_edges(node):
        name: str = edge.from_node.node_name
        if name.startswith(_HOOKS) and name.endswith(_RANGES):
            return name.removeprefix(_HOOKS).rpartition(".")[0]
    return ""


def _moves_values() -> list[Any]:
    """The operations through which NNCF itself moves quantizers."""
    from nncf.common.quantization.quantizer_propagation.structs import QuantizationTrait
    from nncf.torch.quantization.default_quantization import DEFAULT_PT_QUANT_TRAIT_TO_OP_DICT

    return list(DEFAULT_PT_QUANT_TRAIT_TO_OP_DICT[QuantizationTrait.QUANTIZATION_AGNOSTIC])


def _common(first: str, second: str) -> str:
    """The module that holds both."""
    pairs = zip(first.split("."), second.split("."), strict=False)
    return ".".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _hooks(*names: str) -> tuple[str, ...]:
    return tuple(name for name in names if name)


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))

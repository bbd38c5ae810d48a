"""Mapping from operations to their NNCF quantizers, and fallback of single operations to FP32.

NNCF hooks quantizers onto function calls and names them after these calls (`…/query/linear/1` is the second call, so
layer 1). Its model graph supplies the rest: a MatMul's weight parameter and the quantizer that feeds its input.
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
_RANGES = ("._scale_param_storage", ".input_low")  # every quantizer has one of these parameters, other hooks have none


@dataclass(frozen=True)
class QuantizedOp:
    """An operation and the names of its quantizers.

    Attributes:
        name: Module name; for the attention MatMul (queries x keys), the attention module's name.
        kind: Operation type.
        weight_hooks: Names of the weight quantizers, one per call of the module; empty for `MatMul`.
        input_hooks: Names of the input quantizers; empty for `Embedding` and for weight-only quantization.
    """

    name: str
    kind: OpType
    weight_hooks: tuple[str, ...] = ()
    input_hooks: tuple[str, ...] = ()

    @property
    def hooks(self) -> frozenset[str]:
        """Names of all quantizers of the operation."""
        return frozenset(self.weight_hooks + self.input_hooks)


def quantizable_ops(model: nn.Module, sample: dict[str, Tensor]) -> dict[str, OpType]:
    """Returns the type of every operation that can be quantized, by name, in forward order.

    Args:
        model: FP32 or quantized model; left unchanged.
        sample: Model inputs for tracing.
    """
    return {op.name: op.kind for op in _ops(model, sample).values()}


def possible_ops(model: nn.Module) -> dict[str, OpType]:
    """Returns the type of every module that may be an operation to quantize, by name, without tracing the model.

    The attention's `MatMul` is named after the module that has the linear layers of queries and keys, or one layer of
    queries, keys and values together.
    """
    found: dict[str, OpType] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            found[name] = "Linear" if isinstance(module, nn.Linear) else "Embedding"
        shapes = [tuple(child.weight.shape) for child in module.children() if isinstance(child, nn.Linear)]
        # The attention's output layer is beside one of three; a feed-forward may also be three times as wide.
        of_three = any(rows == 3 * columns and (columns, columns) in shapes for rows, columns in shapes)
        if len(shapes) > len(set(shapes)) or of_three:
            found[name] = "MatMul"
    return found


def quantized_ops(model: Any, sample: dict[str, Tensor]) -> dict[str, QuantizedOp]:
    """Returns every operation that is quantized, by name, in forward order.

    Args:
        model: Model from `quantize`, `post_training`, `dynamic` or `load`; left unchanged.
        sample: Model inputs for tracing.
    """

    def is_quantized(op: QuantizedOp) -> bool:
        return len(op.input_hooks) >= 2 if op.kind == "MatMul" else bool(op.weight_hooks)

    return {name: op for name, op in _ops(model, sample).items() if is_quantized(op)}


def quantizers(model: Any) -> dict[str, Any]:
    """Returns every module that is hooked onto the model, by hook name."""
    from nncf.torch.function_hook import get_hook_storage

    return dict(get_hook_storage(model).named_hooks(remove_duplicate=False))


def return_to_fp32(model: Any, names: Collection[str], ops: Mapping[str, QuantizedOp]) -> None:
    """Permanently removes the quantizers and the bias correction of these operations.

    A quantizer that other quantized operations share is kept.

    Args:
        model: Quantized model; changed in place.
        names: Operations to keep in FP32; keys of `ops`.
        ops: Result of `quantized_ops`, computed before or after earlier fallbacks.
    """
    from nncf.torch.function_hook import get_hook_storage

    for hook in _exclusive_hooks(model, names, ops):
        get_hook_storage(model).delete_hook(hook)
    uncorrect_biases(model, names)


@contextlib.contextmanager
def bypassed(model: Any, names: Collection[str], ops: Mapping[str, QuantizedOp]) -> Iterator[None]:
    """Context manager version of `return_to_fp32`: on exit the model is restored exactly."""
    hooked = quantizers(model)
    switches = {hook: hooked[hook].enabled.clone() for hook in _exclusive_hooks(model, names, ops)}
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
    """Restores the biases that these modules had before NNCF's bias correction.

    Returns:
        The corrected values of the biases that were restored, by parameter name.
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


def _exclusive_hooks(model: Any, names: Collection[str], ops: Mapping[str, QuantizedOp]) -> list[str]:
    """Returns the hooks of these operations that no other fully quantized operation uses."""
    present = set(quantizers(model))
    others = [op.hooks for op in ops.values() if op.name not in names and op.hooks <= present]
    mine: set[str] = set().union(*(ops[name].hooks for name in names))
    return sorted((mine & present).difference(*others))


def _ops(model: Any, sample: dict[str, Tensor]) -> dict[str, QuantizedOp]:
    """Returns all quantizable operations with their hooks; calls of one module are merged into one operation."""
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
            found[op.name] = replace(op, weight_hooks=_unique(weights), input_hooks=_unique(inputs))
    return found


def _op(graph: Any, node: Any) -> QuantizedOp | None:
    from nncf.torch.graph import operator_metatypes as om

    kinds: dict[Any, OpType] = {om.PTLinearMetatype: "Linear", om.PTEmbeddingMetatype: "Embedding"}
    if node.metatype in kinds:
        weight, hook = _producer(graph, node, 1)
        if weight is None or weight.node_type != "nncf_model_const":
            return None
        inputs = _hooks(_producer(graph, node, 0)[1]) if node.metatype is om.PTLinearMetatype else ()
        return QuantizedOp(weight.node_name.rpartition(".")[0], kinds[node.metatype], _hooks(hook), inputs)
    if node.metatype in (om.PTMatMulMetatype, om.PTScaledDotProductAttentionMetatype):
        (queries, first), (keys, second) = _producer(graph, node, 0), _producer(graph, node, 1)
        if node.metatype is om.PTScaledDotProductAttentionMetatype:  # it can follow other operations (rotary positions)
            queries, keys = (_linear_before(graph, found) for found in (queries, keys))
            if queries is not None and queries is keys and (joint := _op(graph, queries)) is not None:
                return QuantizedOp(joint.name.rpartition(".")[0], "MatMul", (), _hooks(first, second))
        names = [_op(graph, n) for n in (queries, keys) if n is not None and n.metatype is om.PTLinearMetatype]
        if len(names) == 2 and queries is not keys:
            return QuantizedOp(_common_module(*(op.name for op in names if op)), "MatMul", (), _hooks(first, second))
    return None


def _producer(graph: Any, node: Any, port: int) -> tuple[Any | None, str]:
    """Returns the node that computes an input, skipping value-moving operations, and the quantizer passed or ''."""
    found = ""
    source = _source(graph, node, port)
    while source is not None:
        hook = _quantizer(graph, source)
        if not hook and source.metatype not in _moves_values():
            break
        found = found or hook
        source = _source(graph, source, 0)
    return source, found


def _linear_before(graph: Any, node: Any | None) -> Any | None:
    """Returns the linear layer that a value was computed from: this node, or the nearest one before it."""
    from nncf.torch.graph.operator_metatypes import PTLinearMetatype

    row = {node.node_id: node} if node is not None else {}
    while row:
        if found := next((n for n in row.values() if n.metatype is PTLinearMetatype), None):
            return found
        row = {source.node_id: source for n in row.values() for source in graph.get_previous_nodes(n)}
    return None


def _source(graph: Any, node: Any, port: int) -> Any | None:
    return next((e.from_node for e in graph.get_input_edges(node) if e.input_port_id == port), None)


def _quantizer(graph: Any, node: Any) -> str:
    """Returns the name of the quantizer hook that contains this node, or ''."""
    for edge in graph.get_input_edges(node):
        name: str = edge.from_node.node_name
        if name.startswith(_HOOKS) and name.endswith(_RANGES):
            return name.removeprefix(_HOOKS).rpartition(".")[0]
    return ""


def _moves_values() -> list[Any]:
    """Returns the operation types through which NNCF propagates quantizers."""
    from nncf.common.quantization.quantizer_propagation.structs import QuantizationTrait
    from nncf.torch.quantization.default_quantization import DEFAULT_PT_QUANT_TRAIT_TO_OP_DICT

    return list(DEFAULT_PT_QUANT_TRAIT_TO_OP_DICT[QuantizationTrait.QUANTIZATION_AGNOSTIC])


def _common_module(first: str, second: str) -> str:
    """Returns the innermost module that contains both."""
    pairs = zip(first.split("."), second.split("."), strict=False)
    return ".".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _hooks(*names: str) -> tuple[str, ...]:
    return tuple(name for name in names if name)


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))

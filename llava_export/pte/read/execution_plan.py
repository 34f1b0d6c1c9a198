"""What one method does: its execution plan in the program's flatbuffer, as ``flatc`` turns it into JSON.

A plan has a list of values, and instructions that name them by index. Instructions call kernels, which are operators
outside of delegates, or delegates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from llava_export.pte.read.types import TensorType

# ExecuTorch's name of a type -> torch's, and bytes of an element.
SCALAR_TYPES = {
    "BYTE": ("uint8", 1), "CHAR": ("int8", 1), "SHORT": ("int16", 2), "INT": ("int32", 4), "LONG": ("int64", 8),
    "HALF": ("float16", 2), "FLOAT": ("float32", 4), "DOUBLE": ("float64", 8), "BOOL": ("bool", 1),
    "QINT8": ("qint8", 1), "QUINT8": ("quint8", 1), "QINT32": ("qint32", 4), "BFLOAT16": ("bfloat16", 2),
    "QUINT4X2": ("quint4x2", 1), "QUINT2X4": ("quint2x4", 1), "BITS16": ("bits16", 2),
    "FLOAT8E5M2": ("float8_e5m2", 1), "FLOAT8E4M3FN": ("float8_e4m3fn", 1),
    "FLOAT8E5M2FNUZ": ("float8_e5m2fnuz", 1), "FLOAT8E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "UINT16": ("uint16", 2), "UINT32": ("uint32", 4), "UINT64": ("uint64", 8),
}  # fmt: skip
DYNAMISM = {"STATIC": "static", "DYNAMIC_BOUND": "bounded", "DYNAMIC_UNBOUND": "unbounded"}
KV_CACHE_UPDATES = ("llama::update_cache", "llama::update_cache_with_indices")
# Operators that write to one of their arguments in place, and its index. All others write their results to memory that
# later instructions reuse.
WRITTEN = {**dict.fromkeys(KV_CACHE_UPDATES, 1), "aten::copy_": 0}


def is_constant(plan: dict[str, Any]) -> bool:
    """Return whether a method has no inputs and no instructions: it only returns a value."""
    return not plan.get("inputs") and not any(chain.get("instructions") for chain in plan.get("chains", ()))


def constant_value(plan: dict[str, Any]) -> Any:
    """Return the value that a constant method returns, or a list of them."""
    values: list[Any] = []
    for value in (plan["values"][index] for index in plan.get("outputs", ())):
        if value["val_type"] == "Tensor":
            values.append(tensor_type(value["val"]))
        else:
            values.append(next(iter(value.get("val", {}).values()), None))  # the only field; Null has none
    form = json.loads((plan.get("container_meta_type") or {}).get("encoded_out_str") or "[1, {}]")
    is_list = form[1].get("type") in ("builtins.list", "builtins.tuple") or len(values) != 1
    return values if is_list else values[0]


def inputs(plan: dict[str, Any]) -> tuple[TensorType | str, ...]:
    """Return the types of a method's inputs; of one that is not a tensor, the name of its kind."""
    return tuple(_type(plan["values"][index]) for index in plan.get("inputs", ()))


def outputs(plan: dict[str, Any]) -> tuple[TensorType | str, ...]:
    """Return the types of a method's outputs, like ``inputs``."""
    return tuple(_type(plan["values"][index]) for index in plan.get("outputs", ()))


def delegates(plan: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """Return the delegates of a method."""
    return plan.get("delegates", ())


def payload_of(delegate: dict[str, Any]) -> tuple[str, int]:
    """Return where a delegate's payload is: ``SEGMENT`` or ``INLINE`` (in the flatbuffer), and the index there."""
    return delegate["processed"]["location"], delegate["processed"]["index"]


def kernels(plan: dict[str, Any]) -> Iterator[tuple[tuple[str, str], Sequence[int]]]:
    """Yield the operators outside of delegates in the order they run: (name, overload), and the argument values."""
    for call in _instructions(plan, "KernelCall"):
        operator = plan["operators"][call["op_index"]]
        yield (operator["name"], operator.get("overload", "")), call.get("args", ())


def calls(plan: dict[str, Any]) -> Iterator[tuple[str, Sequence[int]]]:
    """Yield who reads which values: operators, backends of delegates, and the caller of the method."""
    for (name, _), values in kernels(plan):
        yield name, values
    for call in _instructions(plan, "DelegateCall"):
        yield plan["delegates"][call["delegate_index"]]["id"], call.get("args", ())
    yield "the caller", plan.get("outputs", ())


def tensors(plan: dict[str, Any], values: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Yield the tensors among some values, and those in lists among them."""
    for index in values:
        value = plan["values"][index]
        items = value["val"].get("items", ()) if value["val_type"] in ("TensorList", "OptionalTensorList") else [index]
        for item in items:
            if item >= 0 and plan["values"][item]["val_type"] == "Tensor":
                yield plan["values"][item]["val"]


def is_stored(tensor: dict[str, Any]) -> bool:
    """Return whether the file holds a tensor's value: it is a constant, or state with a value to begin with."""
    is_elsewhere = (tensor.get("extra_tensor_info") or {}).get("location") == "EXTERNAL"
    return tensor["data_buffer_idx"] > 0 and not is_elsewhere


def state(plan: dict[str, Any]) -> list[TensorType]:
    """Return the planned values that are buffers of the model.

    Each is written in place, or has a value to begin with, or has a name.
    """
    values = _written(plan, by=WRITTEN)
    for index, value in enumerate(plan["values"]):
        tensor = value["val"] if value["val_type"] == "Tensor" else {}
        name = (tensor.get("extra_tensor_info") or {}).get("fully_qualified_name")
        if tensor.get("allocation_info") and (tensor["data_buffer_idx"] or name):
            values.add(index)
    return [tensor_type(tensor) for tensor in tensors(plan, sorted(values))]


def kv_cache(plan: dict[str, Any]) -> list[TensorType]:
    """Return the values that llama's operators write in place."""
    return [tensor_type(tensor) for tensor in tensors(plan, sorted(_written(plan, by=KV_CACHE_UPDATES)))]


def tensor_type(tensor: dict[str, Any]) -> TensorType:
    """Return the type of a tensor."""
    dtype, element = SCALAR_TYPES[tensor["scalar_type"]]
    sizes = tuple(tensor.get("sizes", ()))
    return TensorType(dtype, sizes, DYNAMISM[tensor["shape_dynamism"]], math.prod(sizes) * element)


def _instructions(plan: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    for chain in plan.get("chains", ()):
        for instruction in chain.get("instructions", ()):
            if instruction["instr_args_type"] == kind:
                yield instruction["instr_args"]


def _written(plan: dict[str, Any], *, by: Iterable[str]) -> set[int]:
    """Return the values that some operators write to in place, without those that the caller passed."""
    values = {args[WRITTEN[name]] for (name, _), args in kernels(plan) if name in by}
    return values - set(plan.get("inputs", ()))


def _type(value: dict[str, Any]) -> TensorType | str:
    kind = value["val_type"]  # a number where the schema has no name for it
    return tensor_type(value["val"]) if kind == "Tensor" else str(kind)

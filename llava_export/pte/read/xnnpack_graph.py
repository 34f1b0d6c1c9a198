"""What an XNNPACK delegate computes, read from its payload: operators, and the keys of the weights they read.

The weights are not in the payload. They are the program's named data, under digests of their bytes (see
``stamp.packing``).
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from llava_export.pte.read.bounds import check_dimensions
from llava_export.pte.read.flatbuffers import decoded
from llava_export.pte.read.types import Label

XNNPACK = "XnnpackBackend"
SCHEMA = "backends/xnnpack/serialization/schema.fbs"
# The head of a payload: a magic, the length of the head (skipped), offset and size of the flatbuffer.
HEAD = struct.Struct("<4x4s2xII")
MAGIC = b"XH00"
TRANSPOSED_WEIGHT = 1  # a flag of fully connected operators: (in, out)

STORED_AS = {
    "xnn_datatype_fp32": "float32",
    "xnn_datatype_fp16": "float16",
    "xnn_datatype_bf16": "bfloat16",
    "xnn_datatype_qint8": "int8 per tensor",
    "xnn_datatype_qcint8": "int8 per channel",
    "xnn_datatype_qcint4": "int4 per channel",
}
CONVOLUTIONS = {
    "XNNConv2d": "convolution",
    "XNNDepthwiseConv2d": "depthwise convolution",
    "XNNConvTranspose2d": "transposed convolution",
}


class Graph:
    """The graph of an XNNPACK delegate."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._nodes = [(node["xnode_union_type"], node["xnode_union"]) for node in fields["xnodes"]]
        values = [value["xvalue_union"] for value in fields["xvalues"]]
        self._values = {value.get("tensor_value", value)["id_out"]: value for value in values}
        for value in self._values.values():
            check_dimensions(value.get("tensor_value", value).get("dims", ()))
        self._data = fields.get("constant_data", ())

    def operators(self) -> Counter[str]:
        """Return how often each operator occurs."""
        return Counter(kind.removeprefix("XNN") for kind, _ in self._nodes)

    def weights(self) -> Iterator[tuple[list[str], Label]]:
        """Yield the keys of each weight in the named data, and its label.

        The first key is that of its values. Those of its scales and of its bias may follow.
        """
        for kind, node in self._nodes:
            keys = {name: self._keys(value) for name, value in node.items() if name.endswith("_id")}
            if keys.get("filter_id"):
                yield keys.pop("filter_id") + keys.pop("bias_id", []), self._filter_label(kind, node)
            for name in keys:
                if keys[name]:
                    yield keys[name], Label("constants", (), self._stored_as(node[name]), XNNPACK)

    def _filter_label(self, kind: str, node: dict[str, Any]) -> Label:
        stored_as = self._stored_as(node["filter_id"])
        if kind in CONVOLUTIONS:
            groups = node["groups"]
            channels = (node["group_input_channels"] * groups, node["group_output_channels"] * groups)
            return Label(
                CONVOLUTIONS[kind], (*channels, node["kernel_height"], node["kernel_width"], groups), stored_as
            )
        rows, *columns = self._tensor(node["filter_id"])["dims"]
        shape = (rows, math.prod(columns))
        return Label("linear", shape if node["flags"] & TRANSPOSED_WEIGHT else shape[::-1], stored_as)

    def _tensor(self, value: int) -> dict[str, Any]:
        fields = self._values[value]
        return fields.get("tensor_value", fields)

    def _keys(self, value: int) -> list[str]:
        """Return the keys of a constant's bytes and of its scales, as far as they are named data.

        Return an empty list if ``value`` is no constant, or stands for no value at all.
        """
        if value not in self._values or not self._tensor(value)["constant_buffer_idx"]:
            return []
        scales = self._values[value].get("quant_params", {}).get("scale_buffer_idx", 0)
        indices = (self._tensor(value)["constant_buffer_idx"], scales)
        keys = [self._data[index].get("named_key", "") for index in indices if 0 < index < len(self._data)]
        return [key for key in keys if key]

    def _stored_as(self, value: int) -> str:
        datatype = self._tensor(value)["datatype"]
        if datatype == "xnn_datatype_qbint4":
            return f"int4, groups of {self._values[value]['quant_params']['group_size']}"
        return STORED_AS.get(datatype, datatype.removeprefix("xnn_datatype_"))


def flatbuffer_in(head: bytes, *, size: int) -> tuple[int, int] | None:
    """Return offset and size of the flatbuffer in a payload of ``size`` bytes, given its first bytes.

    Return None if the payload has another form.
    """
    magic, offset, length = HEAD.unpack(head.ljust(HEAD.size))
    return (offset, length) if magic == MAGIC and offset + length <= size else None


def graphs(flatbuffers: Collection[bytes]) -> list[Graph]:
    """Return the graphs in some flatbuffers, in order. Raises ``ValueError`` if one of them is none."""
    return [Graph(fields) for fields in decoded(SCHEMA, flatbuffers)]

"""What a ``.pte`` holds, read from the file alone: nothing in it is loaded or run.

Such a file is a flatbuffer that describes the methods, and behind it segments: the methods' constants, the payloads of
their delegates, and the named data where payloads have their weights. The flatbuffer and the payloads are read, and no
weight, so the size of a program hardly matters.
"""

from __future__ import annotations

import json
import math
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from llava_export.pte.read.flatbuffers import decoded
from llava_export.pte.read.xnnpack_graph import HEAD, XNNPACK, Graph, Label, flatbuffer_in, graphs
from llava_runner.errors import PackageError
from llava_runner.program_file import EXTENDED_HEADER_MAGIC, PTE_HEAD, PTE_IDENTIFIER_PREFIX, check_file

PROGRAM_SCHEMA = "exir/_serialize/program.fbs"

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
EMBEDDINGS = {  # bits of a value; of the first they are the table's
    "aten::embedding": None,
    "quantized_decomposed::embedding_byte": 8,
    "quantized_decomposed::embedding_4bit": 4,
    "quantized_decomposed::embedding_2bit": 2,
}
# Operators that write to one of their arguments, and which; all others write where the next call may write again.
WRITTEN = {"llama::update_cache": 1, "llama::update_cache_with_indices": 1, "aten::copy_": 0}
KV_CACHE_UPDATES = ("llama::update_cache", "llama::update_cache_with_indices")

# What bytes are that are no weight's.
FLATBUFFER = "program (flatbuffer)"
PAYLOADS = "delegate payloads"
UNREAD = "named data of other delegates"
UNKNOWN = "other segments"
ALIGNMENT = "alignment"


@dataclass(frozen=True)
class TensorType:
    """``dynamism`` is ``static``; or ``bounded``: no size is larger than here, and the file does not say which are
    fixed; or ``unbounded``: the sizes here mean nothing."""

    dtype: str
    sizes: tuple[int, ...]
    dynamism: str
    bytes: int


@dataclass(frozen=True)
class Method:
    """What can be executed. An input or output that is no tensor is named by its kind: ``Int``, ``Bool``, ``String``...

    ``delegates`` counts them by backend, ``outside`` the operators outside of delegates and ``xnnpack`` those in the
    graphs of XNNPACK's. ``planned_bytes`` is the memory for values that are not weights; ``state``, what of it surely
    keeps its value until the next call, and ``kv_cache`` what of that llama's operators write.
    """

    name: str
    inputs: tuple[TensorType | str, ...]
    outputs: tuple[TensorType | str, ...]
    delegates: Counter[str]
    outside: Counter[str]
    xnnpack: Counter[str]
    planned_bytes: int
    state: tuple[TensorType, ...]
    kv_cache: tuple[TensorType, ...]


@dataclass(frozen=True)
class Part:
    """Bytes of the file, alike. All parts together are the file.

    ``methods`` read it, in alphabetical order; none do where it is no weight. ``times`` counts different weights, each
    with its scales and bias: what several layers or methods share is in the file once. ``shape`` is (in, out) of a
    linear; (in, out, height, width, groups) of a convolution; (rows, columns) of an embedding. ``reader`` is the
    operator or backend that reads constants of another kind.
    """

    methods: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    stored_as: str
    reader: str
    times: int
    bytes: int


@dataclass(frozen=True)
class PteFile:
    """``constants`` are the methods that only return a value, such as metadata; a tensor is a ``TensorType``."""

    bytes: int
    identifier: str
    version: int
    methods: tuple[Method, ...]
    constants: dict[str, Any]
    parts: tuple[Part, ...]


def read_pte(path: Path) -> PteFile:
    """Raises ``PackageError`` when it is no ExecuTorch program, or a truncated or damaged one."""
    program_size, segment_base = _layout(path)
    try:
        with path.open("rb") as file:
            return _Reading(file, program_size=program_size, segment_base=segment_base).result()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # What becomes of a flatbuffer whose bytes mean something else.
        reason = str(error) if type(error) is ValueError else repr(error)
        raise PackageError(f"{path} is damaged, or of another version of ExecuTorch: {reason}") from error


def _layout(path: Path) -> tuple[int, int]:
    """Size of the flatbuffer, and where segments begin."""
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(PTE_HEAD.size)
    if len(head) == PTE_HEAD.size:
        identifier, magic, _, program_size, segment_base, _ = PTE_HEAD.unpack(head)
        if identifier.startswith(PTE_IDENTIFIER_PREFIX) and magic != EXTENDED_HEADER_MAGIC:
            size = path.stat().st_size  # a program without weights and delegates is nothing but the flatbuffer
            return size, size
    check_file(path)
    return program_size, segment_base


class _Span(NamedTuple):
    """Bytes of the file."""

    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass
class _Weight:
    """Where its values are, and who reads it."""

    place: _Span
    label: Label
    methods: set[str] = field(default_factory=set)


class _Reading:
    """A file while it is read."""

    def __init__(self, file: BinaryIO, *, program_size: int, segment_base: int) -> None:
        self._file = file
        self._size = file.seek(0, 2)
        self._flatbuffer = self._bytes(_Span(0, program_size))
        (self._program,) = decoded(PROGRAM_SCHEMA, [self._flatbuffer])
        self._plans = self._program["execution_plan"]
        self._segments = [_Span(segment_base + it["offset"], it["size"]) for it in self._program.get("segments", ())]
        self._named = {it["key"]: self._segments[it["segment_index"]] for it in self._program.get("named_data", ())}
        self._payloads = self._find_payloads()
        self._graphs = self._read_graphs()
        self._constant_sizes: Counter[int] = Counter()
        for plan in self._plans:
            for tensor in filter(_is_stored, _tensors(plan, range(len(plan["values"])))):
                index, size = tensor["data_buffer_idx"], _tensor_type(tensor).bytes
                self._constant_sizes[index] = max(self._constant_sizes[index], size)

    def result(self) -> PteFile:
        return PteFile(
            bytes=self._size,
            identifier=self._flatbuffer[4:8].decode("ascii"),
            version=self._program["version"],
            methods=tuple(self._method(plan) for plan in self._plans if not _is_constant(plan)),
            constants={plan["name"]: _constant(plan) for plan in self._plans if _is_constant(plan)},
            parts=tuple(self._parts()),
        )

    def _bytes(self, span: _Span) -> bytes:
        if span.end > self._size:
            raise ValueError("something ends behind the file")
        self._file.seek(span.start)
        return self._file.read(span.size)

    def _find_payloads(self) -> dict[tuple[str, int], _Span]:
        """By how delegates refer to them: segments, or parts of the flatbuffer."""
        found: dict[tuple[str, int], _Span] = {}
        for location, index in {_place(delegate): None for plan in self._plans for delegate in _delegates(plan)}:
            if location == "SEGMENT":
                found[location, index] = self._segments[index]
            else:
                data = bytes(self._program["backend_delegate_data"][index].get("data", ()))
                found[location, index] = _Span(self._flatbuffer.index(data), len(data))
        return found

    def _read_graphs(self) -> dict[tuple[str, int], Graph]:
        payloads = {}
        for place in {_place(it): None for plan in self._plans for it in _delegates(plan) if it["id"] == XNNPACK}:
            span = self._payloads[place]
            where = flatbuffer_in(self._bytes(span._replace(size=min(span.size, HEAD.size))), size=span.size)
            if where:
                offset, size = where
                payloads[place] = self._bytes(_Span(span.start + offset, size))
        return dict(zip(payloads, graphs(payloads.values()), strict=True))

    def _method(self, plan: dict[str, Any]) -> Method:
        graphs = [self._graphs[_place(it)] for it in _delegates(plan) if _place(it) in self._graphs]
        cache = _written(plan, by=KV_CACHE_UPDATES)
        return Method(
            name=plan["name"],
            inputs=tuple(_type(plan["values"][index]) for index in plan.get("inputs", ())),
            outputs=tuple(_type(plan["values"][index]) for index in plan.get("outputs", ())),
            delegates=Counter(delegate["id"] for delegate in _delegates(plan)),
            outside=Counter(".".join(filter(None, names)) for names, _ in _kernels(plan)),
            xnnpack=sum((graph.operators() for graph in graphs), Counter()),
            planned_bytes=sum(plan.get("non_const_buffer_sizes", ())[1:]),  # the first stands for constants
            state=tuple(map(_tensor_type, _tensors(plan, sorted(_state(plan))))),
            kv_cache=tuple(map(_tensor_type, _tensors(plan, sorted(cache)))),
        )

    def _parts(self) -> Iterator[Part]:
        """Every byte is in the flatbuffer, in a segment or between two; in there it may be a weight's."""
        sizes: Counter[tuple[tuple[str, ...], Label]] = Counter()
        times: Counter[tuple[tuple[str, ...], Label]] = Counter()
        inside: Counter[_Span] = Counter()  # bytes of weights
        kinds = self._containers()
        containers = sorted(kinds)
        for span, weight in self._weights().items():
            container = containers[bisect(containers, span.start, key=lambda it: it.start) - 1]
            if span.end > container.end:
                raise ValueError("a weight ends behind its segment")
            inside[container] += span.size
            row = tuple(sorted(weight.methods)), weight.label
            sizes[row] += span.size
            times[row] += span == weight.place
        end = 0
        for container in [*containers, _Span(self._size, 0)]:
            row = (), Label(kinds.get(container, ALIGNMENT))
            if container.start < end or container.size < inside[container]:
                raise ValueError("two segments, or two weights, overlap")
            sizes[row] += container.size - inside[container]
            times[row] += row[1].kind == PAYLOADS
            sizes[(), Label(ALIGNMENT)] += container.start - end
            end = container.end
        for (methods, label), size in sizes.items():
            if size:
                yield Part(methods, *label, times=times[methods, label], bytes=size)

    def _containers(self) -> dict[_Span, str]:
        """The flatbuffer and the segments, and what those bytes in them are that are no weight's."""
        tables = [self._program.get("constant_segment"), *self._program.get("mutable_data_segments", ())]
        kinds = dict.fromkeys(self._segments, UNKNOWN)
        kinds |= dict.fromkeys(self._named.values(), UNREAD)
        kinds |= {span: PAYLOADS for (location, _), span in self._payloads.items() if location == "SEGMENT"}
        kinds |= {self._segments[it["segment_index"]]: ALIGNMENT for it in tables if it and it.get("offsets")}
        return {_Span(0, len(self._flatbuffer)): FLATBUFFER, **{span: kinds[span] for span in kinds if span.size}}

    def _weights(self) -> dict[_Span, _Weight]:
        """Where the file's weights are; one with scales and bias is in several places. Payloads in the flatbuffer are
        listed as if they were weights, too."""
        found = {
            span: _Weight(span, Label(PAYLOADS))
            for (location, _), span in self._payloads.items()
            if location == "INLINE" and span.size
        }
        for plan in self._plans:
            for spans, label in [*self._constants(plan), *self._delegated(plan)]:
                weight = found.setdefault(spans[0], _Weight(spans[0], label))
                weight.methods.add(plan["name"])
                for span in spans[1:]:
                    found.setdefault(span, weight)
        return found

    def _constants(self, plan: dict[str, Any]) -> Iterator[tuple[list[_Span], Label]]:
        """What the method itself holds: of an embedding the table and its scales, of all others one tensor each."""
        for reader, values in _calls(plan):
            tensors = [it for it in _tensors(plan, values) if _is_stored(it) and _tensor_type(it).bytes]
            if tensors and reader in EMBEDDINGS:
                yield [self._span(tensor) for tensor in tensors], _embedding_label(reader, tensors)
                continue
            for tensor in tensors:
                kind = "initial state" if tensor.get("allocation_info") else "constants"
                yield [self._span(tensor)], Label(kind, (), _tensor_type(tensor).dtype, reader)

    def _delegated(self, plan: dict[str, Any]) -> Iterator[tuple[list[_Span], Label]]:
        """What is named data of this file; it may also be in another one."""
        for delegate in _delegates(plan):
            for keys, label in self._graphs[_place(delegate)].weights() if _place(delegate) in self._graphs else ():
                if spans := [self._named[key] for key in keys if key in self._named]:
                    yield spans, label

    def _span(self, tensor: dict[str, Any]) -> _Span:
        """Of a constant, or of the value that state begins with."""
        index = tensor["data_buffer_idx"]
        table, size = self._program["constant_segment"], self._constant_sizes[index]
        if tensor.get("allocation_info"):
            extra = tensor.get("extra_tensor_info") or {}
            table = self._program["mutable_data_segments"][extra.get("mutable_data_segments_idx", 0)]
            size = _tensor_type(tensor).bytes
        return _Span(self._segments[table["segment_index"]].start + table["offsets"][index], size)


def _delegates(plan: dict[str, Any]) -> Sequence[dict[str, Any]]:
    return plan.get("delegates", ())


def _place(delegate: dict[str, Any]) -> tuple[str, int]:
    """Of its payload: ``SEGMENT`` or ``INLINE``, and the index there."""
    return delegate["processed"]["location"], delegate["processed"]["index"]


def _is_constant(plan: dict[str, Any]) -> bool:
    """Whether a method takes nothing and does nothing."""
    return not plan.get("inputs") and not any(chain.get("instructions") for chain in plan.get("chains", ()))


def _constant(plan: dict[str, Any]) -> Any:
    """What it returns."""
    values: list[Any] = []
    for value in (plan["values"][index] for index in plan.get("outputs", ())):
        if value["val_type"] == "Tensor":
            values.append(_tensor_type(value["val"]))
        else:
            values.append(next(iter(value.get("val", {}).values()), None))  # the only field; Null has none
    form = json.loads((plan.get("container_meta_type") or {}).get("encoded_out_str") or "[1, {}]")
    is_list = form[1].get("type") in ("builtins.list", "builtins.tuple") or len(values) != 1
    return values if is_list else values[0]


def _instructions(plan: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    for chain in plan.get("chains", ()):
        for instruction in chain.get("instructions", ()):
            if instruction["instr_args_type"] == kind:
                yield instruction["instr_args"]


def _kernels(plan: dict[str, Any]) -> Iterator[tuple[tuple[str, str], Sequence[int]]]:
    """Operators outside of delegates in the order they run: name, overload, and the arguments."""
    for call in _instructions(plan, "KernelCall"):
        operator = plan["operators"][call["op_index"]]
        yield (operator["name"], operator.get("overload", "")), call.get("args", ())


def _calls(plan: dict[str, Any]) -> Iterator[tuple[str, Sequence[int]]]:
    """Who reads which values: operators, delegates, and whoever calls the method."""
    for (name, _), values in _kernels(plan):
        yield name, values
    for call in _instructions(plan, "DelegateCall"):
        yield plan["delegates"][call["delegate_index"]]["id"], call.get("args", ())
    yield "the caller", plan.get("outputs", ())


def _tensors(plan: dict[str, Any], values: Iterable[int]) -> Iterator[dict[str, Any]]:
    """The tensors among values, and those in lists among them."""
    for index in values:
        value = plan["values"][index]
        items = value["val"].get("items", ()) if value["val_type"] in ("TensorList", "OptionalTensorList") else [index]
        for item in items:
            if item >= 0 and plan["values"][item]["val_type"] == "Tensor":
                yield plan["values"][item]["val"]


def _is_stored(tensor: dict[str, Any]) -> bool:
    """Whether the file holds its value: a constant's, or the one that state begins with."""
    is_elsewhere = (tensor.get("extra_tensor_info") or {}).get("location") == "EXTERNAL"
    return tensor["data_buffer_idx"] > 0 and not is_elsewhere


def _written(plan: dict[str, Any], *, by: Iterable[str]) -> set[int]:
    """Values that operators write to in place, but for those that the caller passed."""
    values = {args[WRITTEN[name]] for (name, _), args in _kernels(plan) if name in by}
    return values - set(plan.get("inputs", ()))


def _state(plan: dict[str, Any]) -> set[int]:
    """Planned values that are buffers of the model: written in place, or with a first value, or with a name."""
    values = _written(plan, by=WRITTEN)
    for index, value in enumerate(plan["values"]):
        tensor = value["val"] if value["val_type"] == "Tensor" else {}
        name = (tensor.get("extra_tensor_info") or {}).get("fully_qualified_name")
        if tensor.get("allocation_info") and (tensor["data_buffer_idx"] or name):
            values.add(index)
    return values


def _type(value: dict[str, Any]) -> TensorType | str:
    return _tensor_type(value["val"]) if value["val_type"] == "Tensor" else value["val_type"]


def _tensor_type(tensor: dict[str, Any]) -> TensorType:
    dtype, element = SCALAR_TYPES[tensor["scalar_type"]]
    sizes = tuple(tensor.get("sizes", ()))
    return TensorType(dtype, sizes, DYNAMISM[tensor["shape_dynamism"]], math.prod(sizes) * element)


def _embedding_label(operator: str, tensors: Sequence[dict[str, Any]]) -> Label:
    """``tensors`` are the table and, of a quantized one, the scales."""
    table, bits = _tensor_type(tensors[0]), EMBEDDINGS[operator]
    if bits is None:
        return Label("embedding", table.sizes, table.dtype)
    rows, columns = table.sizes[0], table.sizes[1] * 8 // bits  # several to a byte
    scales = math.prod(tensors[1]["sizes"]) // rows
    stored_as = f"int{bits}, groups of {columns // scales}" if scales > 1 else f"int{bits} per row"
    return Label("embedding", (rows, columns), stored_as)

"""A method lowered with few layers and random weights, and which parameter each of its bytes came from.

Every parameter of a template has random values, so its packed bytes occur nowhere else: wherever the lowered program
holds them or names their digest, the real parameter's belong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import CONSTANT_TENSOR_ALIGNMENT
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir.delegate import executorch_call_delegate
from executorch.exir.lowered_backend_module import LoweredBackendModule
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.fx import Node

from llava_export.pte.stamp.packing import Blob, pack
from llava_export.pte.stamp.repeat import Repeat, find_repeat

LAYER = re.compile(r"(?<=\blayers\.)\d+")  # in the name of a parameter or buffer


class StampError(Exception):
    """This version of ExecuTorch lowers in another way than stamping relies on."""


def moved(fqn: str, by: int) -> str:
    """The same parameter or buffer, ``by`` layers on; what is in no layer stays where it is."""
    return LAYER.sub(lambda index: str(int(index[0]) + by), fqn, count=1)


def delegate_name(call: Node) -> str:
    """The attribute of the graph's module that a call of a delegate reads."""
    attribute = call.args[0]
    assert isinstance(attribute, Node)
    return str(attribute.target)


@dataclass(frozen=True)
class Slot:
    """Where a delegate's bytes come from: the blob of this index of a packed parameter."""

    fqn: str
    index: int

    def moved(self, by: int) -> Slot:
        return replace(self, fqn=moved(self.fqn, by))


@dataclass(frozen=True)
class Delegate:
    """A delegate without its weights, and whose bytes its keys stand for."""

    module: LoweredBackendModule
    slots: Mapping[str, Slot]

    def stamped(self, blob_of: Callable[[Slot], Blob]) -> LoweredBackendModule:
        """The same with other weights."""
        store = NamedDataStore()
        for blob in map(blob_of, self.slots.values()):
            store.add_named_data(blob.key, blob.data, alignment=CONSTANT_TENSOR_ALIGNMENT)
        return LoweredBackendModule(
            self.module.original_module,
            self.module.backend_id,
            self.payload(blob_of),
            self.module.compile_specs,
            store.get_named_data_store_output(),
        )

    def payload(self, blob_of: Callable[[Slot], Blob]) -> bytes:
        """The bytes that XNNPACK reads, with the keys of other weights: these are as long as the old ones."""
        if not self.slots:
            return self.module.processed_bytes
        keys = {key.encode(): blob_of(slot).key.encode() for key, slot in self.slots.items()}
        return re.sub(b"|".join(keys), lambda key: keys[key[0]], self.module.processed_bytes)


@dataclass(frozen=True)
class Template:
    """``constants`` are the parameters that the program itself holds; ``delegates`` have the others.

    ``repeat`` is what occurs once for every layer between the first and the last; None if layers cannot be told apart.
    """

    program: ExportedProgram
    inputs: Mapping[Node, InputSpec]
    constants: Mapping[Node, str]
    delegates: Mapping[Node, Delegate]
    repeat: Repeat | None

    def value_of(self, target: str) -> Tensor:
        """A buffer's, as the program was exported with it."""
        return {**self.program.constants, **self.program.state_dict}[target]


def read_template(program: ExportedProgram, *, parameters: Mapping[str, Tensor]) -> Template:
    """``parameters`` are those the program was exported with, under their names in the method's module.

    The template keeps none of their values. Raises ``StampError`` if one cannot be traced, or bytes come from none.
    """
    return _Reading(program, parameters).template()


class _Reading:
    """A lowered program while its parameters' values are still known."""

    def __init__(self, program: ExportedProgram, parameters: Mapping[str, Tensor]) -> None:
        self._program = program
        self._blobs = {fqn: pack(parameter) for fqn, parameter in parameters.items()}
        self._slot_of = {blob.key: Slot(fqn, i) for fqn, blobs in self._blobs.items() for i, blob in enumerate(blobs)}
        placeholders = program.graph.find_nodes(op="placeholder")
        self._inputs = dict(zip(placeholders, program.graph_signature.input_specs, strict=True))
        self._constants = {
            node: str(spec.target) for node, spec in self._inputs.items() if spec.kind is InputKind.PARAMETER
        }
        self._delegates = {
            node: self._delegate(getattr(program.graph_module, delegate_name(node)))
            for node in program.graph.find_nodes(op="call_function", target=executorch_call_delegate)
        }

    def template(self) -> Template:
        self._check_complete()
        repeat = find_repeat(self._program.graph, cuts=self._cuts(), alike=self._is_one_layer_on)
        delegates = {node: _without_weights(delegate) for node, delegate in self._delegates.items()}
        return Template(self._program, self._inputs, self._constants, delegates, repeat)

    def _delegate(self, module: LoweredBackendModule) -> Delegate:
        stored = module.named_data_store_output
        slots = {}
        for key, entry in stored.pte_data.items() if stored else ():
            slot = self._slot_of.get(key)
            if slot is None or self._blob(slot).data != stored.buffers[entry.buffer_index]:
                raise StampError(f"a delegate's data {key[:16]}... is of no parameter in the form expected")
            if key.encode() not in module.processed_bytes or entry.alignment != CONSTANT_TENSOR_ALIGNMENT:
                raise StampError(f"a delegate reads {slot.fqn} in another way than by its digest")
            slots[key] = slot
        return Delegate(module, slots)

    def _check_complete(self) -> None:
        """Every parameter is either a constant of the program, or wholly in its delegates."""
        constants = set(self._constants.values())
        delegated = {slot for delegate in self._delegates.values() for slot in delegate.slots.values()}
        needed = {slot for slot in self._slot_of.values() if slot.fqn not in constants}
        if lost := sorted(slot.fqn for slot in needed - delegated):
            raise StampError(f"{lost[0]} is not in the lowered program in the form expected ({len(lost)} such parts)")
        if unknown := sorted(constants - self._blobs.keys()):
            raise StampError(f"{unknown[0]} is a constant of the lowered program, but no parameter of the model")

    def _cuts(self) -> list[tuple[Node, Node]]:
        """Nodes that read a parameter of layer 1, each with the one that reads the same parameter of layer 2."""
        readers: dict[str, list[Node]] = {}
        for node, fqn in self._constants.items():
            readers.setdefault(fqn, []).extend(node.users)
        for node, delegate in self._delegates.items():
            for fqn in {slot.fqn: None for slot in delegate.slots.values()}:
                readers.setdefault(fqn, []).append(node)
        return [
            (first, second)
            for fqn, (first, *others) in readers.items()
            if _layer(fqn) == 1 and not others
            for second in readers.get(moved(fqn, 1), ())
        ]

    def _is_one_layer_on(self, earlier: Node, later: Node) -> bool:
        if earlier.op == "placeholder":
            return self._is_input_one_layer_on(self._inputs[earlier], self._inputs[later])
        if earlier not in self._delegates:
            return True
        first, second = self._delegates[earlier], self._delegates[later]
        slots = [slot.moved(1) for slot in first.slots.values()]
        return (
            slots == list(second.slots.values())
            and all(slot.fqn in self._blobs for slot in slots)
            # Byte for byte: what stamping will do for the layers that are not in the template.
            and first.payload(lambda slot: self._blob(slot.moved(1))) == second.module.processed_bytes
        )

    def _is_input_one_layer_on(self, earlier: InputSpec, later: InputSpec) -> bool:
        if earlier.target is None or later.target is None or earlier.kind is not later.kind:
            return False
        if moved(earlier.target, 1) == later.target:
            return True
        values = {**self._program.constants, **self._program.state_dict}
        return earlier.kind is InputKind.BUFFER and torch.equal(values[earlier.target], values[later.target])

    def _blob(self, slot: Slot) -> Blob:
        return self._blobs[slot.fqn][slot.index]


def _without_weights(delegate: Delegate) -> Delegate:
    """Nothing reads them any more, but ExecuTorch still traces the original with their shapes."""
    original = delegate.module.original_module
    for name, value in original.state_dict.items():
        shape = torch.empty((), dtype=value.dtype).expand(value.shape)
        original.state_dict[name] = (
            nn.Parameter(shape, requires_grad=False) if isinstance(value, nn.Parameter) else shape
        )
    module = LoweredBackendModule(
        original, delegate.module.backend_id, delegate.module.processed_bytes, delegate.module.compile_specs
    )
    return replace(delegate, module=module)


def _layer(fqn: str) -> int | None:
    match = LAYER.search(fqn)
    return int(match[0]) if match else None

"""Templates: a method lowered with few layers and random weights, and where the real weights belong in it.

Every parameter of a template has random values, so its packed bytes occur nowhere else. Where the lowered program holds
these bytes, or a key made of their digest, the real parameter belongs. So the program itself says which parameter goes
where, and no rule about names or order is needed.
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
    """An error: this version of ExecuTorch lowers in another way than stamping relies on."""


def shifted(fqn: str, by: int) -> str:
    """Return the name of the same parameter or buffer ``by`` layers later: ``layers.1.x`` by 2 is ``layers.3.x``.

    A name that is in no layer is returned as it is.
    """
    return LAYER.sub(lambda index: str(int(index[0]) + by), fqn, count=1)


def delegate_name(call: Node) -> str:
    """Return the attribute of the graph's module that holds the delegate of a call."""
    attribute = call.args[0]
    assert isinstance(attribute, Node)
    return str(attribute.target)


@dataclass(frozen=True)
class Slot:
    """A place in a delegate for one blob: the blob of this index of the packed parameter ``fqn``."""

    fqn: str
    index: int

    def shifted(self, by: int) -> Slot:
        """Return the slot for the same parameter ``by`` layers later."""
        return replace(self, fqn=shifted(self.fqn, by))


@dataclass(frozen=True)
class Delegate:
    """A delegate and its slots: for each key in its payload, the blob that belongs there."""

    module: LoweredBackendModule
    slots: Mapping[str, Slot]

    def stamped(self, blob_of: Callable[[Slot], Blob]) -> LoweredBackendModule:
        """Return a copy of the delegate with new weights. ``blob_of`` returns the blob for a slot."""
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
        """Return the payload with the keys of new weights, as bytes.

        A new key is as long as the one that it replaces, so nothing else in the payload changes.
        """
        if not self.slots:
            return self.module.processed_bytes
        keys = {key.encode(): blob_of(slot).key.encode() for key, slot in self.slots.items()}
        return re.sub(b"|".join(keys), lambda key: keys[key[0]], self.module.processed_bytes)


@dataclass(frozen=True)
class Template:
    """A lowered method, and where parameters belong in it.

    ``inputs`` has what each placeholder of the graph stands for. ``constants`` are the placeholders of parameters that
    the program itself holds, with their names. ``delegates``, by the nodes that call them, have all other parameters.
    ``repeat`` is the part of the graph that occurs once for every layer, or None if there is no such part.
    """

    program: ExportedProgram
    inputs: Mapping[Node, InputSpec]
    constants: Mapping[Node, str]
    delegates: Mapping[Node, Delegate]
    repeat: Repeat | None

    def value_of(self, target: str) -> Tensor:
        """Return the value that a buffer was exported with."""
        return {**self.program.constants, **self.program.state_dict}[target]


def read_template(program: ExportedProgram, *, parameters: Mapping[str, Tensor]) -> Template:
    """Return the template of a lowered method.

    ``parameters`` are those that it was exported with, by their names in the method's module. The template keeps none
    of their values. Raises ``StampError`` if a parameter is not found in the program, or if the program holds bytes
    that belong to no parameter.
    """
    return _Reading(program, parameters).template()


class _Reading:
    """A lowered method whose parameters' values are still known, so that they can be found in it."""

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
        """Return what was found. Raises ``StampError`` if a parameter was not."""
        self._check_complete()
        repeat = find_repeat(self._program.graph, cuts=self._cuts(), corresponds=self._corresponds)
        delegates = {node: _without_weights(delegate) for node, delegate in self._delegates.items()}
        return Template(self._program, self._inputs, self._constants, delegates, repeat)

    def _delegate(self, module: LoweredBackendModule) -> Delegate:
        """Find the slots of a delegate. Raises ``StampError`` if its keys or bytes are not those of ``pack``."""
        stored = module.named_data_store_output
        slots = {}
        for key, entry in stored.pte_data.items() if stored else ():
            slot = self._slot_of.get(key)
            if slot is None or self._blob(slot).data != stored.buffers[entry.buffer_index]:
                raise StampError(f"the data {key[:16]}... of a delegate is not the packed form of any parameter")
            if key.encode() not in module.processed_bytes or entry.alignment != CONSTANT_TENSOR_ALIGNMENT:
                raise StampError(f"a delegate does not look up {slot.fqn} by the digest of its bytes")
            slots[key] = slot
        return Delegate(module, slots)

    def _check_complete(self) -> None:
        """Raise ``StampError`` unless each parameter is a constant of the program, or delegates have all its blobs."""
        constants = set(self._constants.values())
        delegated = {slot for delegate in self._delegates.values() for slot in delegate.slots.values()}
        needed = {slot for slot in self._slot_of.values() if slot.fqn not in constants}
        if lost := sorted(slot.fqn for slot in needed - delegated):
            raise StampError(f"the lowered program lacks the packed form of {lost[0]} ({len(lost)} such blobs)")
        if unknown := sorted(constants - self._blobs.keys()):
            raise StampError(f"{unknown[0]} is a constant of the lowered program and not a parameter of the model")

    def _cuts(self) -> list[tuple[Node, Node]]:
        """Return pairs of cuts to try: a node that reads a parameter of layer 1, and one that reads it in layer 2."""
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
            for second in readers.get(shifted(fqn, 1), ())
        ]

    def _corresponds(self, earlier: Node, later: Node) -> bool:
        """Return whether ``later`` has the weights, or is the input, of the layer after that of ``earlier``."""
        if earlier.op == "placeholder":
            return self._input_corresponds(self._inputs[earlier], self._inputs[later])
        if earlier not in self._delegates:
            return True
        first, second = self._delegates[earlier], self._delegates[later]
        slots = [slot.shifted(1) for slot in first.slots.values()]
        return (
            slots == list(second.slots.values())
            and all(slot.fqn in self._blobs for slot in slots)
            # Replace the keys as stamping will do for layers that are not in the template, and compare the bytes.
            and first.payload(lambda slot: self._blob(slot.shifted(1))) == second.module.processed_bytes
        )

    def _input_corresponds(self, earlier: InputSpec, later: InputSpec) -> bool:
        """Return whether ``later`` is the same parameter or buffer in the next layer, or a buffer of the same value."""
        if earlier.target is None or later.target is None or earlier.kind is not later.kind:
            return False
        if shifted(earlier.target, 1) == later.target:
            return True
        values = {**self._program.constants, **self._program.state_dict}
        return earlier.kind is InputKind.BUFFER and torch.equal(values[earlier.target], values[later.target])

    def _blob(self, slot: Slot) -> Blob:
        return self._blobs[slot.fqn][slot.index]


def _without_weights(delegate: Delegate) -> Delegate:
    """Return a delegate whose weights have their shapes and no values.

    Nothing reads the values any more. But ExecuTorch still traces the original module, with the shapes.
    """
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
    """Return the index of the layer that a parameter or buffer is in, or None if it is in no layer."""
    match = LAYER.search(fqn)
    return int(match[0]) if match else None

"""A method of the model lowered with few layers and random weights, and which parameter each of its bytes came from.

Every parameter of a template has random values, so its packed bytes occur nowhere else: wherever the lowered program
holds them or names their digest, the real parameter's belong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir.delegate import executorch_call_delegate
from executorch.exir.lowered_backend_module import LoweredBackendModule
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec
from torch.fx import Node
from torchao.quantization import IntxUnpackedToInt8Tensor

from llava_export.targets.packing import Blob, pack
from llava_export.targets.repeat import Repeat, find_repeat

LAYER = re.compile(r"(?<=\blayers\.)\d+")  # in the name of a parameter or buffer
INT4_RANGE, INT8_RANGE = (-8, 8), (-127, 128)


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


def randomize(block: nn.Module) -> None:
    """Give the parameters of a block on the meta device, perhaps quantized, values that differ from all others'."""
    for module in block.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(_random_like(parameter), requires_grad=False))


def _random_like(parameter: Tensor) -> Tensor:
    if not isinstance(parameter, IntxUnpackedToInt8Tensor):
        return torch.rand(parameter.shape)
    four_bits = parameter.target_dtype == torch.int4  # type: ignore[attr-defined]  # torch's stubs lack int4
    return IntxUnpackedToInt8Tensor(
        torch.randint(*(INT4_RANGE if four_bits else INT8_RANGE), parameter.qdata.shape, dtype=torch.int8),
        torch.rand(parameter.scale.shape),
        torch.zeros(parameter.zero_point.shape, dtype=parameter.zero_point.dtype),
        parameter.target_dtype,
        parameter.block_size,
        parameter.dtype,
        parameter.activation_quantization,
    )


@dataclass(frozen=True)
class Slot:
    """Where a delegate's bytes come from: the blob of this index of a packed parameter."""

    fqn: str
    index: int

    def moved(self, by: int) -> Slot:
        return replace(self, fqn=moved(self.fqn, by))


@dataclass(frozen=True)
class Delegate:
    """A delegate, and whose bytes its keys stand for."""

    module: LoweredBackendModule
    slots: Mapping[str, Slot]

    def stamped(self, blob_of: Callable[[Slot], Blob]) -> LoweredBackendModule:
        """The same with other weights."""
        store = NamedDataStore()
        for key, slot in self.slots.items():
            blob, entry = blob_of(slot), self.module.named_data_store_output.pte_data[key]
            store.add_named_data(blob.key, blob.data, alignment=entry.alignment)
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


class Template:
    """``parameters`` are those the program was exported with, under their names in the method's module."""

    def __init__(self, program: ExportedProgram, *, parameters: Mapping[str, Tensor]) -> None:
        self.program = program
        placeholders = program.graph.find_nodes(op="placeholder")
        self.spec_of: dict[Node, InputSpec] = dict(zip(placeholders, program.graph_signature.input_specs, strict=True))
        self.constants: dict[Node, str] = {
            node: str(spec.target) for node, spec in self.spec_of.items() if spec.kind is InputKind.PARAMETER
        }
        self._blobs = {fqn: pack(parameter) for fqn, parameter in parameters.items()}
        self._slot_of = {blob.key: Slot(fqn, i) for fqn, blobs in self._blobs.items() for i, blob in enumerate(blobs)}
        self.delegates = {
            node: self._delegate(getattr(program.graph_module, delegate_name(node)))
            for node in program.graph.find_nodes(op="call_function", target=executorch_call_delegate)
        }
        self._check_complete()

    def find_repeat(self) -> Repeat | None:
        """What occurs once for every layer between the first and the last; None if layers cannot be told apart."""
        readers: dict[str, list[Node]] = {}
        for node, fqn in self.constants.items():
            readers.setdefault(fqn, []).extend(node.users)
        for node, delegate in self.delegates.items():
            for fqn in {slot.fqn: None for slot in delegate.slots.values()}:
                readers.setdefault(fqn, []).append(node)
        # Behind what reads a parameter of layer 1, and behind what reads the same one of layer 2.
        cuts = [
            (first, second)
            for fqn, (first, *others) in readers.items()
            if _layer(fqn) == 1 and not others
            for second in readers[moved(fqn, 1)]
        ]
        return find_repeat(self.program.graph, cuts=cuts, alike=self._is_one_layer_on)

    def _delegate(self, module: LoweredBackendModule) -> Delegate:
        """Raises ``StampError`` for data whose origin or key is not as ``packing`` says."""
        stored = module.named_data_store_output
        slots = {}
        for key, entry in stored.pte_data.items() if stored else ():
            slot = self._slot_of.get(key)
            if slot is None or self._blob(slot).data != stored.buffers[entry.buffer_index]:
                raise StampError(f"a delegate has data of unknown origin ({key[:14]}..., {len(stored.buffers)} in all)")
            if key.encode() not in module.processed_bytes:
                raise StampError(f"a delegate does not name the data of {slot.fqn}")
            slots[key] = slot
        return Delegate(module, slots)

    def _check_complete(self) -> None:
        """Every parameter is either a constant of the program, or wholly in its delegates."""
        constants = set(self.constants.values())
        delegated = {slot for delegate in self.delegates.values() for slot in delegate.slots.values()}
        needed = {slot for slot in self._slot_of.values() if slot.fqn not in constants}
        if lost := sorted(slot.fqn for slot in needed - delegated):
            raise StampError(f"{lost[0]} is not in the lowered program in the form expected ({len(lost)} such parts)")
        if unknown := sorted(constants - self._blobs.keys()):
            raise StampError(f"{unknown[0]} is a constant of the lowered program, but no parameter of the model")

    def _blob(self, slot: Slot) -> Blob:
        return self._blobs[slot.fqn][slot.index]

    def _is_one_layer_on(self, earlier: Node, later: Node) -> bool:
        if earlier.op == "placeholder":
            return self._is_input_one_layer_on(self.spec_of[earlier], self.spec_of[later])
        if earlier not in self.delegates:
            return True
        first, second = self.delegates[earlier], self.delegates[later]
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
        values = self.value_of(earlier.target), self.value_of(later.target)
        return earlier.kind is InputKind.BUFFER and torch.equal(*values)

    def value_of(self, target: str) -> Tensor:
        """A parameter's or buffer's, as the program was exported with it."""
        return {**self.program.constants, **self.program.state_dict}[target]


def _layer(fqn: str) -> int | None:
    match = LAYER.search(fqn)
    return int(match[0]) if match else None

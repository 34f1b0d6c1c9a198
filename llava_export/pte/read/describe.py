"""The contents of a program in words: the roles of its decoder's linears, its methods' signatures, and JSON."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from itertools import product
from pathlib import Path
from typing import Any

from llava_export.pte.read.types import Method, Part, PteFile, TensorType
from llava_runner import contract
from llava_runner.contract import ModelCard
from llava_runner.errors import PackageError

LAYER_LINEARS = ("q/k/v", "attention output", "gate/up", "down")  # of each layer of a decoder
OUTPUT_HEAD = "output head"
ROLES = (*LAYER_LINEARS, OUTPUT_HEAD)
# The methods that read a decoder's linear. Both read a head that is stored as the token embedding.
DECODER_METHODS = ((contract.TEXT_DECODER,), (contract.TEXT_DECODER, contract.TOKEN_EMBEDDING))


def card_of(found: PteFile) -> ModelCard | None:
    """Return the model card in a program, or None if it was made by another project or another version of this one."""
    try:
        return ModelCard.from_json(str(found.constants.get(contract.MODEL_CARD)))
    except PackageError:
        return None


def linear_names(found: PteFile, card: ModelCard | None) -> dict[Part, str]:
    """Return the roles of the decoder's linears, as far as their shapes and numbers leave no doubt.

    Every way to give the roles of a Llama decoder to the linears is tried. It must explain all of them. Mostly one way
    is left. If there are more, a linear is named only if all of them give it the same role.
    """
    decoder = next((method for method in found.methods if method.name == contract.TEXT_DECODER), None)
    parts = [part for part in found.parts if part.kind == "linear" and part.methods in DECODER_METHODS]
    if card is None or decoder is None or len(parts) > len(ROLES):
        return {}
    ways = [way for way in product(parts, repeat=len(ROLES)) if _is_decoder(way, parts, decoder, card)]
    named = [
        {part: " and ".join(role for role, it in zip(ROLES, way, strict=True) if it == part) for part in parts}
        for way in ways
    ]
    return {part: _with_embedding(named[0][part], part) for part in parts if len({it[part] for it in named}) == 1}


def _with_embedding(role: str, part: Part) -> str:
    """Return the role of a linear, and that of the token embedding where it is this, too."""
    return f"{role} and token embedding" if contract.TOKEN_EMBEDDING in part.methods else role


def signature(method: Method, card: ModelCard | None) -> str:
    """Return a method's inputs and outputs, with the largest that a size may be.

    If they are those that the contract promises, return the contract's text, which has the smallest sizes, too.
    """
    inputs, outputs = (", ".join(map(type_text, values)) or "nothing" for values in (method.inputs, method.outputs))
    text = f"{inputs} -> {outputs}"
    promised = contract.signatures(card).get(method.name, "") if card else ""
    return promised if re.sub(r"\d+\.\.", "", promised) == text.replace("<=", "") else text


def to_dict(program: Path, found: PteFile, card: ModelCard | None, names: Mapping[Part, str]) -> dict[str, Any]:
    """Return everything that was found in a program, ready for JSON."""
    return {
        "program": str(program),
        "bytes": found.bytes,
        "identifier": found.identifier,
        "version": found.version,
        "card": asdict(card) if card else None,
        "methods": {
            method.name: {
                "signature": signature(method, card),
                "inputs": plain(method.inputs),
                "outputs": plain(method.outputs),
                "delegates": dict(method.delegates),
                "outside": dict(method.outside.most_common()),
                "xnnpack": dict(method.xnnpack.most_common()),
                "planned_bytes": method.planned_bytes,
                "state_bytes": total_bytes(method.state),
                "kv_cache_bytes": total_bytes(method.kv_cache),
            }
            for method in found.methods
        },
        "metadata": {name: plain(value) for name, value in found.constants.items()},
        "parts": [{**asdict(part), "name": names.get(part)} for part in found.parts],
    }


def _is_decoder(way: Sequence[Part], parts: Iterable[Part], decoder: Method, card: ModelCard) -> bool:
    """Return whether the linears in ``way`` can have the roles of ``ROLES``, in order, and no other linear is left.

    Two roles may be one part: their linears have the same shape and are stored in the same way.
    """
    caches, layers = {cache.sizes for cache in decoder.kv_cache}, len(decoder.kv_cache) // 2
    in_layer = Counter(way[:-1])
    times = {part: layers * in_layer[part] + (part == way[-1]) for part in parts}
    if len(caches) != 1 or any(times[part] != part.times for part in parts):
        return False
    kv_width = math.prod(next(iter(caches))[2:])
    qkv, attention, gate_up, down, head = (part.shape for part in way)
    return (
        qkv == (card.hidden_size, attention[0] + 2 * kv_width)
        and gate_up == (card.hidden_size, 2 * down[0])
        and attention[1] == down[1] == card.hidden_size
        and head == (card.hidden_size, card.vocab_size)
    )


def type_text(value: TensorType | str) -> str:
    """Return the type of an input or output as a user reads it, such as ``float32 [1, <=768, <=256]``."""
    if isinstance(value, str):
        return value
    sizes = ["?" if value.dynamism == "unbounded" else str(size) for size in value.sizes]
    if value.dynamism == "bounded":
        sizes = [f"<={size}" if size != "1" else size for size in sizes]
    return f"{value.dtype} [{', '.join(sizes)}]"


def total_bytes(tensors: Iterable[TensorType]) -> int:
    """Return the bytes of some tensors together."""
    return sum(tensor.bytes for tensor in tensors)


def plain(value: Any) -> Any:
    """Return a value of a constant method, or a list of them, as JSON has them."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value

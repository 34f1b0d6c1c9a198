"""Linears that a checkpoint stores as one, as Phi-3 does with queries, keys and values: shown as the parts they have.

A part is some rows of the stored tensor, and only these are read. Everything else knows the parts alone.
"""

from __future__ import annotations

import re

from llava_export.checkpoint.reader import CheckpointReader
from llava_export.config import TextConfig
from llava_export.errors import CheckpointError, first_of
from llava_export.families.family import Family
from llava_export.models.llama import fused_parts
from llava_export.models.names import decoder_layer

FUSED = re.compile(rf"(?P<layer>{decoder_layer('[0-9]+')})\.(?P<linear>\w+\.\w+)\.(?P<what>weight|bias)")


def parts_of(fqn: str, text: TextConfig) -> dict[str, int]:
    """Return the names of the tensors that a fused weight or bias is made of, and their rows in order.

    ``fqn`` is its name in the model. Returns nothing for a tensor that is not fused.
    """
    match = FUSED.fullmatch(fqn)
    if match is None:
        return {}
    parent = f"{match['layer']}.{match['linear'].rpartition('.')[0]}"
    parts = fused_parts(text).get(match["linear"], {})
    return {f"{parent}.{part}.{match['what']}": rows for part, rows in parts.items()}


def divide_fused(reader: CheckpointReader, *, family: Family, text: TextConfig) -> int:
    """Make a reader show fused tensors as their parts. Return how many there were.

    Raises ``CheckpointError`` for shapes that do not fit, and for weights that are stored in both forms.
    """
    fused = {key: parts for key in reader.shapes if (parts := parts_of(family.rename(key) or "", text))}
    wrong = []
    for key, parts in fused.items():
        found, rows = reader.shapes[key], sum(parts.values())
        expected = (rows, text.hidden_size) if key.endswith(".weight") else (rows,)
        if found != expected:
            wrong.append(f"{key} is {list(found)}, config.json says {list(expected)}")
            continue
        renamed = {_part_key(key, part): count for part, count in parts.items()}
        if both := renamed.keys() & reader.shapes.keys():
            raise CheckpointError(
                f"{key} and {min(both)} in {reader.folder} are two forms of one weight; remove the wrong one"
            )
        reader.divide(key, renamed)
    if wrong:
        raise CheckpointError(
            f"{reader.folder} does not fit its config.json: {len(wrong)} wrong shapes ({first_of(wrong)})"
        )
    return len(fused)


def _part_key(key: str, part: str) -> str:
    """Return the key of a part, named ``part`` in the model, of a fused tensor with this key."""
    parent, _, what = key.rsplit(".", 2)
    return f"{parent}.{part.rsplit('.', 2)[1]}.{what}"

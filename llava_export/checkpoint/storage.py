"""Checks how a checkpoint stores its tensors: once each, where the index says, and in a type that can be read."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from llava_export.checkpoint.reader import FLOAT_DTYPES, CheckpointReader
from llava_export.checkpoint.weights import EMBEDDING_WEIGHT, HEAD_WEIGHT
from llava_export.families.family import Family

FLOAT64 = ("F64", torch.float64)
READABLE = "only float16, bfloat16 and float32 weights can be read"
MAX_NAMED = 3  # tensors in a reason, before it counts the rest


def unreadable_types(reader: CheckpointReader, family: Family) -> str | None:
    """Return that weights have types that cannot be read, or None if all that are used can be."""
    found = [
        (key, reader.stored_dtype(key))
        for key, _ in _used(reader, family)
        if reader.stored_dtype(key) not in FLOAT_DTYPES.values()
    ]
    if not found:
        return None
    first = [f"{key} in {reader.folder} is {dtype}" for key, dtype in found[:1]]
    first += [f"{key} is {dtype}" for key, dtype in found[1:MAX_NAMED]]
    more = f", and {len(found) - MAX_NAMED} more are of such types" if len(found) > MAX_NAMED else ""
    is_float = all(dtype in FLOAT64 for _, dtype in found)
    remedy = ": save the float64 model in one of these types" if is_float else ", not ones quantized already"
    return f"{', '.join(first)}{more}; {READABLE}{remedy}"


def are_floats(reader: CheckpointReader, family: Family) -> bool:
    """Return whether all weights that are used are numbers of a float type, be it one that cannot be read."""
    return all(reader.stored_dtype(key) in (*FLOAT_DTYPES.values(), *FLOAT64) for key, _ in _used(reader, family))


def contradictions(reader: CheckpointReader, family: Family) -> Iterator[str]:
    """Yield where tensors are stored under two names, or are not in the file that the index names for them."""
    key_of: dict[str, str] = {}
    for key, fqn in _used(reader, family):
        if key_of.setdefault(fqn, key) != key:
            yield f"{key_of[fqn]} and {key} in {reader.folder} are two names of one weight; remove the wrong one"
    lacking = [key for key in reader.lacking if not family.is_unused(family.rename(key) or key)]
    if lacking:
        more = f", and {len(lacking) - 1} more tensors are not where it says" if len(lacking) > 1 else ""
        yield (
            f"the index in {reader.folder} says that {lacking[0]} is in {reader.lacking[lacking[0]]}, which lacks it"
            f"{more}"
        )


def has_own_head(reader: CheckpointReader, family: Family) -> bool:
    """Return whether a checkpoint stores a head with other values than the token embedding's.

    Then the two are not tied, whatever ``config.json`` says: transformers decides in the same way. This is the only
    place where values are read before an export begins.
    """
    key_of = {fqn: key for key, fqn in _used(reader, family)}
    embedding, head = key_of.get(EMBEDDING_WEIGHT), key_of.get(HEAD_WEIGHT)
    return embedding is not None and head is not None and not reader.is_same(embedding, head)


def _used(reader: CheckpointReader, family: Family) -> Iterator[tuple[str, str]]:
    """Yield the keys that a model of the family can use, and the model's names of them."""
    for key in reader.shapes:
        if (fqn := family.rename(key)) is not None and not family.is_unused(fqn):
            yield key, fqn

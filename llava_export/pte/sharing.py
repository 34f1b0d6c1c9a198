"""Weights that a program would hold twice are stored once.

The constants of all methods lie together in one segment of the program's file, and each weight of XNNPACK's in a
segment of its own. Where the head is tied to the token embedding, the two have the same values and scales, one as
constants and the other as weights of XNNPACK's, and ExecuTorch stores both. But a segment is no more than a place and a
size in the file, and it may lie within another one. So the weight's segment is moved onto the constant of the same
bytes, and its own bytes are left out. A runtime maps it there as it maps any segment.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import TypeAlias

from executorch.exir._serialize._cord import Cord, FileBackedData

from llava_runner.flatbuffer import Flatbuffer
from llava_runner.program_file import (
    CONSTANT_INDEX,
    CONSTANT_SEGMENT,
    NAMED_DATA,
    OFFSET,
    PTE_HEAD,
    SEGMENT_INDEX,
    SEGMENTS,
    SIZE,
)

SEGMENT_SIZE_AT = PTE_HEAD.size - 8  # where the head of a program has the bytes of all segments together

Piece: TypeAlias = bytes | FileBackedData


def stored_once(program: Cord) -> Cord:
    """Return a serialized program in which no weight of XNNPACK's has the bytes of a constant once more.

    All other segments keep their order, and their distance from the one before. A program without such a weight is
    returned as it is.
    """
    flatbuffer, *stored = program._buffers
    assert isinstance(flatbuffer, bytes)
    reader = Flatbuffer(flatbuffer)
    root = reader.follow(0)
    segments = reader.tables(root, SEGMENTS)
    offsets, sizes = ([reader.number("<Q", it, field) for it in segments] for field in (OFFSET, SIZE))
    named = {reader.number("<I", it, SEGMENT_INDEX) for it in reader.tables(root, NAMED_DATA)}
    if not named or not (constants := reader.field(root, CONSTANT_SEGMENT)):
        return program
    of_constants = reader.number("<I", reader.follow(constants), CONSTANT_INDEX)

    *_, base, total = PTE_HEAD.unpack_from(flatbuffer)
    pieces: dict[int, Piece] = {}  # by their places behind the beginning of the first segment
    place = len(flatbuffer) - base
    for piece in filter(len, stored):
        pieces[place] = piece
        place += len(piece)
    inside = range(offsets[of_constants], offsets[of_constants] + sizes[of_constants])
    equal = _equal_constants(
        {i: pieces[offsets[i]] for i in named - {of_constants} if sizes[i]},
        {place: piece for place, piece in pieces.items() if place in inside},
    )
    if not equal:
        return program
    assert offsets[of_constants] == 0, "ExecuTorch writes the constants first, so leaving out others does not move them"

    changed, left_out = bytearray(flatbuffer), 0
    for i, (offset, end) in enumerate(zip(offsets, [*offsets[1:], total], strict=True)):
        if (moved := equal.get(i, offset - left_out)) != offset:
            struct.pack_into("<Q", changed, reader.field(segments[i], OFFSET), moved)
        if i in equal:
            left_out += end - offset
            for place in [place for place in pieces if offset <= place < end]:  # the weight, and padding behind it
                del pieces[place]
    struct.pack_into("<Q", changed, SEGMENT_SIZE_AT, total - left_out)
    result = Cord(bytes(changed))
    for piece in pieces.values():
        result.append(piece)
    return result


def _equal_constants(weights: Mapping[int, Piece], constants: Mapping[int, Piece]) -> dict[int, int]:
    """Return the place of the constant that has the same bytes as a weight, by the weight's segment."""
    sizes = {len(piece) for piece in weights.values()} & {len(piece) for piece in constants.values()}
    places = {_sha256(piece): place for place, piece in constants.items() if len(piece) in sizes}
    digests = {segment: _sha256(piece) for segment, piece in weights.items() if len(piece) in sizes}
    return {segment: places[digest] for segment, digest in digests.items() if digest in places}


def _sha256(piece: Piece) -> bytes:
    return piece.sha256() if isinstance(piece, FileBackedData) else hashlib.sha256(piece).digest()

"""Reads a flatbuffer whose every byte may be wrong: the few steps that finding a program's segments takes."""

from __future__ import annotations

import struct


class Flatbuffer:
    """The bytes of a flatbuffer. Its tables refer to each other by offsets, and places are counted from its first byte.

    All methods raise ``struct.error`` for what lies outside of the bytes.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content

    def follow(self, at: int) -> int:
        """Return the place that the offset at ``at`` leads to."""
        return at + self._unpack("<I", at)

    def field(self, table: int, index: int) -> int:
        """Return the place of a field of a table; 0 if the field has its default.

        A table begins with the distance to its vtable, which has its own size first and then the places of the fields
        within the table.
        """
        vtable = table - self._unpack("<i", table)
        entry = 4 + 2 * index
        offset = self._unpack("<H", vtable + entry) if entry < self._unpack("<H", vtable) else 0
        return table + offset if offset else 0

    def number(self, kind: str, table: int, index: int) -> int:
        """Return the number in a field of a table, by its format for ``struct``; 0 if the field has its default."""
        at = self.field(table, index)
        return self._unpack(kind, at) if at else 0

    def tables(self, table: int, index: int) -> list[int]:
        """Return the places of the tables in a list, which is a field of a table."""
        at = self.field(table, index)
        if not at:
            return []
        vector = self.follow(at)
        return [self.follow(vector + 4 + 4 * i) for i in range(self._unpack("<I", vector))]

    def _unpack(self, kind: str, at: int) -> int:
        if at < 0:  # which Python would count from the end
            raise struct.error("a place before the first byte")
        (value,) = struct.unpack_from(kind, self._content, at)
        return value

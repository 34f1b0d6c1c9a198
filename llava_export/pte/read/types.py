"""What reading a program returns: its methods, its metadata, and what its bytes are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class TensorType:
    """Type, sizes and bytes of a tensor.

    ``dynamism`` says what ``sizes`` mean. ``static``: they are the sizes. ``bounded``: they are the largest that the
    sizes may be, and the file does not say which of them are fixed. ``unbounded``: they mean nothing.
    """

    dtype: str
    sizes: tuple[int, ...]
    dynamism: str
    bytes: int


@dataclass(frozen=True)
class Method:
    """A method that computes something.

    An input or output that is not a tensor is named by its kind: ``Int``, ``Bool``, ``String``, ...

    ``delegates`` counts the delegates by backend, ``outside`` the operators outside of delegates, and ``xnnpack`` the
    operators inside XNNPACK's delegates. ``planned_bytes`` is the memory for values that are not weights. ``state`` are
    the values in it that certainly outlive a call, and ``kv_cache`` those of them that llama's operators write.
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


class Label(NamedTuple):
    """A description of some bytes of the file. The fields mean the same as in ``Part``."""

    kind: str
    shape: tuple[int, ...] = ()
    stored_as: str = ""
    reader: str = ""


@dataclass(frozen=True)
class Part:
    """All bytes of the file that have the same label and are read by the same methods. All parts make up the file.

    ``methods`` are in alphabetical order; there are none if the bytes are not weights. ``times`` counts the different
    weights, each with its scales and bias: the file holds only once what several layers or methods share. ``shape`` is
    (in, out) of a linear; (in, out, height, width, groups) of a convolution; (rows, columns) of an embedding.
    ``reader`` is the operator or backend that reads other kinds of constants.
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
    """The contents of a program.

    ``constants`` are the methods that only return a value, such as metadata. A tensor among the values is a
    ``TensorType``.
    """

    bytes: int
    identifier: str
    version: int
    methods: tuple[Method, ...]
    constants: dict[str, Any]
    parts: tuple[Part, ...]

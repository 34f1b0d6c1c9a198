"""JSON documents that others wrote: parsed within limits, and taken apart with types.

Nothing in a document is trusted. ``parse_object`` bounds its size and depth, and ``JsonObject`` gives a value only if
it has the type that is asked for. Every error says where in which document the value stands.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from llava_runner.errors import UserError

# Published documents are far smaller: a config has kilobytes and 5 levels, the largest tokenizer.json about 20 MB.
MAX_BYTES = 32 << 20
MAX_DEPTH = 64
MAX_LINE = 1 << 20  # bytes of a line, where each has an object
LARGEST = 2**63 - 1  # of a whole number

Record = TypeVar("Record")

# The metadata of a dataclass's field that a document need not have, and leaves out where it has its default.
OPTIONAL = {"optional": True}

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = _shown.maxlong = 60


def shown(value: Any) -> str:
    """Return a value of a document as text for an error: short, however large the value is."""
    return _shown.repr(value)


def parse_object(text: str | bytes, *, what: str, error: type[UserError], max_bytes: int = MAX_BYTES) -> JsonObject:
    """Return the JSON object in a text. Raises ``error``, which calls the text ``what``, if it holds something else."""
    value = _parse(text, what=what, error=error, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise error(f"{what} does not hold a JSON object")
    return JsonObject(value, what=what, error=error)


def read_object(path: Path, *, error: type[UserError], max_bytes: int = MAX_BYTES) -> JsonObject:
    """Return the JSON object in a file. Raises ``error`` if it is no file, too large, or holds something else."""
    return parse_object(_read(path, error, max_bytes), what=str(path), error=error, max_bytes=max_bytes)


def read_objects(path: Path, *, error: type[UserError], max_bytes: int = MAX_BYTES) -> list[JsonObject]:
    """Return the objects in a file that holds a JSON list of objects. Raises ``error`` as ``read_object`` does."""
    values = _parse(_read(path, error, max_bytes), what=str(path), error=error, max_bytes=max_bytes)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise error(f"{path} does not hold a list of JSON objects")
    return [JsonObject(value, what=str(path), error=error, place=f"[{i}]") for i, value in enumerate(values)]


def read_lines(path: Path, *, error: type[UserError], size: int | None = None) -> Iterator[JsonObject]:
    """Yield the JSON object in each line of a file that is not blank, or in its first ``size`` bytes.

    Raises ``error``, which names the line.
    """
    with path.open("rb") as file:
        number = 0
        while (size is None or file.tell() < size) and (line := file.readline(MAX_LINE + 1)):
            number += 1
            what = f"line {number} of {path}"
            if len(line) > MAX_LINE:
                raise error(f"{what} has more than the {MAX_LINE:,} bytes that are read of a line")
            if line.strip():
                yield parse_object(line.strip(), what=what, error=error)


def fields_of(value: Any) -> Any:
    """Return a dataclass as ``JsonObject.record`` takes it, for JSON. Other values come back as they are."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {
            field.name: fields_of(each)
            for field, each in found
            if not (field.metadata.get("optional") and each == field.default)
        }
    if isinstance(value, dict):
        return {key: fields_of(each) for key, each in value.items()}
    return list(map(fields_of, value)) if isinstance(value, tuple) else value


def _read(path: Path, error: type[UserError], max_bytes: int) -> str:
    """Return the text of a JSON file. Raises ``error`` if it is no file, too large, or no UTF-8."""
    if not path.is_file():
        raise error(f"{path} is not a file" if path.exists() else f"{path} does not exist")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise error(f"{path} is larger than the {max_bytes:,} bytes that are read of a JSON file")
    try:
        return content.decode()
    except UnicodeDecodeError as reason:
        raise error(f"{path} is not JSON: {reason}") from reason


def _parse(text: str | bytes, *, what: str, error: type[UserError], max_bytes: int) -> Any:
    """Return the value that a text of JSON stands for. Raises ``error``."""
    if len(text) > max_bytes:
        raise error(f"{what} has {len(text):,} bytes; at most {max_bytes:,} are read")
    try:
        value = json.loads(text)
    except ValueError as reason:
        raise error(f"{what} is not JSON: {reason}") from reason
    except RecursionError:
        raise error(f"{what} is nested too deep; at most {MAX_DEPTH} levels are read") from None
    _check_depth(value, what=what, error=error)
    return value


class JsonObject(Mapping[str, Any]):
    """An object of a document. As a mapping it has the values as they are; its methods check their types.

    ``what`` names the document, and ``place`` is where in it the object stands, such as ``text_config``. The methods
    take a ``default`` for a value that is missing or null. Without one, the value is required. They raise ``error``.
    """

    def __init__(self, fields: Mapping[str, Any], *, what: str, error: type[UserError], place: str = "") -> None:
        self._fields = fields
        self._what = what
        self._error = error
        self._place = place

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def where(self, name: str = "") -> str:
        """Return where a value, or the object itself, stands."""
        place = ".".join(part for part in (self._place, name) if part)
        return f"{place} in {self._what}" if place else self._what

    def wrong(self, name: str, needed: str) -> UserError:
        """Return the error that says that the value ``name`` must be what ``needed`` says."""
        if self._fields.get(name) is None:
            return self._error(f"{self.where()} lacks {name}, which must be {needed}")
        return self._error(f"{self.where(name)} is {shown(self._fields[name])}; it must be {needed}")

    def refusal(self, message: str) -> UserError:
        """Return the error of the document with a message of its own."""
        return self._error(message)

    def raising(self, error: type[UserError]) -> JsonObject:
        """Return the same object with another class of errors."""
        return JsonObject(self._fields, what=self._what, error=error, place=self._place)

    def with_defaults(self, defaults: Mapping[str, Any]) -> JsonObject:
        """Return an object with ``defaults`` in place of values that are missing or null."""
        present = {name: value for name, value in self._fields.items() if value is not None}
        return JsonObject({**defaults, **present}, what=self._what, error=self._error, place=self._place)

    def integer(self, name: str, default: int | None = None, *, least: int = -LARGEST, most: int = LARGEST) -> int:
        """Return a whole number from ``least`` to ``most``."""
        value = self._get(name, default)
        if not is_integer(value) or not least <= value <= most:
            raise self.wrong(name, integer_range(least, most))
        return value

    def integers(
        self, name: str, default: Any = None, *, least: int = -LARGEST, most: int = LARGEST
    ) -> tuple[int, ...]:
        """Return whole numbers from ``least`` to ``most``: one, or a list of at least one."""
        value = self._get(name, default)
        values = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not values or not all(is_integer(item) and least <= item <= most for item in values):
            raise self.wrong(name, f"{integer_range(least, most)}, or a list of such numbers")
        return values

    def number(self, name: str, default: float | None = None) -> float:
        """Return a finite number as a float."""
        value = self._get(name, default)
        if not is_number(value):
            raise self.wrong(name, "a number")
        return float(value)

    def numbers(self, name: str, default: Any = None, *, count: int) -> tuple[float, ...]:
        """Return a list of ``count`` finite numbers as floats."""
        value = self._get(name, default)
        if not isinstance(value, list | tuple) or len(value) != count or not all(map(is_number, value)):
            raise self.wrong(name, f"a list of {count} numbers")
        return tuple(map(float, value))

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def flag(self, name: str, default: bool | None = None) -> bool:
        """Return true or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def items_of(self, name: str, default: Any = None) -> list[Any]:
        """Return a list of any values."""
        value = self._get(name, default)
        if not isinstance(value, list | tuple):
            raise self.wrong(name, "a list")
        return list(value)

    def section(self, name: str, default: Mapping[str, Any] | None = None) -> JsonObject:
        """Return an object inside this one."""
        value = self._get(name, default)
        if not isinstance(value, Mapping):
            raise self.wrong(name, "an object")
        return self._inside(name, value)

    def sections(self, name: str, default: Any = None) -> list[JsonObject]:
        """Return a list of objects inside this one."""
        values = self.items_of(name, default)
        if not all(isinstance(value, Mapping) for value in values):
            raise self.wrong(name, "a list of objects")
        return [self._inside(f"{name}[{i}]", value) for i, value in enumerate(values)]

    def record(self, cls: type[Record]) -> Record:
        """Return the object as a dataclass whose fields it has: all of them, no others, and of their types.

        Those that are ``OPTIONAL`` may be missing. Fields may be str, int, float, bool, such dataclasses, and tuples
        and dictionaries of those.
        """
        hints = get_type_hints(cls)
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # it is a dataclass
        names = [field.name for field in fields if field.name in self or not field.metadata.get("optional")]
        if missing := sorted(set(names) - self.keys()):
            raise self._error(f"{self.where()} lacks {', '.join(missing)}")
        if unknown := sorted(self.keys() - set(names)):
            raise self._error(f"{self.where()} has {shown(', '.join(unknown))}, which this version does not know")
        return cls(**{name: self._typed(self[name], hints[name], name) for name in names})

    def _get(self, name: str, default: Any) -> Any:
        value = self._fields.get(name)
        return default if value is None else value

    def _inside(self, name: str, fields: Mapping[str, Any]) -> JsonObject:
        place = ".".join(part for part in (self._place, name) if part)
        return JsonObject(fields, what=self._what, error=self._error, place=place)

    def _typed(self, value: Any, hint: Any, name: str) -> Any:
        """Return a value as the type that a field of a dataclass has."""
        origin, arguments = get_origin(hint), get_args(hint)
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            return self._inside(name, value).record(hint)  # type: ignore[arg-type]  # it is a class
        if origin is tuple and isinstance(value, list):
            hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
            if len(hints) == len(value):
                typed = enumerate(zip(value, hints, strict=True))
                return tuple(self._typed(item, hint, f"{name}[{i}]") for i, (item, hint) in typed)
        if origin in (dict, Mapping) and isinstance(value, Mapping):
            return {key: self._typed(item, arguments[1], f"{name}.{key}") for key, item in value.items()}
        if hint is float and is_number(value):
            return float(value)
        kinds = arguments if origin in (Union, types.UnionType) else (hint,)
        if isinstance(value, Mapping) and (inner := [kind for kind in kinds if kind is not hint and get_args(kind)]):
            return self._typed(value, inner[0], name)
        if any(type(value) is kind for kind in kinds) and (type(value) is not int or abs(value) <= LARGEST):
            return value
        raise self._error(f"{self.where(name)} is {shown(value)}; it must be {_type_text(hint)}")


def is_integer(value: Any) -> bool:
    """Return whether a value is a whole number. JSON's true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a number that a float can hold. Infinity and NaN, which Python's JSON has, cannot."""
    if is_integer(value):
        return abs(value) <= 1 << 1000
    return isinstance(value, float) and math.isfinite(value)


def integer_range(least: int, most: int) -> str:
    """Return the words for a whole number in a range, for errors."""
    if most == LARGEST:
        return "a whole number" if least == -LARGEST else f"a whole number of at least {least}"
    return f"a whole number from {least} to {most}"


def _type_text(hint: Any) -> str:
    """Return the words for a field's type, for errors."""
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    if hint in words:
        return words[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} values"
    if origin is tuple:
        return "a list"
    return " or ".join(map(_type_text, arguments)) if origin in (Union, types.UnionType) else "an object"


def _check_depth(value: Any, *, what: str, error: type[UserError]) -> None:
    """Raise ``error`` if lists and objects are nested deeper than ``MAX_DEPTH``."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise error(f"{what} is nested too deep; at most {MAX_DEPTH} levels are read")

"""What ``config.json`` says of rotary embedding, in the spellings of transformers 4 and 5."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from llava_export.config import LinearScaling, Llama3Scaling, RopeScaling
from llava_export.errors import ConfigError
from llava_runner.documents import JsonObject, shown

DEFAULT_THETA = 10000.0


def rope_settings(section: JsonObject) -> tuple[float, RopeScaling | None]:
    """Return ``rope_theta``, and how the frequencies are scaled. ``section`` is that of a language model.

    Raises ``ConfigError``.
    """
    rope = _rope(section)
    kind = rope["rope_type"]
    if kind is None and "factor" in rope:
        raise ConfigError(f"{rope.where()} has a factor and no rope_type; {' and '.join(READERS)} have a factor")
    if kind not in (None, "default") and (not isinstance(kind, str) or kind not in READERS):
        raise ConfigError(
            f"rotary embedding of type {shown(kind)} is not supported; default, {' and '.join(READERS)} are"
        )
    for part in (section, rope):
        if (name := "partial_rotary_factor") in part and part.number(name, 1.0) != 1:
            raise ConfigError(f"{part.where(name)} is {shown(part[name])}; only whole heads can be rotated")
    theta = rope.number("rope_theta", section.number("rope_theta", DEFAULT_THETA))
    return theta, READERS[kind](rope, section) if kind in READERS else None


def context_length(section: JsonObject) -> int:
    """Return the number of positions that the model was trained for. ``section`` is that of a language model.

    With linear scaling ``max_position_embeddings`` is that number in most configs. Vicuna's with 16,384 positions keep
    Llama's 4096 there, and have theirs in ``max_sequence_length``. Raises ``ConfigError``.
    """
    positions = section.integer("max_position_embeddings")
    if _rope(section)["rope_type"] == "linear":
        return max(positions, section.integer("max_sequence_length", positions))
    return positions


def _rope(section: JsonObject) -> JsonObject:
    """Return what a section says of rotary embedding, with its ``rope_type``, which may be None.

    transformers 5 writes ``rope_parameters`` in place of ``rope_theta`` and ``rope_scaling``. Where both are there, it
    takes ``rope_scaling`` alone. ``type`` is an older name of ``rope_type``.
    """
    older, newer = section.section("rope_scaling", {}), section.section("rope_parameters", {})
    rope = older if older else newer
    return rope.with_defaults({"rope_type": rope.get("type")})


def rope_scaling_settings(scaling: RopeScaling | None) -> dict[str, Any]:
    """Return the entry of ``config.json`` that transformers 4 and 5 read, or nothing where nothing is scaled."""
    if scaling is None:
        return {}
    kind = "llama3" if isinstance(scaling, Llama3Scaling) else "linear"
    # Before rope_type there was type, for linear.
    return {"rope_scaling": {"rope_type": kind, **({"type": kind} if kind == "linear" else {}), **asdict(scaling)}}


def _linear(rope: JsonObject, section: JsonObject) -> LinearScaling:
    """Return scaling of the kind ``linear``."""
    return LinearScaling(factor=rope.number("factor"))


def _llama3(rope: JsonObject, section: JsonObject) -> Llama3Scaling:
    """Return scaling of the kind ``llama3``. Some configs have the original length beside it, not in it."""
    name = "original_max_position_embeddings"
    holder = rope if section.get(name) is None else section
    return Llama3Scaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position_embeddings=holder.integer(name, section.integer("max_position_embeddings")),
    )


READERS: Mapping[str, Callable[[JsonObject, JsonObject], RopeScaling]] = {"linear": _linear, "llama3": _llama3}

"""The checkpoint families that this project reads.

To add a family, write a file here with one ``Family``, whose fields ``families.family`` explains. Add it to
``FAMILIES`` below, before any family that has the same ``model_type`` and no ``markers``. Then add a random checkpoint
of the family to ``tests/checkpoints.py``, and compare its logits with those of the published implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_export.errors import ConfigError
from llava_export.families.family import Family
from llava_export.families.llava15 import LLAVA_15, LLAVA_15_ORIGINAL
from llava_export.families.mobilevlm import MOBILEVLM
from llava_export.families.text_only import TEXT_ONLY
from llava_runner.documents import shown

# The first one that matches a config.json is chosen. Both of LLaVA-1.5 match model_type "llava"; the one with markers
# comes first.
FAMILIES = (LLAVA_15_ORIGINAL, LLAVA_15, MOBILEVLM)


def find_family(config: Mapping[str, Any], *, text_only: bool = False) -> Family:
    """Return the family of a ``config.json``. Raises ``ConfigError``, which lists the supported families.

    With ``text_only`` it is that of language models alone, and otherwise one of ``FAMILIES``.
    """
    if text_only:
        return _text_only(config)
    for family in FAMILIES:
        if family.matches(config):
            return family
    for family in FAMILIES:
        if config.get("model_type") in family.model_types:
            raise ConfigError(
                f"config.json has model_type {shown(config['model_type'])} and none of {', '.join(family.markers)}, "
                f"which a {family.name} of this type has"
            )
    types: dict[str, dict[str, None]] = {}
    for family in FAMILIES:
        types.setdefault(family.name, {}).update(dict.fromkeys(family.model_types))
    supported = ", ".join(f"{name} (model_type {'/'.join(names)})" for name, names in types.items())
    if TEXT_ONLY.matches(config):
        supported += "; llava export --text-only takes a language model alone, to draft for another"
    raise ConfigError(f"config.json has model_type {shown(config.get('model_type'))}; supported: {supported}")


def _text_only(config: Mapping[str, Any]) -> Family:
    """Return the family of language models alone. Raises ``ConfigError`` for a ``config.json`` of anything else."""
    if TEXT_ONLY.matches(config):
        return TEXT_ONLY
    found = next((f", a whole {family.name}" for family in FAMILIES if family.matches(config)), "")
    raise ConfigError(
        f"config.json has model_type {shown(config.get('model_type'))}{found}; --text-only takes a language model "
        f"alone: model_type {', '.join(TEXT_ONLY.model_types)}"
    )

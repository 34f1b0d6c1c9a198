"""The figures of the recipes in a JSON file. Each is written as soon as it is there."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_export.staging import write_whole

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "benchmarks"  # plots and results
RESULTS, SCENES = FOLDER / "recipes.json", FOLDER / "recipes_scenes.json"


@dataclass(frozen=True)
class TextKey:
    """A text by its file's name and a digest of the tokens that are read."""

    name: str
    sha256: str
    windows: int
    window_len: int

    @classmethod
    def of(cls, path: Path, windows: list[Tensor]) -> TextKey:
        """Return the key of windows of a text, which are of one length."""
        digest = hashlib.sha256(torch.cat(windows).numpy().tobytes()).hexdigest()
        return cls(path.name, digest, len(windows), len(windows[0]))


class RecipeResults:
    """What was measured, by the names of the entries, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def has(self, name: str, key: dict[str, Any]) -> bool:
        """Return whether an entry was measured with all that ``key`` says."""
        return self.found.get("measured", {}).get(name, {}).get("key") == key

    def add(self, name: str, key: dict[str, Any], figures: dict[str, Any]) -> None:
        """Put the figures of an entry into the file, in place of older ones."""
        self.found.setdefault("measured", {})[name] = {"key": key, **figures}
        self.write()

    def write(self) -> None:
        """Write the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, json.dumps(self.found, indent=1, allow_nan=False) + "\n")


def key_of(text: TextKey, **depends_on: Any) -> dict[str, Any]:
    """Return what the figures of an entry depend on, as JSON has it."""
    return {"text": asdict(text), **depends_on}

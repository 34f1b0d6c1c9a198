"""Small trained checkpoints that ship with the project, so that everything can be tried without a download."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
# Folders by the names that --model accepts.
CHECKPOINTS = {name: FOLDER / name for name in ("tiny-llava", "tiny-mobilevlm", "tiny-mobilevlm-v2")}
SAMPLE_IMAGE = FOLDER / "tiny-llava" / "sample.png"

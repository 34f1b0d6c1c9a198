"""Small trained checkpoints and samples that ship with the project: everything can be tried without a download."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
# Folders by the names that --model accepts.
CHECKPOINTS = {name: FOLDER / name for name in ("tiny-llava", "tiny-mobilevlm", "tiny-mobilevlm-v2")}
SAMPLE_IMAGE = FOLDER / "tiny-llava" / "sample.png"
# Samples to calibrate with. `python -m training.calibration` makes the scenes; the rest was written by hand.
CALIBRATION = tuple(FOLDER / "calibration" / name for name in ("scenes", "conversations.jsonl", "prose.txt"))

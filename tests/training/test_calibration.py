"""The scenes that ship to calibrate with are those that the command makes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from llava_export.builtin import CALIBRATION
from training.calibration import write_scenes


def test_the_command_makes_the_scenes_that_ship(tmp_path):
    write_scenes(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in CALIBRATION[0].iterdir()) and len(names) == 25
    for name in names:
        made, shipped = tmp_path / name, CALIBRATION[0] / name
        if made.suffix == ".jsonl":
            assert made.read_text() == shipped.read_text()
        else:  # JPEG libraries differ by a level here and there
            pixels = [np.asarray(Image.open(path), dtype=float) for path in (made, shipped)]
            assert np.abs(pixels[0] - pixels[1]).mean() < 2

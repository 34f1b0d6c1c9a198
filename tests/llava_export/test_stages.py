"""The memory of an export: that of its own process, and of another one while both work."""

from __future__ import annotations

import pytest

from llava_export import stages as module
from llava_export.stages import STARTING, Stages


@pytest.mark.parametrize(
    ("seconds", "total"),
    [
        (1, 500),  # ended while this process had 300; it had 500 later, alone
        (400, 700),  # worked to the end
    ],
)
def test_memory_counts_beside_the_stages_of_the_same_time(seconds, total, monkeypatch):
    now, peak = 0.0, 0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    monkeypatch.setattr(module, "peak_memory", lambda: peak)
    stages = Stages()
    for name, took, reached in (("calibrate", 100, 200), ("lower", 60, 300), ("pack", 60, 500)):
        with stages.stage(name):
            now, peak = now + took, reached
    stages.add_parallel("answer", began=100 - STARTING, seconds=seconds, peak_bytes=200)
    assert stages.peak_bytes == total
    assert stages.seconds == 220
    assert [record.name for record in stages.parallel] == ["answer"]

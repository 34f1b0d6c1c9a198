"""The memory of an export: that of its own process, and of another one while both work."""

from __future__ import annotations

import os

import pytest

from llava_export import stages as module
from llava_export.stages import Stages
from llava_export.system import in_background
from llava_runner.timings import peak_memory

MEBIBYTE = 1 << 20


@pytest.mark.parametrize(
    ("beside", "total"),
    [
        (250, 500),  # the other ended while this process had 250; it had 500 later, alone
        (450, 650),
    ],
)
def test_memory_counts_beside_what_this_process_had_until_then(beside, total, monkeypatch):
    now, peak = 0.0, 0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    monkeypatch.setattr(module, "peak_memory", lambda: peak)
    stages = Stages()
    for name, took, reached in (("calibrate", 100, 200), ("lower", 60, 300), ("pack", 60, 500)):
        with stages.stage(name):
            now, peak = now + took, reached
    stages.add_parallel("answer", seconds=70, peak_bytes=200, beside_bytes=beside)
    assert stages.peak_bytes == total
    assert stages.seconds == 220
    assert [record.name for record in stages.parallel] == ["answer"]


def memory_of_parent(*, on_step) -> int | None:
    return peak_memory(os.getppid())


@pytest.mark.skipif(peak_memory() is None, reason="only Linux tells a process's memory")
def test_another_process_can_tell_what_this_one_has_had():
    with in_background(memory_of_parent) as wait:
        there = wait(lambda: None)
    here = peak_memory()
    assert here is not None and there is not None and here - 100 * MEBIBYTE < there <= here
    assert peak_memory(2**30) is None

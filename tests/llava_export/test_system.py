"""Free memory is what the system would give: of the machine, and of the container around us."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_export import system

GIB = 1 << 30


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Path:
    """Stand-ins for /proc and /sys/fs/cgroup, of a machine with 16 GiB available."""
    monkeypatch.setattr(system, "PROC", tmp_path / "proc")
    monkeypatch.setattr(system, "CGROUPS", tmp_path / "cgroup")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {16 * GIB // 1024} kB\n")
    return tmp_path


def group(folder: Path, files: dict[str, object]) -> None:
    """Write the files of a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")


def v2(limit: object, used: int, cached: int) -> dict[str, object]:
    """Return a group of version 2 with so many bytes of files in the cache."""
    return {
        "memory.max": limit,
        "memory.current": used,
        "memory.stat": f"anon 1\nactive_file {cached}\ninactive_file 0",
    }


def test_a_machine_without_groups(machine):
    assert system.available_memory() == 16 * GIB
    (machine / "proc/meminfo").unlink()
    assert system.available_memory() is None


def test_the_cache_of_files_counts_as_free(machine):
    (machine / "proc/self/cgroup").write_text("0::/\n")
    group(machine / "cgroup", v2(8 * GIB, 7 * GIB, 5 * GIB))
    assert system.available_memory() == 6 * GIB


def test_the_tightest_of_nested_groups_counts(machine):
    (machine / "proc/self/cgroup").write_text("0::/outer/inner\n")
    group(machine / "cgroup/outer", v2(4 * GIB, GIB, 0))
    group(machine / "cgroup/outer/inner", v2("max", GIB, 0))
    assert system.available_memory() == 3 * GIB


def test_limits_of_version_1_are_seen(machine):
    (machine / "proc/self/cgroup").write_text("9:cpu,cpuacct:/x\n4:memory:/docker/1234\n0::/\n")
    used = {"memory.usage_in_bytes": 2 * GIB, "memory.stat": f"total_active_file {GIB}\ntotal_inactive_file 0"}
    group(machine / "cgroup/memory", {"memory.limit_in_bytes": 3 * GIB, **used})  # as a container sees itself
    assert system.available_memory() == 2 * GIB
    group(machine / "cgroup/memory", {"memory.limit_in_bytes": 9223372036854771712, **used})
    assert system.available_memory() == 16 * GIB


def test_files_that_are_missing_or_strange_are_passed_over(machine):
    (machine / "proc/self/cgroup").write_text("0::/\n")
    group(machine / "cgroup", {"memory.max": 5})
    assert system.available_memory() == 16 * GIB
    group(machine / "cgroup", {"memory.max": "some", "memory.current": 1, "memory.stat": "x 1"})
    assert system.available_memory() == 16 * GIB

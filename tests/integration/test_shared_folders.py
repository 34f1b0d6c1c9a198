"""Packed weights in a folder that others use, too: nothing of theirs is harmed, and nothing of theirs is trusted."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess

import pytest

from tests.integration.conftest import lacking
from tests.integration.llava_main import PACKING, QUESTION, ask, command, packed_files


@pytest.mark.parametrize("name", ["llava.v2", "llava.0123456789abcdef", "llava-v2"])
def test_a_program_whose_name_begins_alike_keeps_its_file(name, llava_main, package, expected):
    ask(llava_main, package)
    (first,) = packed_files(package)
    other = package.parent / "other"
    other.mkdir()
    shutil.copy(package / "llava.pte", other / f"{name}.pte")
    shutil.copy(package / "tokenizer.bin", other)
    shutil.copy(package / "image.png", other)
    shutil.copytree(other, package, dirs_exist_ok=True)
    flag = f"--model-path={package}/{name}.pte"
    assert ask(llava_main, package, flag) == (expected, [PACKING])
    assert ask(llava_main, package) == (expected, [])
    assert ask(llava_main, package, flag) == (expected, [])
    assert first in packed_files(package)


def test_packages_that_share_a_folder_keep_their_files(llava_main, package, expected, package_of, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    flag = f"--packed-cache-path={shared}"
    other = tmp_path / "other"
    shutil.copytree(package_of("tiny-llava", "fp32").folder, other, ignore=shutil.ignore_patterns("*.packed"))
    for folder in (package, other):
        assert ask(llava_main, folder, flag)[1] == [PACKING]
    for folder in (package, other):
        assert ask(llava_main, folder, flag)[1] == []
    assert len(packed_files(shared)) == 2
    # A program that is exported again replaces its own file alone.
    for name in ("llava.pte", "llava.json"):
        shutil.copy(package / name, other)
    assert ask(llava_main, other, flag) == (expected, [PACKING])
    assert ask(llava_main, package, flag) == (expected, [])
    assert len(packed_files(shared)) == 2


def test_the_umask_is_respected(llava_main, package, expected):
    assert ask(llava_main, package, umask=0o027) == (expected, [PACKING])
    (packed,) = packed_files(package)
    assert packed.stat().st_mode & 0o777 == 0o440


@pytest.mark.parametrize("change", ["owner", "group may write", "others may write", "link", "pipe"])
def test_a_file_that_another_may_have_made_is_not_used(change, llava_main, package, expected, tmp_path):
    if change == "owner" and os.geteuid() != 0:
        lacking("a file of another user", "run the tests as root")
    ask(llava_main, package)
    (packed,) = packed_files(package)
    target = tmp_path / "target"
    if change == "owner":
        os.chown(packed, 12345, -1)
    elif change == "link":
        packed.rename(target)
        packed.symlink_to(target)
    elif change == "pipe":
        packed.unlink()
        os.mkfifo(packed)
    else:
        packed.chmod(0o464 if "group" in change else 0o446)
    before = target.stat() if target.exists() else packed.lstat()
    answer, notes = ask(llava_main, package)
    assert answer == expected
    assert notes[0] == f"note: {packed} is not used: it is not a file that only you or root can write"
    after = target.stat() if target.exists() else before
    assert (after.st_mode, after.st_size, after.st_mtime_ns) == (before.st_mode, before.st_size, before.st_mtime_ns)


def test_links_in_the_folder_lead_nowhere(llava_main, package, expected, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    mode = victim.stat().st_mode
    for name in (f"llava.{'0' * 16}.packing", f"llava.{'1' * 16}-{'2' * 16}.packing"):
        (package / name).symlink_to(victim)
    assert ask(llava_main, package) == (expected, [PACKING])
    assert victim.read_text() == "precious" and victim.stat().st_mode == mode
    (packed,) = packed_files(package)  # the links are gone
    assert packed.suffix == ".packed"


def test_little_address_space_does_not_harm_a_neighbor(llava_main, package, expected):
    ask(llava_main, package)
    (packed,) = packed_files(package)
    before = packed.read_bytes()
    with subprocess.Popen(
        command(llava_main, package, "--interactive"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None and running.stdin is not None
        assert running.stdout.readline() == expected
        codes = set()
        for size in range(24 << 20, 72 << 20, 3 << 19):

            def little(size: int = size) -> None:
                resource.setrlimit(resource.RLIMIT_AS, (size, size))

            done = subprocess.run(command(llava_main, package), capture_output=True, preexec_fn=little)
            codes.add(done.returncode)
            assert packed.stat().st_size == len(before)
        assert 0 in codes and len(codes) > 1
        answer, _ = running.communicate(QUESTION + "\n")
    assert running.returncode == 0 and len(answer) > 10
    assert packed.read_bytes() == before

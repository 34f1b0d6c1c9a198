"""The C++ runner's file of packed weights: made once, shared, and never trusted when it is damaged."""

from __future__ import annotations

import fcntl
import re
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from pytorch_tokenizers.llama2c import Llama2cTokenizer

from llava_runner.tokenizer_file import load_tokenizer
from tests.integration.llava_main import PACKING, QUESTION, ask, command, packed_files
from tests.runner.conftest import train_tokenizer
from tests.runner.fake_program import make_card
from tests.runner.tiny_program import build_pte


def test_weights_are_packed_once_and_then_mapped(llava_main, package, expected):
    assert ask(llava_main, package) == (expected, [PACKING])
    (packed,) = packed_files(package)
    assert packed.suffix == ".packed" and packed.stat().st_size > 1_000_000
    assert packed.stat().st_mode & 0o777 == 0o444
    before = packed.stat()
    assert ask(llava_main, package) == (expected, [])
    after = packed.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_nothing_is_kept_on_request(llava_main, package, expected):
    assert ask(llava_main, package, "--packed-cache-path=off") == (expected, [])
    assert not packed_files(package)


def test_a_program_without_parts_of_xnnpack_has_nothing_to_pack(llava_main, tmp_path):
    model, program = train_tokenizer(tmp_path / "tokenizer.model"), tmp_path / "llava.pte"
    program.write_bytes(build_pte(make_card(vocab_size=load_tokenizer(model).vocab_size)))
    Llama2cTokenizer(str(model)).export(str(tmp_path / "tokenizer.bin"))
    flags = [f"--model-path={program}", f"--prompt={QUESTION}", "--max-new-tokens=3"]
    done = subprocess.run([llava_main, *flags], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip()
    assert "note: " not in done.stderr and not packed_files(tmp_path)


def test_the_file_may_be_elsewhere(llava_main, package, expected, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    assert ask(llava_main, package, f"--packed-cache-path={tmp_path / 'elsewhere'}") == (expected, [PACKING])
    assert packed_files(tmp_path / "elsewhere") and not packed_files(package)


@pytest.mark.parametrize(("image", "why"), [("nowhere.png", "does not exist"), ("tokenizer.bin", "is not an image")])
def test_nothing_is_packed_for_an_image_that_cannot_be_read(image, why, llava_main, package, tmp_path):
    folder = tmp_path / "packed"
    folder.mkdir()
    flags = [f"--image={package / image}", f"--packed-cache-path={folder}"]
    done = subprocess.run(command(llava_main, package, *flags), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {package / image} {why}")
    assert not list(folder.iterdir()) and not packed_files(package)


@pytest.mark.parametrize("damage", ["truncated", "empty", "longer", "begin", "middle", "end"])
def test_a_damaged_file_is_made_anew(damage, llava_main, package, expected):
    ask(llava_main, package)
    (packed,) = packed_files(package)
    whole = packed.read_bytes()
    changed = bytearray(whole)
    if damage == "truncated":
        changed = changed[: len(whole) // 2]
    elif damage == "empty":
        changed.clear()
    elif damage == "longer":
        changed += b"\0"
    else:
        changed[{"begin": 100, "middle": len(whole) // 2, "end": -1}[damage]] ^= 1
    packed.unlink()
    packed.write_bytes(changed)
    answer, notes = ask(llava_main, package)
    assert answer == expected
    assert notes == [f"note: {packed} is damaged: it is made anew", PACKING]
    assert ask(llava_main, package) == (expected, [])


def test_a_process_killed_while_packing_leaves_nothing_that_is_trusted(llava_main, package, expected):
    for pause in (0.0, 0.02, 0.1):
        process = subprocess.Popen(command(llava_main, package), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not packed_files(package) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(pause)
        process.kill()
        process.wait()
    answer, notes = ask(llava_main, package)
    assert answer == expected and notes in ([], [PACKING])
    (packed,) = packed_files(package)
    assert packed.suffix == ".packed"


def test_a_packer_that_cannot_write_does_not_hurt(llava_main, package, expected):
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it: the packer is to die of it

    answer, notes = ask(llava_main, package, preexec_fn=small_files_only)
    assert answer == expected and len(notes) == 2 and "could not be written" in notes[1]
    assert not packed_files(package)


@pytest.mark.parametrize(
    ("folder", "why"), [("/proc", "not kept"), ("/nowhere", "No such file"), ("{package}/image.png", "Not a directory")]
)
def test_a_folder_that_cannot_take_it_costs_only_time(folder, why, llava_main, package, expected):
    answer, (note,) = ask(llava_main, package, f"--packed-cache-path={folder.format(package=package)}")
    assert answer == expected and why in note


def test_the_path_of_the_folder_may_be_long(llava_main, package, expected, tmp_path):
    folder = tmp_path / ("long" * 50)
    folder.mkdir()
    flag = f"--packed-cache-path={folder}"
    assert ask(llava_main, package, flag) == (expected, [PACKING])
    assert ask(llava_main, package, flag) == (expected, [])


def test_processes_that_start_together_pack_once(llava_main, package, expected):
    processes = [
        subprocess.Popen(command(llava_main, package), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    outputs = [process.communicate() for process in processes]
    assert [answer for answer, _ in outputs] == [expected] * 4
    assert sum(PACKING in notes for _, notes in outputs) == 1
    assert len(packed_files(package)) == 1


def test_a_running_process_does_not_keep_others_from_the_file(llava_main, package, expected):
    ask(llava_main, package)
    (packed,) = packed_files(package)
    with subprocess.Popen(
        command(llava_main, package, "--interactive"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == expected  # loaded, and waiting for the next question
        assert str(packed) in Path(f"/proc/{running.pid}/maps").read_text()
        with packed.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as ExecuTorch does before it maps the file
        assert ask(llava_main, package) == (expected, [])
        running.communicate("\n")


def test_another_program_of_the_same_name_gets_its_own(llava_main, package, expected, package_of):
    ask(llava_main, package)
    (first,) = packed_files(package)
    other = package_of("tiny-llava", "fp32")
    for name in ("llava.pte", "llava.json"):
        shutil.copy(other.folder / name, package)
    answer, notes = ask(llava_main, package)
    assert answer.split()[:3] == expected.split()[:3] and notes == [PACKING]
    (second,) = packed_files(package)
    assert second != first


def test_files_that_an_earlier_version_named_are_removed(llava_main, package, expected):
    old = package / f"llava.{'0' * 16}-{'1' * 16}-{'2' * 16}.packed"
    old.write_bytes(b"packed")
    assert ask(llava_main, package) == (expected, [PACKING])
    (packed,) = packed_files(package)
    assert packed != old and re.fullmatch(r"llava\.[0-9a-f]{16}-[0-9a-f]{16}-[0-9a-f]{32}\.packed", packed.name)

"""``llava verify`` passes a package as it was exported, and fails one that was changed since."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from llava_export.builtin import SAMPLE_IMAGE
from llava_export.cli import verify as cli
from llava_export.pte.package.manifest import file_record
from llava_export.pte.verify import read_manifest
from llava_runner import contract
from llava_runner.errors import PackageError, UserError
from llava_runner.program_file import structure_sha256
from tests.commands import script


def verify(program: Path, image: Path | None = None) -> int:
    """Return the exit code of ``llava verify``."""
    flags = ["--image", str(image)] if image else []
    return cli.run(cli.build_parser().parse_args([str(program), *flags]))


@pytest.fixture
def copy(tiny_package, tmp_path) -> Path:
    """Return the program of a package that the test may change."""
    return shutil.copytree(tiny_package.folder, tmp_path / "copy") / "llava.pte"


def rewrite_manifest(program: Path, **changes: Any) -> None:
    """Write a manifest with the checksums of the files as they are now, as somebody who swaps files would."""
    manifest = read_manifest(program)
    files = {name: file_record(program.parent / name) for name in manifest.files}
    forged = dataclasses.replace(manifest, files=files, structure_sha256=structure_sha256(program), **changes)
    contract.manifest_path(program).write_text(forged.to_json())


def test_fresh_package_passes_and_answers(tiny_package, capsys):
    assert verify(tiny_package.program, SAMPLE_IMAGE) == 0
    printed = capsys.readouterr().out
    assert "PASS" in printed and "image features" in printed and "token 2" in printed
    assert "The image shows" in printed


@pytest.mark.parametrize(
    ("side", "flags", "message"),
    [
        (1000, [], "1000x1000"),  # larger than what the model sees, which its card says
        (100, ["--prompt", " "], "the prompt is empty"),
        (100, ["--prompt", "<image> <image>"], "<image> 2 times"),
    ],
)
def test_mistakes_are_found_before_the_comparison(side, flags, message, tiny_package, tmp_path, monkeypatch):
    monkeypatch.setattr("llava_export.pte.verify.compare", lambda program: pytest.fail("it compares"))
    torch.save(torch.zeros(3, side, side, dtype=torch.uint8), tmp_path / "image.pt")
    arguments = [str(tiny_package.folder), "--image", str(tmp_path / "image.pt"), *flags]
    with pytest.raises(UserError, match=message):
        cli.run(cli.build_parser().parse_args(arguments))


@pytest.mark.parametrize("where", [0.3, 0.6, 0.95])
def test_one_changed_byte_fails(where, copy, capsys):
    content = bytearray(copy.read_bytes())
    content[int(len(content) * where)] ^= 1
    copy.write_bytes(content)
    assert verify(copy) == 1
    assert "llava.pte is not the file that was exported" in capsys.readouterr().out


def test_program_of_another_checkpoint_fails(package_of, tmp_path, capsys):
    """It fails by its checksum. With a forged checksum, it fails by its answers."""
    one, other = (package_of(name) for name in ("tiny-mobilevlm-v2", "tiny-mobilevlm"))
    copy = shutil.copytree(one.folder, tmp_path / "copy") / "llava.pte"
    assert verify(copy) == 0
    shutil.copy(other.program, copy)
    capsys.readouterr()
    assert verify(copy) == 1
    assert "llava.pte is not the file that was exported" in capsys.readouterr().out
    rewrite_manifest(copy)
    assert verify(copy) == 1
    printed = capsys.readouterr().out
    assert "image features: cosine" in printed and re.search(r"token \d: cosine", printed) and "FAIL" in printed


def test_golden_record_of_other_sizes_is_refused(copy, package_of):
    shutil.copy(contract.golden_path(package_of("tiny-mobilevlm").program), contract.golden_path(copy))
    rewrite_manifest(copy)
    with pytest.raises(PackageError, match="golden record is of another model"):
        verify(copy)


def test_truncated_and_missing_files_are_refused(copy):
    content = copy.read_bytes()
    copy.write_bytes(content[:-5])
    with pytest.raises(PackageError, match="truncated"):
        verify(copy)
    copy.write_bytes(content)
    contract.golden_path(copy).unlink()
    with pytest.raises(PackageError, match=r"llava.golden is missing"):
        verify(copy)
    contract.manifest_path(copy).write_text("{}")
    with pytest.raises(PackageError, match="schema"):
        verify(copy)
    contract.manifest_path(copy).unlink()
    with pytest.raises(PackageError, match=r"llava.json is missing"):
        verify(copy)
    copy.unlink()
    with pytest.raises(PackageError, match="does not exist"):
        verify(copy)


def test_manifest_of_another_program_is_refused(copy):
    other = copy.rename(copy.with_name("other.pte"))
    shutil.copy(other.with_name("llava.json"), other.with_name("other.json"))
    with pytest.raises(PackageError, match=r"manifest of llava.pte, not of other.pte"):
        verify(other)


def test_a_changed_golden_record_cannot_be_compared(copy):
    golden = contract.golden_path(copy)
    golden.write_bytes(golden.read_bytes()[:-1] + b"\xff")
    with pytest.raises(PackageError, match=r"llava.golden is not the file that was exported"):
        verify(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.tensor([10**6])}, "golden record's tokens do not fit|another model"),
        ({"ids_before": torch.tensor([], dtype=torch.int64)}, "tokens do not fit"),
        ({"ids_after": torch.full((4000,), 3)}, "tokens do not fit"),
        ({"ids_before": torch.tensor([-1])}, "ids_before has a value that cannot be one"),
        ({"image": torch.zeros(3, 500, 500, dtype=torch.uint8)}, r"image of \[3, 500, 500\] does not fit"),
        ({"image": torch.zeros(1, 50, 50, dtype=torch.uint8)}, r"image of \[1, 50, 50\] does not fit"),
        ({"logits": torch.zeros(3, 4, 5)}, "logits is torch.float32 with 3 dimensions"),
        ({"features": torch.zeros(3, 4)}, "features is torch.float32"),
        ({"extra": torch.zeros(1)}, "not a golden record"),
    ],
)
def test_golden_records_that_fit_no_program_are_refused(change, message, copy):
    """Their checksum is right: somebody made them so."""
    golden = contract.golden_path(copy)
    golden.write_bytes(save({**load(golden.read_bytes()), **change}, metadata={"prompt": "<image>?", "agreed": ""}))
    rewrite_manifest(copy)
    with pytest.raises(PackageError, match=message):
        verify(copy)


@pytest.mark.parametrize(
    "recipe", [{}, {"name": "8da4w"}, {"group_size": "128"}, {"text": "9da9w"}, {"text": "8da8w"}, {"unknown": 1}]
)
def test_a_recipe_that_is_not_the_programs_cannot_be_judged_by(recipe, copy):
    manifest = read_manifest(copy)
    changed = {**manifest.card.recipe, **recipe} if len(recipe) == 1 and "name" not in recipe else recipe
    forged = dataclasses.replace(manifest, card=dataclasses.replace(manifest.card, recipe=changed))
    contract.manifest_path(copy).write_text(forged.to_json())
    with pytest.raises(PackageError, match="recipe"):
        verify(copy)


def test_names_that_are_no_unicode_are_verified_and_printed(tiny_package, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xff[/b]"))
    shutil.copytree(tiny_package.folder, odd)
    done = script("test_pte", odd, odd / "image.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert "n\\udcff[/b]/image.png: What is in the image?" in done.stdout and "PASS" in done.stdout


def test_exit_codes(copy, tmp_path):
    def code(*arguments) -> int:
        return script("test_pte", *arguments).returncode

    assert code(copy) == 0
    assert code(tmp_path / "nothing.pte") == 2
    content = bytearray(copy.read_bytes())
    content[-100] ^= 1
    copy.write_bytes(content)
    assert code(copy) == 1
    manifest = contract.manifest_path(copy)
    manifest.write_bytes(manifest.read_bytes().replace(b'"image_size": ', b'"image_size": 1e', 1))
    assert code(copy) == 2

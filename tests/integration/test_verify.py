"""``test_pte`` passes what was exported and notices whatever was changed since."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llava_export.builtin import SAMPLE_IMAGE
from llava_export.package.manifest import file_record
from llava_export.verify import read_manifest, run
from llava_runner import contract
from llava_runner.errors import PackageError


def verify(program: Path, image: Path | None = None) -> int:
    return run(program, image=image, prompt="What is in the image?")


@pytest.fixture
def copy(tiny_package, tmp_path) -> Path:
    """The program of a package to change."""
    return shutil.copytree(tiny_package.folder, tmp_path / "copy") / "llava.pte"


def rewrite_manifest(program: Path, **changes) -> None:
    """Forge the checksums, as somebody who swaps files would."""
    manifest = read_manifest(program)
    files = {name: file_record(program.parent / name) for name in manifest.files}
    forged = dataclasses.replace(manifest, files=files, **changes)
    contract.manifest_path(program).write_text(forged.to_json())


def test_a_fresh_package_passes_and_answers(tiny_package, capsys):
    assert verify(tiny_package.program, SAMPLE_IMAGE) == 0
    printed = capsys.readouterr().out
    assert "PASS" in printed and "image features" in printed and "token 2" in printed
    assert "The image shows" in printed


@pytest.mark.parametrize("where", [0.3, 0.6, 0.95])
def test_one_changed_byte_fails(where, copy, capsys):
    content = bytearray(copy.read_bytes())
    content[int(len(content) * where)] ^= 1
    copy.write_bytes(content)
    assert verify(copy) == 1
    assert "llava.pte is not the file that was exported" in capsys.readouterr().out


def test_a_program_of_another_checkpoint_fails(copy, package_of, capsys):
    shutil.copy(package_of("plain", "8da4w", partitioners=1).program, copy)
    if copy.stat().st_size >= read_manifest(copy).files["llava.pte"].bytes:
        assert verify(copy) == 1
    else:
        with pytest.raises(PackageError, match="truncated"):
            verify(copy)


def test_other_weights_of_the_same_shape_fail_by_their_answers_alone(tiny_package, copy, tmp_path, package_of, capsys):
    other = package_of("tiny-llava", "8da4w", group_size=64)  # same shapes, so the golden record fits
    golden = contract.golden_path(copy)
    shutil.copy(other.program, copy)
    rewrite_manifest(copy)
    assert verify(copy) == 0  # the same model in another recipe is still the same model

    from safetensors.torch import load_file, save_file

    tensors = load_file(golden)
    tensors["logits"] = tensors["logits"].roll(1, dims=1).contiguous()
    tensors["features"] = tensors["features"].roll(1, dims=0).contiguous()
    save_file(tensors, golden)
    rewrite_manifest(copy)
    capsys.readouterr()
    assert verify(copy) == 1
    printed = capsys.readouterr().out
    assert "image features: cosine" in printed and "prefill: " in printed and "FAIL" in printed


def test_truncated_and_missing_files_cannot_be_run(copy):
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


def test_a_manifest_of_another_program_is_refused(copy):
    other = copy.rename(copy.with_name("other.pte"))
    shutil.copy(other.with_name("llava.json"), other.with_name("other.json"))
    with pytest.raises(PackageError, match=r"manifest of llava.pte, not of other.pte"):
        verify(other)


def test_exit_codes(copy, tmp_path):
    def code(*arguments) -> int:
        return subprocess.run([sys.executable, "-m", "llava_export.verify", *map(str, arguments)]).returncode

    assert code(copy) == 0
    assert code(tmp_path / "nothing.pte") == 2
    content = bytearray(copy.read_bytes())
    content[-100] ^= 1
    copy.write_bytes(content)
    assert code(copy) == 1

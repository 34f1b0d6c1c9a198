"""A language model exported alone: it drafts for a model that sees images, and is nothing to ask about them."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from llava_export.builtin import SAMPLE_IMAGE
from llava_export.cli import benchmark, inspect, verify
from llava_export.cli.flags import UsageError
from llava_export.pte.verify import read_manifest
from llava_runner.errors import PackageError
from llava_runner.program import Program
from llava_runner.session import Session
from tests.doctor import examine
from tests.integration.llava_main import QUESTION, command, packed_files

ALONE = "is a language model without a vision encoder; it can draft for another: --draft-model-path"


def test_a_package_has_a_program_of_two_methods_and_its_tokenizer(language_model):
    manifest = read_manifest(language_model.program)
    assert set(manifest.methods) == {"token_embedding", "text_decoder"} and manifest.card.num_image_tokens == 0
    assert set(manifest.files) == {"llava.pte", "llava.golden", "tokenizer.model", "tokenizer.bin"}


def test_as_a_draft_it_changes_no_answer(llava_main, tiny_package, language_model):
    """Its weights are random, so hardly a guess is right."""
    runs = [
        subprocess.run(command(llava_main, tiny_package.folder, *flags), capture_output=True, text=True)
        for flags in ((), (f"--draft-model-path={language_model.folder}",))
    ]
    assert [done.returncode for done in runs] == [0, 0] and runs[0].stdout == runs[1].stdout
    (line,) = [line.split() for line in runs[1].stderr.splitlines() if " draft = " in line]
    assert int(line[-1]) > 0


def test_it_cannot_be_asked(llava_main, language_model, tmp_path):
    """It is refused before its weights are packed."""
    alone = shutil.copytree(language_model.folder, tmp_path / "alone", ignore=shutil.ignore_patterns("*.packed"))
    flags = [f"--model-path={alone}", f"--prompt={QUESTION}"]
    done = subprocess.run([llava_main, *flags], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == f"error: {alone / 'llava.pte'} {ALONE}\n"
    assert packed_files(alone) == []
    with pytest.raises(PackageError, match=ALONE):
        Session.load(language_model.folder, engine="python")


def test_programs_that_show_it_an_image_are_told(native_build, language_model):
    flags = ["--packed-cache-path=off", f"--image={SAMPLE_IMAGE}"]
    for flag, code in ((None, 0), (flags[-1], 2)):
        timed = [native_build / "llava_bench", f"--model-path={language_model.program}", flags[0], "--depth=8"]
        done = subprocess.run([*timed, *([flag] if flag else [])], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
    assert "without a vision encoder, which reads no image" in done.stderr
    pixels = np.zeros((3, 2, 2), np.uint8)
    with pytest.raises(PackageError, match="without a vision encoder, which reads no image"):
        Program.open(language_model.program).encode_image(pixels)
    with pytest.raises(UsageError, match="is a language model without images"):
        benchmark.program_and_work(benchmark.build_parser().parse_args([str(language_model.folder)]))


def test_verify_compares_its_logits(language_model, capsys):
    assert verify.run(verify.build_parser().parse_args([str(language_model.folder)])) == 0
    printed = capsys.readouterr().out
    assert "PASS" in printed and "token 2" in printed and "image features" not in printed
    flags = ["--against", "tiny-llava"]
    with pytest.raises(PackageError, match="--against asks about pictures"):
        verify.run(verify.build_parser().parse_args([str(language_model.folder), *flags]))


def test_inspect_and_doctor_say_that_it_sees_no_images(language_model, capsys):
    inspect.run(inspect.build_parser().parse_args([str(language_model.folder)]))
    printed = " ".join(capsys.readouterr().out.split())
    assert "images none: a language model" in printed and "vision" not in printed
    code, printed = examine(language_model.folder, capsys=capsys)
    assert code == 0 and "images none: a language model" in printed and "text 8da4w, embedding_bits 8" in printed

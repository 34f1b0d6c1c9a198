"""Packages are compared with their checkpoints, by transformers where it can, and what differs is found."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from llava_export.builtin import CHECKPOINTS, SAMPLE_IMAGE
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.processor import Processor
from llava_export.cli import verify
from llava_export.pte.against import Conversation, conversations, original_of, pictures
from llava_export.pte.golden import GoldenRecord
from llava_export.recipe import RECIPES
from llava_runner.contract import ModelCard
from llava_runner.errors import PackageError, PromptError
from llava_runner.program import Program
from llava_runner.tokenizer_file import load_tokenizer

THRESHOLDS = RECIPES["8da4w"].thresholds


def run(*flags: object) -> int:
    return verify.run(verify.build_parser().parse_args(list(map(str, flags))))


@pytest.mark.parametrize(
    ("name", "original", "agreed"),
    [
        ("tiny-llava", "the model and processor of transformers", "LlavaProcessor"),
        ("tiny-mobilevlm", "the float model of this project", "LlamaTokenizer"),
    ],
)
def test_a_package_answers_as_its_checkpoint(name, original, agreed, package_of, capsys):
    package = package_of(name)
    assert run(package.folder, "--against", name, "--image", SAMPLE_IMAGE) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"against {name}: {original}" in printed and "PASS" in printed
    assert printed.count("question 2") == 4 and "its left half" in printed
    assert GoldenRecord.load(package.folder / "llava.golden").agreed.endswith(agreed)


def compared(package, **changes: Any) -> list[Conversation]:
    """Return the conversations of a program whose card has other values."""
    program = Program.open(package.program)
    program.card = replace(program.card, **changes)
    checkpoint = open_checkpoint("tiny-llava")
    processor = Processor.open(checkpoint)
    card = program.card
    original = original_of(checkpoint, processor, max_context_len=card.max_context_len, eos_ids=card.eos_ids)
    tokenizer = load_tokenizer(package.folder / "tokenizer.model")
    return list(conversations(program, tokenizer, original=original, processor=processor, pictures=pictures(None)[1:2]))


def card_of(package) -> ModelCard:
    return Program.open(package.program).card


def test_other_tokens_are_found(tiny_package):
    rules = replace(card_of(tiny_package).tokenizer, prepend_scheme="always")
    (found,) = compared(tiny_package, tokenizer=rules)
    assert "its left half: transformers reads 'What is in the image?' as" in found.failures[0]


def test_pictures_that_are_prepared_otherwise_are_found(tiny_package):
    (found,) = compared(tiny_package, image_aspect_ratio="crop")
    assert found.features is not None and found.features.failures(THRESHOLDS) and not found.failures


def test_another_checkpoint_is_found(tiny_package, checkpoint_of, tmp_path, capsys):
    with pytest.raises(PackageError, match="has 16 image tokens of width 256 and 576 tokens; the package has 64"):
        run(tiny_package.folder, "--against", checkpoint_of("plain"))
    tuned = shutil.copytree(CHECKPOINTS["tiny-llava"], tmp_path / "tuned")
    tensors = load_file(tuned / "model.safetensors")
    tensors["language_model.lm_head.weight"] = tensors["language_model.lm_head.weight"].flip(0).contiguous()
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    assert run(tiny_package.folder, "--against", tuned) == 1
    assert "FAIL" in capsys.readouterr().out


def test_a_context_that_is_too_short_is_told(tiny_package):
    with pytest.raises(PromptError, match="a context of 120 positions is too short for two questions"):
        compared(tiny_package, max_context_len=120, max_seq_len=100)


def test_flags_that_do_not_go_together(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"")
    with pytest.raises(PackageError, match="--against are for packages"):
        run(tmp_path, "--against", "tiny-llava")

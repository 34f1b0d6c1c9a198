"""A program and its recipe, measured on the same text: the program reads tokens, the recipe is computed in torch."""

from __future__ import annotations

import pytest
import torch

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.cli import evaluate
from llava_export.errors import CorpusError
from llava_export.evaluate.text import evaluate_program, evaluate_recipe
from llava_export.recipe import Recipe
from llava_runner.errors import PackageError
from llava_runner.program import Program

TEXT = "The image shows a blue circle, a red triangle and a purple square. How many things are there? Three. " * 20


def test_program_and_recipe_agree(tiny_package):
    checkpoint = open_checkpoint(tiny_package.model)
    program = Program.open(tiny_package.program)
    generator = torch.Generator().manual_seed(0)
    windows = [torch.randint(3, checkpoint.config.text.vocab_size, (64,), generator=generator) for _ in range(3)]
    recipe = Recipe.from_dict(program.card.recipe)
    by_recipe = evaluate_recipe(checkpoint, recipe, windows)
    by_program = evaluate_program(program, checkpoint, windows)
    assert by_program.float_perplexity == by_recipe.float_perplexity
    assert by_program.kl.value == pytest.approx(by_recipe.kl.value, rel=0.1) and by_program.kl.value > 1e-3
    assert by_program.perplexity.value == pytest.approx(by_recipe.perplexity.value, rel=0.05)
    assert by_program.top1.value == pytest.approx(by_recipe.top1.value, abs=0.05)


def test_a_window_is_no_longer_than_the_programs_context(tiny_package):
    program = Program.open(tiny_package.program)
    windows = [torch.ones(program.card.max_context_len + 1, dtype=torch.int64)]
    with pytest.raises(CorpusError, match=f"longer than the {program.card.max_context_len} positions of the program's"):
        evaluate_program(program, open_checkpoint(tiny_package.model), windows)


def test_the_command_measures_a_package(tiny_package, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    flags = [tiny_package.folder, "--text", text, "--against", tiny_package.model, "--windows", 2, "--window-len", 32]
    evaluate.run(evaluate.build_parser().parse_args(list(map(str, flags))))
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{tiny_package.folder}, recipe 8da4w" in printed and "2 windows of 32 tokens" in printed


def test_a_package_of_another_checkpoint_is_refused(tiny_package, checkpoint_of, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    flags = [tiny_package.folder, "--text", text, "--against", checkpoint_of("padded_vocabulary"), "--window-len", 32]
    with pytest.raises(PackageError, match="the package is not of"):
        evaluate.run(evaluate.build_parser().parse_args(list(map(str, flags))))

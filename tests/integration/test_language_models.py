"""Programs of Mistral, Qwen2 and Phi-3 with 4 bits: verified, described and checked, and all runners agree."""

from __future__ import annotations

import subprocess

import pytest
from sentencepiece import SentencePieceProcessor

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.config import TextConfig
from llava_export.pte.read.describe import OUTPUT_HEAD, card_of, linear_names
from llava_export.pte.read.program import read_pte
from llava_export.pte.verify import compare, judge, read_manifest
from llava_runner.session import Session
from tests.commands import llava_here
from tests.doctor import examine
from tests.integration.parity import QUESTIONS, clear_length, multimodal_pieces

SHAPES = ("mistral", "qwen2", "phi3")
NEW_TOKENS = 6


def config_of(package) -> TextConfig:
    """Return the decoder's sizes of the checkpoint that a package was made from."""
    return open_checkpoint(package.model).config.text


@pytest.mark.parametrize("shape", SHAPES)
def test_a_program_is_near_the_float_model(shape, package_of):
    package = package_of(shape)
    manifest = read_manifest(package.program)
    assert judge(compare(package.program, manifest), manifest) == []
    for report in package.exported.reports:
        assert report.unexplained == []


@pytest.mark.parametrize("shape", SHAPES)
def test_all_runners_give_the_same_tokens(shape, package_of, llava_main, capfd):
    """Random weights often choose between tokens that are nearly as likely, so answers are compared up to there."""
    package = package_of(shape).folder
    session = Session.load(package)
    pieces_of = SentencePieceProcessor(model_file=str(package / "tokenizer.model"))
    compared = by_executorch = 0
    for question in QUESTIONS:
        count = clear_length(session, package / "image.png", question, new_tokens=NEW_TOKENS)
        if count == 0:
            continue
        expected = session.ask(package / "image.png", question, max_new_tokens=count)
        files = [f"--model-path={package}/llava.pte", f"--image={package}/image.png", "--packed-cache-path=off"]
        limit = f"--max-new-tokens={count}"
        done = subprocess.run([llava_main, *files, limit, f"--prompt={question}"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, expected + "\n"), (question, count, done.stderr)
        compared += count
        assert session.last is not None
        if max(session.last.ids) < pieces_of.vocab_size():  # its tokenizer has no names for unused rows
            found = multimodal_pieces(package, session.card.prompt, question, new_tokens=count)
            texts = [pieces_of.id_to_piece(token).replace("\u2581", " ") for token in session.last.ids]
            assert found == [text.replace("<0x0A>", "\n") for text in texts]  # of bytes it turns this alone to text
            by_executorch += count
    assert compared >= NEW_TOKENS and by_executorch


@pytest.mark.parametrize("shape", SHAPES)
def test_linears_of_a_program_are_named(shape, package_of):
    package = package_of(shape)
    found, text = read_pte(package.program), config_of(package)
    named = {name: part for part, name in linear_names(found, card_of(found)).items()}
    qkv = (text.num_attention_heads + 2 * text.num_key_value_heads) * text.head_dim
    assert named["q/k/v"].shape == (text.hidden_size, qkv)
    assert named["attention output"].shape == (text.num_attention_heads * text.head_dim, text.hidden_size)
    assert any(OUTPUT_HEAD in name for name in named)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (
            "mistral",
            "Mistral, 2 layers of 256, 6 heads (2 of keys and values), 576 tokens, 131072 positions, a window of 768",
        ),
        ("qwen2", "Qwen2, 4 layers of 256, 4 heads (2 of keys and values), 576 tokens, 32768 positions"),
        ("phi3", "Phi-3, 2 layers of 384, 4 heads, 576 tokens, 4096 positions"),
    ],
)
def test_commands_speak_of_the_language_model(shape, said, checkpoint_of, capsys):
    assert f"language model {said} config.json" in examine(checkpoint_of(shape), capsys=capsys)[1]
    done = llava_here("export", "--model", checkpoint_of(shape), "--dry-run")
    assert done.returncode == 0 and "context 768" in done.stdout, done.stderr
    if shape == "mistral":
        done = llava_here("export", "--model", checkpoint_of(shape), "--dry-run", "--max-context-len", "769")
        assert done.returncode == 2 and "the window of 768 positions" in done.stderr

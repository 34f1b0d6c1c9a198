"""The small language model that is trained to draft for the built-in models."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
import transformers

from llava_export.builtin import CHECKPOINTS
from llava_export.checkpoint.checkpoint import open_language_model
from llava_runner.errors import UserError
from training.draft import build_parser, run
from training.draft_stage import SIZES, train, validate
from training.model import TEXT
from training.tokenizer import Tokenizer

STEPS = 40


@pytest.fixture(scope="module")
def draft(tmp_path_factory) -> Path:
    """Train a draft a little. Return its folder."""
    folder = tmp_path_factory.mktemp("draft")
    train(folder, seed=0, steps=STEPS)
    return folder


def test_a_folder_with_files_in_it_is_left_alone(tmp_path):
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        run(build_parser().parse_args(["--output", str(tmp_path)]))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def share_right(folder: Path) -> float:
    model = transformers.LlamaForCausalLM.from_pretrained(folder).float()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return validate(model, tokenizer=Tokenizer(pieces, num_image_tokens=0))


def test_it_learns_how_answers_are_worded(draft, tmp_path):
    train(tmp_path, seed=0, steps=1)
    assert share_right(tmp_path) < 0.1 and share_right(draft) > 0.5


def test_the_same_seed_gives_the_same_draft(draft, tmp_path):
    train(tmp_path, seed=0, steps=STEPS)
    names = sorted(path.name for path in draft.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir()) and "model.safetensors" in names
    assert all((tmp_path / name).read_bytes() == (draft / name).read_bytes() for name in names)


def test_an_export_takes_it(draft):
    checkpoint = open_language_model(str(draft))
    text = checkpoint.config.text
    assert (text.hidden_size, text.num_hidden_layers) == (SIZES["hidden_size"], SIZES["num_hidden_layers"])


def test_it_has_the_tokenizer_of_every_model_and_computes_much_less(draft):
    for folder in CHECKPOINTS.values():
        assert (draft / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()
    assert 20 * multiplications(SIZES) < multiplications(TEXT)


def multiplications(sizes: dict) -> int:
    """Return how many a token takes in the linears."""
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    return sizes["num_hidden_layers"] * (4 * width * width + 3 * width * inner) + width * sizes["vocab_size"]

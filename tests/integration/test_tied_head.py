"""A program whose head is stored as the token embedding: what is in it, and that every runner takes it."""

from __future__ import annotations

import json
import shutil

import pytest
from sentencepiece import SentencePieceProcessor

from llava_export.checkpoint.locate import locate
from llava_export.pte.read.program import read_pte
from llava_export.pte.verify import compare, judge, read_manifest
from llava_runner import contract
from llava_runner.session import Session
from tests.integration.conftest import SEVERAL_SCHEMES, Package
from tests.integration.llava_main import PACKING, ask
from tests.integration.parity import QUESTIONS, clear_length, multimodal_pieces

NEW_TOKENS = 8


@pytest.fixture(scope="module")
def tied(package_of) -> Package:
    """Return the package with a tied head that the tests of stamping use."""
    return package_of("deep_with_biases_and_tied_head", **SEVERAL_SCHEMES)


def test_the_head_is_found_once_and_belongs_to_both_methods(tied):
    text = json.loads((locate(tied.model) / "config.json").read_text())["text_config"]
    rows, columns = text["vocab_size"], text["hidden_size"]
    found = read_pte(tied.program)
    (head,) = (part for part in found.parts if contract.TOKEN_EMBEDDING in part.methods)
    assert head.methods == (contract.TEXT_DECODER, contract.TOKEN_EMBEDDING)
    assert (head.shape, head.stored_as, head.times) == ((columns, rows), "int8 per channel", 1)
    assert head.bytes == rows * columns + 4 * rows
    assert sum(part.bytes for part in found.parts) == found.bytes == tied.program.stat().st_size


def test_the_program_is_near_the_float_model(tied):
    manifest = read_manifest(tied.program)
    assert manifest.card.recipe["head"] == "8da8w"
    assert judge(compare(tied.program, manifest), manifest) == []


def test_all_runners_give_the_same_answer(tied, llava_main, tmp_path, capfd):
    package = shutil.copytree(tied.folder, tmp_path / "package", ignore=shutil.ignore_patterns("*.packed"))
    session = Session.load(package)
    image = package / "image.png"
    clear = {it: clear_length(session, image, it, new_tokens=NEW_TOKENS) for it in QUESTIONS}
    question = max(clear, key=lambda it: clear[it])
    assert clear[question]
    expected = session.ask(image, question, max_new_tokens=clear[question])
    asked = f"--prompt={question}", f"--max-new-tokens={clear[question]}"
    for packs, flags in ((None, ["--packed-cache-path=off"]), (PACKING, []), (None, [])):
        assert ask(llava_main, package, *asked, *flags) == (expected + "\n", [packs] if packs else [])

    pieces = multimodal_pieces(package, session.card.prompt, question, new_tokens=clear[question])
    vocabulary = SentencePieceProcessor(model_file=str(package / "tokenizer.model"))
    assert session.last is not None
    # An answer of random weights may have bytes that are no text, and the runners spell those differently.
    texts = [vocabulary.id_to_piece(token).replace("\u2581", " ") for token in session.last.ids]
    assert pieces == [text.replace("<0x0A>", "\n") for text in texts]  # of bytes it turns this alone to text

"""Whole conversations become the ids that transformers' processor makes of them, for the checkpoint's own settings."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoProcessor

from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.contract import ModelCard
from llava_runner.prompt import question_chunks
from llava_runner.tokenizer import Tokenizer
from tests.chat_templates import TEMPLATES
from tests.checkpoints import TINY_LLAVA
from tests.conversations import Asked, card_of, conversations, processor_ids, with_template

IMAGE = 512  # the id of <image> in tiny-llava


def assert_same_ids(expected: list[int], turns: list[Asked], *, tokenizer: ChatTokenizer, card: ModelCard) -> None:
    """Compare turn by turn. An answer's own ids are the model's: it is what stands between two turns."""
    at = 0
    for i, turn in enumerate(turns):
        chunks = question_chunks(turn.question, template=card.prompt, num_images=int(turn.has_image), first_turn=i == 0)

        def ids_after(before: int | None, chunks: tuple = chunks) -> list[int]:
            first, *rest = tokenizer.encode_turn(chunks, before=before)
            return [*first, *(i for chunk in rest for i in (IMAGE, *chunk))]

        if i == 0:
            ids = ids_after(None)
        else:
            start = at
            for at in range(start + 1, len(expected)):
                if expected[at:][: len(ids := ids_after(expected[at - 1]))] == ids:
                    break
        assert expected[at : at + len(ids)] == ids, (i, turn)
        at += len(ids)
    assert at == len(expected)


@pytest.mark.parametrize("scheme", ["first", "always", "never", "prepend"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_of_conversations_are_the_processors(name, scheme, tmp_path):
    folder = with_template(tmp_path / "model", name, prepend_scheme=scheme, rstrip=scheme == "first")
    processor = AutoProcessor.from_pretrained(folder)
    card, model = card_of(folder, prompt_template="llava_hf" if name == "llava_hf" else None)
    tokenizer = ChatTokenizer.of(card, Tokenizer.from_model(model))
    for turns in conversations(34, seed=len(name)):
        expected = processor_ids(processor, turns, num_image_tokens=64)
        assert_same_ids(expected, turns, tokenizer=tokenizer, card=card)


def test_the_built_in_models_ids_are_the_processors():
    processor = AutoProcessor.from_pretrained(TINY_LLAVA)
    card, model = card_of(TINY_LLAVA)
    tokenizer = ChatTokenizer.of(card, Tokenizer.from_model(model))
    for turns in conversations(20, seed=0):
        assert_same_ids(processor_ids(processor, turns, num_image_tokens=64), turns, tokenizer=tokenizer, card=card)


@pytest.mark.parametrize("scheme", ["first", "prepend"])
def test_added_tokens_take_spaces_as_they_say(scheme, tmp_path):
    folder = with_template(tmp_path / "model", "inst", prepend_scheme=scheme)
    path = folder / "tokenizer.json"
    settings = json.loads(path.read_text())
    for i, (content, flags) in enumerate(
        {
            "[L]": {"lstrip": True},
            "[R]": {"rstrip": True},
            "[LR]": {"lstrip": True, "rstrip": True, "special": True},
            "[N]": {"normalized": True},
            "[N][R]": {"normalized": True, "lstrip": True},
            "[LR][LR]": {},
            "the": {},
        }.items()
    ):
        token = {"id": 515 + i, "content": content, "single_word": False}
        token |= dict.fromkeys(("lstrip", "rstrip", "special", "normalized"), False) | flags
        settings["added_tokens"].append(token)
    path.write_text(json.dumps(settings))
    processor = AutoProcessor.from_pretrained(folder)
    card, model = card_of(folder)
    tokenizer = ChatTokenizer.of(card, Tokenizer.from_model(model))
    added = {token.id: token.content for token in card.tokenizer.added_tokens}
    for content in ("[L]", "[R]", "[N]", "[N][R]", "[SEG]", "the"):
        for text in (content, f"a {content} b", f"{content}\n\n x", f"\u3000 {content}{content} ", f"a{content}b"):
            turns = [Asked(text, has_image=text.startswith("a"), answer="")]
            assert_same_ids(processor_ids(processor, turns, num_image_tokens=64), turns, tokenizer=tokenizer, card=card)
    assert {"[L]", "[R]", "[LR]", "[N]", "[SEG]", "the"} <= set(added.values())


def test_special_tokens_in_a_users_text_are_text(tmp_path):
    card, model = card_of(with_template(tmp_path / "model", "phi3"))
    tokenizer = ChatTokenizer.of(card, Tokenizer.from_model(model))
    special = {token.id for token in card.tokenizer.added_tokens if token.special}
    template_ids = [2, *special]
    for text in ("</s>", "<|end|>", "<|user|>\nx<|end|>", "a<image>b", "<s>", "<pad><unk>", "<|end|"):
        (ids,) = tokenizer.encode_turn(question_chunks(text, template=card.prompt, num_images=0, first_turn=False))
        asked = "".join(tokenizer.decode_piece(i).decode(errors="replace") for i in ids if i not in special)
        assert text in asked
        assert [i for i in ids if i in template_ids] == [card.bos_id, 516, 514, 516, 515]


def test_added_tokens_of_every_file(tmp_path):
    """Only the id is said by added_tokens.json; rows of the vocabulary between are unused."""
    folder = tmp_path / "model"
    shutil.copytree(TINY_LLAVA, folder)
    (folder / "added_tokens.json").write_text(json.dumps({"[BOX]": 560, "[/BOX]": 571}))
    card, model = card_of(folder)
    tokenizer = ChatTokenizer.of(card, Tokenizer.from_model(model))
    text = "a[BOX]b [/BOX]"
    (ids,) = tokenizer.encode_turn(question_chunks(text, template=card.prompt, num_images=0, first_turn=True))
    assert ids.count(560) == ids.count(571) == 1
    assert tokenizer.decode_piece(560) == b"[BOX]" and tokenizer.decode_piece(571) == b"[/BOX]"
    (ids,) = tokenizer.encode_turn(question_chunks("[PAD561]", template=card.prompt, num_images=0, first_turn=True))
    assert 561 not in ids and tokenizer.decode_piece(561) == tokenizer.decode_piece(575) == b""
    assert card.tokenizer_vocab_size == 572

"""Checkpoints with a byte-level BPE: what is read of them, their prompts, their GGUF vocabulary, what is refused."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llava_export.checkpoint.byte_level import ByteLevelTokenizer
from llava_export.checkpoint.chat_template import SpecialTokens, chat_prompt, read_template
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.checkpoint_tokenizer import CheckpointTokenizer
from llava_export.checkpoint.prompt import find_prompt
from llava_export.checkpoint.tokenizer import open_tokenizer
from llava_export.errors import CheckpointError, ExportError
from llava_export.families.prompts import CHATML, LLAMA3, QWEN
from llava_export.gguf.vocabulary import pre_tokenizer, token_types
from llava_runner.bpe_model import Digits, Split, read_bpe
from llava_runner.documents import JsonObject
from llava_runner.prompt import question_chunks
from tests import chat_templates
from tests.byte_level import BYTE_LEVEL_CHECKPOINTS, KINDS, TEXTS, WORDS, write_tokenizer
from tests.checkpoints import TINY_LLAVA

ROWS = 1280
TEMPLATE = {"type": "TemplateProcessing"}


def opened(folder: Path, *, rows: int = ROWS) -> ByteLevelTokenizer:
    """Open the tokenizer in a folder, as one in the layout of LLaVA's authors."""
    tokenizer = open_tokenizer(folder, vocab_size=rows, chunks_are_texts=True)
    assert isinstance(tokenizer, ByteLevelTokenizer)
    return tokenizer


def changed(path: Path, **values: Any) -> None:
    """Change values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("name", KINDS)
def test_a_tokenizer_is_what_transformers_makes_of_its_files(name, tmp_path):
    write_tokenizer(tmp_path, name)
    tokenizer, theirs = opened(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.vocab_size == len(theirs)
    assert tokenizer.bos_id == (-1 if theirs.bos_token_id is None else theirs.bos_token_id)
    assert tokenizer.eos_id == theirs.eos_token_id
    assert {it.content: it.id for it in tokenizer.rules.added_tokens} == theirs.get_added_vocab()
    assert tokenizer.rules.adds_bos == (theirs("x")["input_ids"][0] == theirs.bos_token_id) == KINDS[name].begins
    assert tokenizer.files == {"tokenizer.json": (tmp_path / "tokenizer.json").read_bytes()}
    for token_id in range(tokenizer.vocab_size):
        assert tokenizer.text(token_id) == theirs.decode([token_id])
    assert tokenizer.text(tokenizer.vocab_size) == ""


def test_added_tokens_of_all_files_count(tmp_path):
    write_tokenizer(tmp_path, "qwen2")
    size = opened(tmp_path).vocab_size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[SEG]": size + 2}))
    changed(
        tmp_path / "tokenizer_config.json",
        added_tokens_decoder={size: {"content": "<seg>", "special": True}},
        sep_token="[SEP]",
        pad_token="!",
    )
    tokenizer = opened(tmp_path)
    added = {it.content: it.id for it in tokenizer.rules.added_tokens}
    assert (added["<seg>"], added["[SEG]"], added["[SEP]"]) == (size, size + 2, size + 3)
    assert added["!"] == tokenizer.model.vocab["!"] and tokenizer.vocab_size == size + 4
    chat = tokenizer.chat_tokenizer(bos_id=0)
    assert chat.decode_piece(size + 2) == b"[SEG]" and chat.decode_piece(size) == b""


def test_special_tokens_beyond_the_rows_are_left_out(tmp_path):
    write_tokenizer(tmp_path, "llama3")
    size = opened(tmp_path).vocab_size
    tokenizer = opened(tmp_path, rows=size - 1)
    assert tokenizer.vocab_size == size - 1 and "'<image>' is left out" in tokenizer.notes[0]
    assert tokenizer.base().with_added(tokenizer.rules.added_tokens).vocab_size == size - 1
    with pytest.raises(CheckpointError, match="belongs to another model"):
        opened(tmp_path, rows=900)


TEMPLATES = {
    "llama3": (chat_templates.LLAMA3, "llama3", LLAMA3),
    "qwen2": (chat_templates.CHATML.replace("You are kind.", "You are a helpful assistant."), "qwen2", QWEN),
    "smollm2": (chat_templates.CHATML, "smollm2", CHATML),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_prompts_have_the_tokens_that_transformers_makes_of_its_template(case, tmp_path):
    template, kind, named = TEMPLATES[case]
    write_tokenizer(tmp_path, kind)
    (tmp_path / "chat_template.jinja").write_text(template)
    theirs, tokenizer = AutoTokenizer.from_pretrained(tmp_path), opened(tmp_path)
    tokens = SpecialTokens(
        bos=tokenizer.begin(max(0, tokenizer.bos_id)),
        eos=tokenizer.text(tokenizer.eos_id),
        image="<image>",
        others=[token.content for token in tokenizer.rules.added_tokens if token.special],
    )
    prompt = chat_prompt(read_template(tmp_path / "chat_template.jinja"), tokens=tokens)
    chat = tokenizer.chat_tokenizer(bos_id=max(0, tokenizer.bos_id))
    generator = random.Random(2)
    image = theirs.convert_tokens_to_ids("<image>")
    asked = [word for word in WORDS if word not in theirs.get_added_vocab()]
    for has_image in (True, False):
        for text in (*TEXTS, *("x ".join(generator.choices(asked, k=4)) for _ in range(50))):
            content: Any = [{"type": "image"}] * has_image + [{"type": "text", "text": text}]
            expected = theirs.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            ids = theirs(expected, add_special_tokens=False)["input_ids"]
            chunks = question_chunks(text, template=prompt.template, num_images=int(has_image), first_turn=True)
            found = chat.encode_turn(chunks)
            assert [i for n, chunk in enumerate(found) for i in ((image,) * (n > 0) + tuple(chunk))] == ids, repr(text)
    turns = [
        question_chunks("and then?", template=it.template, num_images=1, first_turn=False) for it in (prompt, named)
    ]
    assert chat.encode_turn(turns[0]) == chat.encode_turn(turns[1])


@pytest.mark.parametrize("name", KINDS)
def test_gguf_tokens_are_spelled_as_in_the_vocabulary(name, tmp_path):
    write_tokenizer(tmp_path, name)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    spelled = {token_id: text for text, token_id in theirs.get_vocab().items()}
    tokens = token_types(opened(tmp_path), vocab_size=ROWS)
    added = set(theirs.get_added_vocab().values())
    assert len(tokens) == ROWS
    for i, (text, _, kind) in enumerate(tokens):
        assert text == spelled.get(i, f"[PAD{i}]")
        expected = TokenType.CONTROL if i in added else TokenType.NORMAL if i in spelled else TokenType.UNUSED
        assert kind == expected


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("llama3", {}, "llama-bpe"),
        ("llama3", {"ignore_merges": False}, "smaug-bpe"),
        ("qwen2", {}, "qwen2"),
        ("gpt2", {}, "gpt-2"),
        ("smollm2", {}, "smollm"),
    ],
)
def test_the_name_of_the_pre_tokenizer(name, changes, expected, tmp_path):
    document = write_tokenizer(tmp_path, name)
    document["model"].update(changes)
    assert pre_tokenizer(read_bpe(JsonObject(document, what="x", error=CheckpointError))) == expected


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "message"),
    [
        ((Split("[a-z]+"),), False, r"splits text by '\[a-z\]\+', .* takes merges"),
        ((Digits(individual=False),), False, r"Digits\(False\)"),
        ((), True, "tokens as a whole"),
    ],
)
def test_a_way_to_split_that_llama_cpp_has_no_name_for_is_refused(steps, ignore_merges, message, tmp_path):
    write_tokenizer(tmp_path, "gpt2")
    model = replace(opened(tmp_path).model, steps=steps, ignore_merges=ignore_merges)
    with pytest.raises(ExportError, match=message):
        pre_tokenizer(model)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("tokenizer_config.json", {"add_prefix_space": True}, "add_prefix_space in .* is true"),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Metaspace"}}, "pre_tokenizer Metaspace .* is not supported"),
        ("tokenizer.json", {"post_processor": {"type": "RobertaProcessing"}}, "post_processor RobertaProcessing"),
        (
            "tokenizer.json",
            {"post_processor": {**TEMPLATE, "single": [{"SpecialToken": {"id": "<none>"}}, {"Sequence": {}}]}},
            "begins texts with '<none>', no token",
        ),
        (
            "tokenizer.json",
            {"post_processor": {**TEMPLATE, "single": [{"Sequence": {}}, {"SpecialToken": {"id": "x"}}]}},
            "may put one token before a text",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"300": {"content": "<new>", "special": True}}},
            "another token of that id or text",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9999": {"content": "[A]"}}}, "the id 9999, and the"),
    ],
)  # fmt: skip
def test_what_the_runners_do_not_have_is_refused(file, values, message, tmp_path):
    write_tokenizer(tmp_path, "smollm2")
    changed(tmp_path / file, **values)
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path)


def test_files_of_the_slow_tokenizer_alone_are_refused_with_the_way_to_make_the_other(tmp_path):
    write_tokenizer(tmp_path, "gpt2")
    (tmp_path / "tokenizer.json").rename(tmp_path / "vocab.json")
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(CheckpointError, match=r"vocab\.json and merges\.txt but no tokenizer\.json.*save_pretrained"):
        opened(tmp_path)


def test_tokenizers_of_sentencepiece_are_read_as_before(tmp_path):
    def kind(tokenizer: CheckpointTokenizer) -> str:
        return f"{type(tokenizer).__name__} of {tokenizer.source}"

    found = open_tokenizer(TINY_LLAVA, vocab_size=576, chunks_are_texts=False)
    assert kind(found) == "SentencePieceTokenizer of tokenizer.model"
    (tmp_path / "tokenizer.json").write_bytes((TINY_LLAVA / "tokenizer.json").read_bytes())
    found = open_tokenizer(tmp_path, vocab_size=576, chunks_are_texts=False)
    assert kind(found) == "SentencePieceTokenizer of tokenizer.json"
    write_tokenizer(tmp_path, "llama3")
    (tmp_path / "tokenizer.model").write_bytes(b"a foreign file")  # as Meta's own tokenizer.model is one
    assert kind(opened(tmp_path)) == "ByteLevelTokenizer of tokenizer.json"


@pytest.mark.parametrize(
    ("name", "bos", "eos"),
    [
        ("byte_level_llama3", "<|begin_of_text|>", ["<|eot_id|>"]),
        ("byte_level_qwen2", "<|im_end|>", ["<|im_end|>"]),  # it has none, but a program must name one
        ("byte_level_gpt2", "<|endoftext|>", ["<|endoftext|>"]),
        ("byte_level_smollm2", "<|im_start|>", ["<|im_end|>"]),
    ],
)
def test_what_begins_and_ends_texts(name, bos, eos, checkpoint_of):
    checkpoint = open_checkpoint(str(checkpoint_of(name)))
    tokenizer, config = checkpoint.tokenizer, checkpoint.config
    assert tokenizer.text(config.bos_id) == bos and list(map(tokenizer.text, config.eos_ids)) == eos
    assert tokenizer.begin(config.bos_id) == ("" if name == "byte_level_qwen2" else bos)
    prompt = find_prompt(checkpoint)
    (ids,) = tokenizer.chat_tokenizer(bos_id=config.bos_id).encode_turn(
        question_chunks("hi", template=prompt.template, num_images=0, first_turn=True)
    )
    assert ids.count(config.bos_id) == {"llama3": 1, "qwen2": 2, "gpt2": 0, "smollm2": 3}[BYTE_LEVEL_CHECKPOINTS[name]]


def test_a_config_that_names_the_token_of_an_end_as_begin_keeps_it(checkpoint_of, tmp_path):
    """As Qwen's do: its texts begin with no token, and <|endoftext|> may end an answer."""
    folder = Path(shutil.copytree(checkpoint_of("byte_level_qwen2"), tmp_path / "model"))
    theirs = AutoTokenizer.from_pretrained(folder)
    end, turn = map(theirs.convert_tokens_to_ids, ("<|endoftext|>", "<|im_end|>"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["bos_token_id"] = end
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [turn, end]}))
    found = open_checkpoint(str(folder)).config
    assert found.bos_id == end and set(found.eos_ids) == {turn, end}

"""Which tokens begin a conversation and end an answer where files disagree, and how answers are sampled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig

from llava_export.builtin import CHECKPOINTS
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.checkpoint.generation import TOP_K
from llava_export.checkpoint.prompt import find_prompt, stop_ids
from llava_export.errors import CheckpointError, ConfigError
from llava_runner.contract import MAX_VOCAB, GenerationDefaults
from tests.checkpoints import TINY_LLAVA
from tests.conversations import with_template

STRIPS = {"__type": "AddedToken", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(TINY_LLAVA, tmp_path / "model"))


def changed(path: Path, **values: object) -> None:
    """Change values in a JSON file, at its top or in ``text_config``."""
    content = json.loads(path.read_text())
    content.get("text_config", content).update(values)
    path.write_text(json.dumps(content))


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (2, [2, 77], (2, 77)),
        ([9, 2], [77], (9, 2, 77)),
        (33, 44, (33, 44, 2)),  # the tokenizer's own, too
        (33, None, (33, 2)),
        ([1, 5], None, (5, 2)),  # what begins a text does not end it
    ],
)
def test_any_end_that_a_file_names_ends_an_answer(config, generation, expected, folder):
    changed(folder / "config.json", eos_token_id=config)
    changed(folder / "generation_config.json", eos_token_id=generation)
    assert opened(folder).config.eos_ids == expected and opened(folder).notes == ()


@pytest.mark.parametrize(("bos", "eos", "pad"), [(0, 1, -1), (5, 6, 7), (3, [1, 4], None)])
def test_the_tokenizers_ids_count_where_an_old_config_has_others(bos, eos, pad, folder):
    changed(folder / "config.json", bos_token_id=bos, eos_token_id=eos, pad_token_id=pad)
    checkpoint = opened(folder)
    assert (checkpoint.config.bos_id, checkpoint.config.eos_ids) == (1, (2,))
    (note,) = checkpoint.notes
    assert f"begins a text with the id {bos}" in note and "the tokenizer's are 1 and 2, which are used" in note


def test_the_names_of_special_tokens_may_be_other_ones(folder):
    changed(folder / "tokenizer_config.json", bos_token={"content": "<image>"}, eos_token="<pad>")
    checkpoint = opened(folder)
    assert (checkpoint.config.bos_id, checkpoint.config.eos_ids) == (512, (2, 513))


@pytest.mark.parametrize("eos", [576, [2, -1], [], "2", [2.0], [[2]]])
def test_odd_ids_in_generation_config_are_refused(eos, folder):
    changed(folder / "generation_config.json", eos_token_id=eos)
    with pytest.raises((CheckpointError, ConfigError), match=r"eos_token_id"):
        opened(folder)


def test_no_more_ends_than_a_runner_takes(folder):
    for count in (64, 65):
        changed(folder / "generation_config.json", eos_token_id=list(range(2, count + 2)))
        checkpoint = opened(folder)
        if count == 64:
            assert len(stop_ids(find_prompt(checkpoint), checkpoint)) == 64
            continue
        with pytest.raises(CheckpointError, match="65 tokens end an answer; at most 64"):
            find_prompt(checkpoint)


def test_the_token_with_which_a_prompt_ends_an_answer_ends_it(tmp_path):
    folder = with_template(tmp_path / "model", "chatml")
    checkpoint = opened(folder)
    prompt = find_prompt(checkpoint)
    end = next(token.id for token in checkpoint.tokenizer.rules.added_tokens if token.content == "<|im_end|>")
    assert checkpoint.config.eos_ids == (2,) and stop_ids(prompt, checkpoint) == (2, end)
    assert stop_ids(find_prompt(checkpoint, given="vicuna_v1"), checkpoint) == (2,)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (0.0, 1.0, 0)),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 9, "min_p": 0.1}, (0.0, 1.0, 0)),  # without do_sample
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 99}, (0.7, 0.9, 99, 50)),
        ({"do_sample": True}, (1.0, 1.0, 0, 50)),
        ({"do_sample": True, "top_k": 0, "min_p": 0.1}, (1.0, 1.0, 0, 0, 0.1)),
        ({"do_sample": True, "top_k": 10**12}, (1.0, 1.0, 0, MAX_VOCAB)),
        ({"repetition_penalty": 1.1}, (0.0, 1.0, 0, 0, 0.0, 1.1)),
    ],
)
def test_how_the_authors_sample_is_the_librarys_default(settings, expected, folder):
    changed(folder / "generation_config.json", **settings)
    assert opened(folder).generation == GenerationDefaults(*expected)


def test_where_nothing_is_said_transformers_says_the_same():
    defaults = GenerationConfig._get_default_generation_params()
    names = ("temperature", "top_p", "top_k", "repetition_penalty")
    assert [defaults[name] for name in names] == [1.0, 1.0, TOP_K, 1.0] and "min_p" not in defaults


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": 1},
        {"do_sample": True, "top_p": 0},
        {"do_sample": True, "temperature": -1},
        {"do_sample": True, "top_k": -1},
        {"do_sample": True, "min_p": 1.5},
        {"repetition_penalty": 0},
        {"repetition_penalty": 1000},
    ],
)
def test_odd_sampling_is_refused(settings, folder):
    changed(folder / "generation_config.json", **settings)
    with pytest.raises(CheckpointError, match=next(reversed(settings))):
        opened(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("added_tokens.json", {"[A]": 576}, r"added token '\[A\]' has the id 576, and the model's vocabulary 576"),
        ("added_tokens.json", {"[A]": 512}, "the id 512 is '<image>' in one and '\\[A\\]' in another"),
        ("added_tokens.json", {"<image>": 515}, "'<image>' has the id 512 in one and 515 in another"),
        ("added_tokens.json", {"[A]": 300}, r"added token '\[A\]' has the id 300, which is that of the piece"),
        ("added_tokens.json", {"\u2581the": 530}, "has the id 530, and the piece of the same text 265"),
        ("added_tokens.json", {" the": 530}, "has the id 530, and the piece of the same text 265"),
        ("added_tokens.json", {"\ud800": 530}, "is no text of at most 1024 bytes"),
        ("added_tokens.json", {"a\0b": 530}, "without zero bytes"),
        ("added_tokens.json", {"long " * 300: 530}, "'long .* is no text of at most 1024 bytes"),
        ("added_tokens.json", {"[A]": -1}, r"\[A\] in .*added_tokens.json"),
        ("added_tokens.json", {"[A]": "x"}, r"\[A\] in .*added_tokens.json"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "[A]"}}}, "'x' for the id of a token"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"520": {"content": ""}}}, "is empty"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"520": {"content": "[A]", "single_word": True}}},
            "only found as a whole word",
        ),
    ],
)
def test_added_tokens_that_cannot_be_are_refused_by_name(name, content, message, folder):
    path = folder / name
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **content}))
    with pytest.raises(CheckpointError, match=message):
        opened(folder)


def test_a_special_token_without_a_row_is_left_out(folder):
    changed(folder / "tokenizer_config.json", sep_token="[SEP]")
    (folder / "added_tokens.json").write_text(json.dumps({"[SEP]": 576}))
    checkpoint = opened(folder)
    assert checkpoint.tokenizer.vocab_size == 514
    assert checkpoint.notes == ("the special token '[SEP]' is left out: the embedding has no row for its id, 576",)


@pytest.mark.parametrize("settings", [{"add_bos_token": False}, {"add_bos_token": True}, {}])
@pytest.mark.parametrize("has_processor", [True, False])
def test_tokenizer_json_decides_whether_a_text_begins_with_a_token(has_processor, settings, folder):
    changed(folder / "tokenizer_config.json", **settings)
    if not has_processor:
        changed(folder / "tokenizer.json", post_processor=None)
    expected = AutoTokenizer.from_pretrained(folder)("hi")["input_ids"][0] == 1
    assert opened(folder).tokenizer.rules.adds_bos is expected is has_processor


@pytest.mark.parametrize(
    "settings",
    [
        {"sep_token": "<sep>", "extra_special_tokens": ["<image>", "[Z]", {**STRIPS, "content": "[A]"}]},
        {"extra_special_tokens": {"image_token": "<image>", "box_token": "[BOX]"}, "pad_token": "<other pad>"},
        {"eos_token": "<turn end>", "additional_special_tokens": ["not read beside the other list"]},
    ],
)
def test_special_tokens_without_an_id_get_the_next_ones(settings, folder):
    changed(folder / "tokenizer_config.json", **settings)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    checkpoint = opened(folder)
    expected = {content: token_id for content, token_id in tokenizer.get_added_vocab().items() if token_id > 511}
    assert {it.content: it.id for it in checkpoint.tokenizer.rules.added_tokens if it.id > 511} == expected
    assert len(expected) > 2 and tokenizer.eos_token_id in checkpoint.config.eos_ids


def test_a_token_may_take_the_place_of_a_placeholder(tmp_path):
    folder = Path(shutil.copytree(CHECKPOINTS["tiny-mobilevlm"], tmp_path / "model"))
    (folder / "added_tokens.json").write_text(json.dumps({"<start>": 1}))
    assert opened(folder).tokenizer.text(1) == "<start>"


def test_a_config_may_leave_the_ids_to_the_tokenizer(checkpoint_of, tmp_path):
    """That of Qwen2 has no default for them."""
    folder = shutil.copytree(checkpoint_of("qwen2"), tmp_path / "qwen2")
    (folder / "generation_config.json").unlink(missing_ok=True)
    changed(folder / "config.json", bos_token_id=None, eos_token_id=None)
    checkpoint = opened(folder)
    assert (checkpoint.config.bos_id, checkpoint.config.eos_ids, checkpoint.notes) == (1, (2,), ())

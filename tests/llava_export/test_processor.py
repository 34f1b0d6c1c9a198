"""A golden question that transformers reads otherwise stops the export, unless it is forced."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from llava_export.builtin import CHECKPOINTS
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.processor import Processor
from llava_export.checkpoint.prompt import find_prompt
from llava_export.errors import CheckpointError
from llava_export.pte import golden
from llava_export.pte.agreement import Question, agreement, agreement_here
from llava_export.pte.golden import GoldenRecord, float_answer, golden_question
from llava_runner.errors import PackageError
from llava_runner.prompt import Span
from tests.checkpoints import TINY_LLAVA
from tests.conversations import card_of, with_template


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(TINY_LLAVA, tmp_path / "model"))


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Have transformers asked here: another process takes seconds to import it."""
    monkeypatch.setattr(golden, "agreement", lambda opened, question: agreement_here(opened(), question))


def question_of(folder: Path, **changes: bool) -> Question:
    """Return the golden question of a checkpoint."""
    checkpoint, (card, _) = open_checkpoint(str(folder)), card_of(folder)
    card = replace(card, image_size=112, image_resize=112, num_image_tokens=64, max_context_len=512)
    return golden_question(checkpoint, card=card, chat_template=find_prompt(checkpoint).jinja, **changes)


def asked(folder: Path, question: Question, tmp_path: Path) -> GoldenRecord:
    """Return the golden record of the float model's answer, as it is read from its file."""
    answer = float_answer(lambda: open_checkpoint(str(folder)), question, on_step=lambda: None)
    (tmp_path / "golden").write_bytes(answer.golden)
    return GoldenRecord.load(tmp_path / "golden")


def test_the_record_says_what_was_asked_and_who_agreed(folder, tmp_path):
    record = asked(folder, question_of(folder), tmp_path)
    assert record.prompt.endswith("USER: <image>\nWhat is in the image? ASSISTANT:")
    assert record.agreed.startswith("transformers ") and record.agreed.endswith(", LlavaProcessor")


def test_other_tokens_stop_the_export_unless_it_is_forced(folder, tmp_path):
    """The two files of the tokenizer disagree: the export reads one, and transformers the other."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = merges[: len(merges) // 2]
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="LlavaProcessor makes other tokens of the question: before the image"):
        asked(folder, question_of(folder), tmp_path)
    assert asked(folder, question_of(folder, is_checked=False), tmp_path).agreed == ""


def test_transformers_is_asked_in_a_process_of_its_own(folder):
    question = question_of(folder)
    opened = partial(open_checkpoint, str(folder))
    assert agreement(opened, question).endswith("LlavaProcessor")
    other = replace(question, ids_after=[*question.ids_after, 5])
    with pytest.raises(CheckpointError, match="LlavaProcessor makes other tokens of the question: after the image"):
        agreement(opened, other)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        agreement(opened, question)


def test_another_prompt_stops_the_export(folder, tmp_path):
    question = question_of(folder)
    other = replace(question, chat_template=f"{{{{ 'Hello. ' }}}}{question.chat_template}")
    with pytest.raises(CheckpointError, match=r"LlavaProcessor makes another prompt of the question: \"Hello\. A chat"):
        asked(folder, other, tmp_path)


def test_an_image_may_be_spelled_otherwise(tmp_path):
    folder = with_template(tmp_path / "model", "inst")
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        path = folder / name
        path.write_text(path.read_text().replace("<image>", "<picture>"))
    record = asked(folder, question_of(folder), tmp_path)
    assert (
        record.agreed.endswith("LlavaProcessor") and record.prompt == "<s>[INST] <image>\nWhat is in the image? [/INST]"
    )


def test_where_transformers_is_not_installed_nothing_is_compared(folder, tmp_path, monkeypatch):
    question = question_of(folder)
    monkeypatch.setitem(sys.modules, "transformers", None)  # to import it raises ImportError
    assert Processor.open(open_checkpoint(str(folder))) is None
    assert asked(folder, question, tmp_path).agreed == ""


def test_files_that_transformers_cannot_read_are_told(folder):
    checkpoint = open_checkpoint(str(folder))
    (folder / "processor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot read the tokenizer in"):
        Processor.open(checkpoint)


def test_a_checkpoint_without_a_processor_has_no_other_reader(folder):
    (folder / "tokenizer.json").rename(folder / "kept")
    assert Processor.open(open_checkpoint(str(folder))) is None
    (folder / "kept").rename(folder / "tokenizer.json")
    (folder / "processor_config.json").unlink()
    assert Processor.open(open_checkpoint(str(folder))) is None


def test_the_original_layout_is_read_by_the_tokenizer_alone():
    processor = Processor.open(open_checkpoint(str(CHECKPOINTS["tiny-mobilevlm"])))
    assert processor is not None and processor.name.endswith("LlamaTokenizer") and not processor.reads_images
    (before, after) = processor.prompt_ids(["A chat. USER: ", "\nhi ASSISTANT:"], adds_bos=True)
    assert before[0] == 1 and after[:2] == [438, 13]
    assert processor.prompt_text("{{ messages }}", "hi") is None


@pytest.mark.parametrize("settings", [{"legacy": True}, {"legacy": False}, {"legacy": None}, {"bos_token": None}])
def test_the_tokenizer_of_the_original_layout_is_read_with_its_settings(settings, tmp_path):
    folder = Path(shutil.copytree(CHECKPOINTS["tiny-mobilevlm"], tmp_path / "model"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    checkpoint = open_checkpoint(str(folder))
    processor, rules = Processor.open(checkpoint), checkpoint.tokenizer.rules
    assert processor is not None and rules.adds_bos == ("bos_token" not in settings)
    before = (Span("A</s>\nb", is_template=True),)
    ids = checkpoint.tokenizer.chat_tokenizer(bos_id=1).encode_turn([before])
    assert processor.prompt_ids(["A</s>\nb"], adds_bos=rules.adds_bos) == ids
    assert (438 in ids[0]) == (settings.get("legacy", True) is not False)  # a space after </s>


def test_a_processor_may_not_say_how_many_tokens_an_image_takes(folder, tmp_path):
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    for name in ("patch_size", "num_additional_image_tokens", "vision_feature_select_strategy"):
        del settings[name]
    path.write_text(json.dumps(settings))
    processor = Processor.open(open_checkpoint(str(folder)))
    assert processor is not None
    ids = processor.inputs(["USER: ", "\nhi"], np.zeros((112, 112, 3), np.uint8))["input_ids"][0].tolist()
    assert ids.count(512) == 64


def test_a_template_may_take_its_content_as_text(tmp_path):
    folder = with_template(tmp_path / "model", "inst")
    processor = Processor.open(open_checkpoint(str(folder)))
    assert processor is not None
    text = "{% for m in messages %}{{ 'Q: ' + m.content }}{% endfor %}{% if add_generation_prompt %} A:{% endif %}"
    assert processor.prompt_text(text, "hi") == "Q: <image>\nhi A:"


def test_records_without_a_prompt_are_refused(folder, tmp_path):
    answer = float_answer(lambda: open_checkpoint(str(folder)), question_of(folder), on_step=lambda: None)
    content = answer.golden.replace(b'"agreed"', b'"agreeD"')
    (tmp_path / "golden").write_bytes(content)
    with pytest.raises(PackageError, match="agreed"):
        GoldenRecord.load(tmp_path / "golden")

"""``llava doctor`` says what a checkpoint is, and names what is doubtful about it, with a remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_export.builtin import CHECKPOINTS
from llava_export.cli import doctor
from llava_export.doctor.words import sampling_text
from llava_runner.contract import GenerationDefaults
from llava_runner.errors import PackageError
from tests.chat_templates import INST, PHI3, TEMPLATES, VICUNA
from tests.checkpoints import TINY_LLAVA
from tests.conversations import with_template
from tests.doctor import examine
from tests.llava_export.test_mobilevlm import original_llava

EMBEDDING = "language_model.model.embed_tokens.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of a copy of tiny-llava that a test may change."""
    return Path(shutil.copytree(TINY_LLAVA, tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    """Change values in a JSON file: in the section that has the first of them, or at its top."""
    content = json.loads(path.read_text())
    sections = [section for section in content.values() if isinstance(section, dict) and set(values) & set(section)]
    (sections[0] if sections else content).update(values)
    path.write_text(json.dumps(content))


def generation(**values: Any) -> Callable[[Path], object]:
    """Return a function that changes a checkpoint's ``generation_config.json``."""
    return lambda folder: change(folder / "generation_config.json", **values)


def template(text: str) -> Callable[[Path], object]:
    """Return a function that gives a checkpoint another chat template."""
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """Return a function that changes a checkpoint's tensors."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def forget_template(folder: Path) -> None:
    """Make a copy of a model whose tokens mark turns, and whose chat template was lost."""
    shutil.rmtree(folder)
    with_template(folder, "chatml")
    (folder / "chat_template.jinja").unlink()


def add_stale_index(folder: Path) -> None:
    """Put an index of shards beside the whole file, as a conversion leaves it."""
    index = {"weight_map": {EMBEDDING: "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def drop_system_token(folder: Path) -> None:
    """Make a copy of a model whose conversations begin without BOS."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["post_processor"] = None
    path.write_text(json.dumps(tokenizer))
    change(folder / "tokenizer_config.json", add_bos_token=False)


def crop(folder: Path) -> None:
    """Crop images, as llava-hf's published processors do."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        change(folder / name, do_pad=False, size={"shortest_edge": 120})


DOUBTFUL = {
    "old ids": (
        lambda folder: change(folder / "config.json", bos_token_id=5, eos_token_id=6),
        "config.json begins a text with the id 5 and ends it with 6; the tokenizer's are 1 and 2",
        "correct bos_token_id and eos_token_id in config.json",
    ),
    "markers that are text": (
        template(PHI3),
        "the prompt has <|user|>, <|end|>, <|assistant|>, which the tokenizer reads as ordinary text",
        "Add them to the tokenizer as special tokens",
    ),
    "no end": (
        template(VICUNA.replace("</s>", "###")),
        "its prompt ends an answer with '###', and answers stop at </s>",
        "eos_token_id in generation_config.json",
    ),
    "a lost template": (
        forget_template,
        "its tokenizer has <|im_start|>, <|im_end|>, which mark turns, and its prompt, from the family llava-1.5, has "
        "none of them",
        "Put the chat template of its training into the folder",
    ),
    "a date": (
        template("{{ strftime_now('%B %Y') + '\n' }}" + INST),
        "its chat template has today's date in it",
        "a copy of the template without the date: --prompt-template FILE",
    ),
    "two ends": (
        generation(eos_token_id=[77, 78]),
        "generation_config.json ends an answer with 77, 78 and the tokenizer with 2 (</s>)",
        "Name all that end an answer",
    ),
    "sampling that is off": (
        generation(temperature=0.3, top_p=0.8),
        "generation_config.json has temperature 0.3 and top_p 0.8, but not do_sample",
        "set do_sample to true",
    ),
    "short answers": (
        generation(max_new_tokens=3),
        "generation_config.json ends answers after 3 tokens",
        "Raise max_new_tokens there",
    ),
    "cropped images": (
        crop,
        "images are cropped to the center square, resized to 120 pixels (bicubic), of which the center 112 are kept, "
        "as image_processor in",
        "run with --image-aspect-ratio pad",
    ),
    "no beginning": (
        drop_system_token,
        "its conversations do not begin with <s>",
        "set add_bos_token to true in tokenizer_config.json",
    ),
    "a stale index": (
        add_stale_index,
        "model.safetensors is read: model.safetensors.index.json names 1 shard that is",
        "Delete the files of weights that are out of date",
    ),
    "two heads": (
        lambda folder: change(folder / "config.json", tie_word_embeddings=True),
        "config.json ties the head to the token embedding, but a head of its own is stored",
        "delete the one that is stored; if not, correct config.json",
    ),
    "little room": (
        lambda folder: change(folder / "config.json", max_position_embeddings=150),
        "an image takes 64 of 150 positions, which leaves 86 for text",
        "Check max_position_embeddings",
    ),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_what_is_doubtful_is_named_with_its_remedy(name, folder, capsys):
    make_doubtful, cause, remedy = DOUBTFUL[name]
    make_doubtful(folder)
    code, printed = examine(folder, capsys=capsys)
    assert code == 1 and printed.startswith(f"{folder} checkpoint, llava-1.5: doubtful")
    assert f"doubtful: {cause}" in printed and remedy in printed and "broken: " not in printed


@pytest.mark.parametrize("model", CHECKPOINTS)
def test_built_in_models_are_healthy(model, capsys):
    code, printed = examine(model, "--weights", capsys=capsys)
    assert code == 0 and ": healthy" in printed
    assert "doubtful: " not in printed and "broken: " not in printed and "note: " not in printed
    for fact in ("weights", "vision tower", "projector", "prompt", "tokens", "an export", "its program"):
        assert f" {fact} " in printed
    assert "begins with <s> (1), ends with </s> (2)" in printed and "ASSISTANT:" in printed
    assert "the same prompt and tokens" in printed


@pytest.mark.parametrize("name", TEMPLATES)
def test_fine_tunes_with_a_prompt_of_their_own_are_healthy(name, tmp_path, capsys):
    code, printed = examine(with_template(tmp_path / "model", name), capsys=capsys)
    assert code == 0 and "the same prompt and tokens" in printed and "[SEG]" in printed


def test_rows_without_tokens_are_named(checkpoint_of, capsys):
    code, printed = examine(checkpoint_of("padded_vocabulary"), capsys=capsys)
    assert code == 1 and "files of the fine-tune" in printed
    assert "the embedding has 128 rows more than the tokenizer has tokens" in printed


def test_the_layout_of_llavas_authors_is_examined_alike(checkpoint_of, tmp_path, capsys):
    model, clip = original_llava(checkpoint_of("plain"), tmp_path)
    code, printed = examine(model, capsys=capsys)
    assert code == 1 and printed.count("doubtful: ") == 1
    assert "images are cropped to the center square" in printed and "--image-aspect-ratio pad" in printed
    assert f" {clip}/model.safetensors " in printed  # where the vision tower is from
    change(model / "config.json", image_aspect_ratio="pad")
    assert examine(model, capsys=capsys)[0] == 0


def test_a_tower_that_is_described_nowhere_is_doubtful(checkpoint_of, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = Path(shutil.copytree(checkpoint_of("mobilevlm"), tmp_path / "copy"))
    shutil.rmtree(model / "tower")
    code, printed = examine(model, capsys=capsys)
    assert code == 1 and "doubtful: the sizes of the vision tower are those of its weights" in printed
    assert "Give a folder with the tower's config.json: --vision-tower FOLDER." in printed


@pytest.mark.parametrize(
    ("edit", "code", "cause", "remedy"),
    [
        (
            lambda tensors: tensors[EMBEDDING][7].fill_(float("nan")),
            2,
            f"broken: {EMBEDDING} in",
            "Download or save the checkpoint again",
        ),
        (
            lambda tensors: tensors["multi_modal_projector.linear_2.weight"].zero_(),
            1,
            "multi_modal_projector.linear_2.weight is nothing but zeros",
            "a checkpoint in which it was saved",
        ),
        (
            lambda tensors: tensors[EMBEDDING][512:514].zero_(),
            1,
            "the embedding has rows of zeros for <image>, <pad>",
            "modules_to_save",
        ),
    ],
    ids=["NaN", "zeros", "untrained rows"],
)
def test_values_are_looked_at_on_request(edit, code, cause, remedy, folder, capsys):
    weights(edit)(folder)
    assert examine(folder, capsys=capsys)[0] == 0
    found, printed = examine(folder, "--weights", capsys=capsys)
    assert found == code and cause in printed and remedy in printed


def test_a_machine_that_is_too_small_is_named(folder, capsys, monkeypatch):
    monkeypatch.setattr("llava_export.pte.preflight.available_memory", lambda: 5_000_000)
    code, printed = examine(folder, capsys=capsys)
    assert code == 1 and "of memory, and 4.8 MiB are free" in printed and "on a larger machine" in printed


def test_all_reasons_of_a_refusal_are_printed(folder, capsys):
    change(folder / "config.json", quantization_config={"quant_method": "awq"})
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.json").unlink()
    code, printed = examine(folder, capsys=capsys)
    assert code == 2 and printed.startswith(f"{folder} checkpoint: cannot be used")
    assert "broken: the model is quantized already (quantization_config says awq): export the float model" in printed
    assert printed.count("broken: ") == 2 and "no tokenizer.model and no tokenizer.json" in printed


def test_a_template_that_cannot_be_followed_leaves_the_rest_to_be_told(folder, capsys):
    template("{{ messages | length }} <image>")(folder)
    code, printed = examine(folder, capsys=capsys)
    assert code == 2 and "broken: its chat template cannot be followed" in printed
    assert "Choose one with --prompt-template." in printed and " vision tower " in printed
    assert examine(folder, "--prompt-template", "vicuna_v1", capsys=capsys)[0] == 0


def test_what_transformers_reads_otherwise_is_broken(folder, capsys):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["W"], vocab["?"] = vocab["?"], vocab["W"]
    path.write_text(json.dumps(tokenizer))
    code, printed = examine(folder, capsys=capsys)
    assert code == 2 and "LlavaProcessor makes other tokens of the question: after the image it has" in printed
    assert "export with --force" in printed


def test_nothing_to_compare_with_is_a_note(folder, capsys, monkeypatch):
    monkeypatch.setattr("llava_export.checkpoint.processor.Processor.open", lambda checkpoint: None)
    code, printed = examine(folder, capsys=capsys)
    assert code == 0 and "note: nothing else has read its prompt" in printed and "pip install transformers" in printed


def test_an_adapter_is_examined_with_its_base(adapted_of, capsys):
    adapted = adapted_of("attention")
    code, printed = examine(adapted.adapter, "--base-model", str(adapted.base), capsys=capsys)
    assert code == 0 and "a LoRA merged into" in printed
    code, printed = examine(adapted.adapter, "--base-model", "/nowhere", capsys=capsys)
    assert code == 2 and "broken: /nowhere is no folder" in printed


def test_json_has_all_of_it(folder, capsys, tmp_path):
    template(VICUNA)(folder)
    generation(temperature=0.5)(folder)
    examine(folder, "--json", str(tmp_path / "report.json"), capsys=capsys)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["exit_code"] == 1 and report["subject"] == str(folder)
    (finding,) = report["findings"]
    assert finding["severity"] == "doubtful" and finding["what"] and finding["remedy"]
    assert {"name": "prompt", "source": "chat_template.jinja"}.items() <= next(
        fact for fact in report["facts"] if fact["name"] == "prompt"
    ).items()


def test_sampling_is_told_in_words():
    full = GenerationDefaults(0.7, 0.9, 99, top_k=50, min_p=0.1, repetition_penalty=1.1)
    words = "temperature 0.7, top-p 0.9, top-k 50, min-p 0.1, repetition penalty 1.1, at most 99 tokens"
    assert sampling_text(full) == words
    assert sampling_text(GenerationDefaults(0.0, 1.0, 0)) == "the likeliest token"


def test_gguf_files_are_left_to_verify(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for path in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(PackageError, match=f"has GGUF files: llava verify {path}"):
            doctor.run(doctor.build_parser().parse_args([str(path)]))

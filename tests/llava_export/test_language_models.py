"""Mistral, Qwen2 and Phi-3 as configurations of the one decoder: defaults, windows, and keys that are fused already."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CONFIG_MAPPING,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Qwen2Config,
)

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.reader import CheckpointReader
from llava_export.config import TextConfig
from llava_export.errors import CheckpointError, ConfigError, ExportError, UserError
from llava_export.families import find_family, language_models
from llava_export.families.language_models import (
    LANGUAGE_MODELS,
    LLAVA_TYPES,
    LanguageModel,
    language_model_of,
)
from llava_export.families.sections import text_config
from llava_export.pte.options import Options
from llava_export.pte.plan import plan
from llava_runner.documents import JsonObject
from tests import checkpoints
from tests.checkpoints import SPECIAL_IDS, TEXT, TINY_LLAVA, VOCAB_SIZE, Shape, random_llava, save_checkpoint
from tests.llava_export.test_models import load, relative_error

LAYER = "language_model.model.layers.1"


def parsed(model_type: str, **settings: Any) -> TextConfig:
    """Return the decoder's sizes that a ``text_config`` gives."""
    document = JsonObject({"model_type": model_type, **settings}, what="config.json", error=ConfigError)
    model = language_model_of(document)
    return text_config(model.section(document), language_model=model, tied=False)


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
def test_defaults_are_those_of_transformers(model_type):
    theirs: Any = CONFIG_MAPPING[model_type]
    for name, value in LANGUAGE_MODELS[model_type].defaults.items():
        expected = getattr(theirs(use_sliding_window=True) if name == "sliding_window" else theirs(), name)
        assert value == expected and type(value) is type(expected), name
    config, ours = theirs(), parsed(model_type)
    assert ours.num_key_value_heads == config.num_key_value_heads
    assert ours.head_dim == getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    assert ours.sliding_window == getattr(config, "sliding_window", None)
    assert ours.rope_theta == config.rope_parameters["rope_theta"]


def test_the_guide_walks_through_an_entry_and_shape_that_are_here(monkeypatch):
    guide = Path(__file__).parents[2] / "docs" / "guides" / "add_a_family.md"
    blocks = [dedent(block) for block in re.findall(r"```python\n(.*?)```", guide.read_text("utf-8"), re.DOTALL)]
    (entry,) = (block.removeprefix("QWEN2 = ") for block in blocks if block.startswith("QWEN2 = "))
    assert eval(entry, {"LanguageModel": LanguageModel}) == LANGUAGE_MODELS["qwen2"]
    (shape,) = (block for block in blocks if '"qwen2": Shape(' in block)
    assert eval(f"{{{shape}}}", vars(checkpoints)) == {"qwen2": checkpoints.SHAPES["qwen2"]}
    others = {name: it for name, it in LANGUAGE_MODELS.items() if name != "qwen2"}
    monkeypatch.setattr(language_models, "LANGUAGE_MODELS", others)
    with pytest.raises(ConfigError) as refused:
        parsed("qwen2")
    said = str(refused.value).replace("model_type in config.json", "text_config.model_type in small/config.json")
    assert said in guide.read_text("utf-8")


def test_null_is_no_default():
    assert parsed("mistral").sliding_window == 4096 and parsed("mistral", sliding_window=None).sliding_window is None
    assert parsed("mistral", num_key_value_heads=None).num_key_value_heads == 32
    with pytest.raises(ConfigError, match=r"num_hidden_layers must be a positive integer, not 0"):
        parsed("phi3", num_hidden_layers=0)


@pytest.mark.parametrize(
    ("model_type", "settings", "window"),
    [
        ("qwen2", {"sliding_window": 1000}, None),
        ("qwen2", {"sliding_window": 1000, "use_sliding_window": True}, 1000),
        ("qwen2", {"sliding_window": 1000, "use_sliding_window": True, "max_window_layers": 32}, None),
        ("qwen2", {"sliding_window": 1000, "use_sliding_window": True, "max_window_layers": 31}, 1000),
        ("qwen2", {"use_sliding_window": True, "layer_types": ["full_attention"] * 32}, None),
        ("qwen2", {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"] * 16}, 4096),
        ("qwen2", {"sliding_window": None, "use_sliding_window": True}, None),
        ("mistral", {"sliding_window": 300, "use_sliding_window": False}, 300),  # transformers does not read it there
        ("mistral", {"sliding_window": 300, "max_window_layers": 64}, 300),
        ("phi3", {"sliding_window": 2047}, 2047),
    ],
    ids=str,
)
def test_windows_are_where_transformers_has_them(model_type, settings, window):
    assert parsed(model_type, **settings).sliding_window == window
    theirs = CONFIG_MAPPING[model_type](**settings)
    has_windows = theirs.sliding_window is not None and "sliding_attention" in getattr(
        theirs, "layer_types", ["sliding_attention"]
    )
    assert (theirs.sliding_window if has_windows else None) == window


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        ("mistral", {"sliding_window": 0}, "sliding_window in config.json is 0; it must be a whole number from 1"),
        ("phi3", {"sliding_window": "2047"}, "sliding_window in config.json is '2047'"),
        ("qwen2", {"use_sliding_window": True, "layer_types": ["chunked"] * 32}, "layer_types .*'chunked' is not supp"),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "type 'longrope' is not supported"),
        ("phi3", {"rope_scaling": {"type": "su", "long_factor": [1.0]}}, "type 'su' is not supported"),
        ("phi3", {"partial_rotary_factor": 0.75}, "partial_rotary_factor in config.json is 0.75; only whole heads"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; silu is"),
        ("gemma", {}, r"is 'gemma'; supported language models: .*Mistral \(mistral\), Qwen2 \(qwen2\), Phi-3 \(phi3\)"),
        (3, {}, "model_type in config.json is 3; it must be a text"),
    ],
    ids=str,
)
def test_what_cannot_be_computed_is_refused(model_type, settings, message):
    with pytest.raises(ConfigError, match=message):
        parsed(model_type, **settings)


def test_a_program_is_at_most_as_long_as_the_window(tmp_path):
    shape = Shape(Phi3Config, text={"hidden_size": 128, "sliding_window": 40, "pad_token_id": None, "eos_token_id": 2})
    folder = save_checkpoint(random_llava(shape), tmp_path / "checkpoint")
    planned = plan(str(folder), Options(golden=False))
    assert (planned.max_context_len, planned.max_seq_len) == (40, 40)
    assert plan(str(folder), Options(golden=False, max_context_len=39)).max_context_len == 39
    with pytest.raises(ExportError, match=r"context of 41 .* window of 40 .* trained for 4096"):
        plan(str(folder), Options(golden=False, max_context_len=41))
    with pytest.raises(ExportError, match=r"context of 5000 is beyond the 4096 positions"):
        plan(str(folder), Options(golden=False, max_context_len=5000))


@pytest.mark.parametrize(
    ("language_model", "options"),
    [
        (MistralConfig, {"num_key_value_heads": 2}),
        (Phi3Config, {"pad_token_id": None, "eos_token_id": 2}),
        (Qwen2Config, {"num_key_value_heads": 4, "use_sliding_window": True, "max_window_layers": 1, **SPECIAL_IDS}),
    ],
)
@torch.no_grad()
def test_a_program_of_the_windows_length_is_exact_and_a_longer_one_is_not(language_model, options, tmp_path):
    window = 30
    shape = Shape(language_model, text={"sliding_window": window, **options})
    folder = save_checkpoint(random_llava(shape), tmp_path / "checkpoint")
    theirs = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    assert open_checkpoint(str(folder)).config.text.max_context_len == window
    ours = load(folder)
    torch.manual_seed(2)
    ids = torch.randint(3, 500, (1, window + 1))
    for length, is_exact in ((window, True), (window + 1, False)):
        found = ours.text_decoder(ours.token_embedding(ids[:, :length]), torch.tensor([0]))
        expected = theirs(input_ids=ids[:, :length], logits_to_keep=1).logits
        assert (relative_error(found, expected) < 1e-4) == is_exact, length


ORIGINAL = {
    **TEXT,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB_SIZE,
    "pad_token_id": 0,
    **SPECIAL_IDS,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
}


@pytest.mark.parametrize("llava_type", [*LLAVA_TYPES, "llava", "share4v"])
def test_the_authors_layout_names_the_language_model_in_its_type(llava_type):
    settings = JsonObject({**ORIGINAL, "model_type": llava_type}, what="config.json", error=ConfigError)
    family = find_family(settings)
    text = family.parse_config(settings, None).text
    expected = {"llava_mistral": "mistral", "llava_qwen": "qwen2", "llava_qwen2": "qwen2", "llava_phi3": "phi3"}
    assert family.name == "llava-1.5" and text.model_type == expected.get(llava_type, "llama")
    assert (text.qkv_bias, text.output_bias) == (text.model_type == "qwen2", False)


@pytest.fixture
def phi3(checkpoint_of, tmp_path):
    return shutil.copytree(checkpoint_of("phi3"), tmp_path / "phi3")


def read_all(folder) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint as the model reads them."""
    checkpoint = open_checkpoint(str(folder))
    tensors = checkpoint.weights.tensors(checkpoint.build_model(max_context_len=1))
    return {tensor.fqn: checkpoint.weights.read(tensor) for tensor in tensors}


def edit(folder, change) -> None:
    """Change the tensors of a checkpoint by key."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def separate(tensors: dict[str, torch.Tensor]) -> None:
    """Store q, k, v, gate and up on their own, as conversions to Llama's layout do."""
    for key in [key for key in tensors if key.endswith((".qkv_proj.weight", ".gate_up_proj.weight"))]:
        names = ("q_proj", "k_proj", "v_proj") if "qkv" in key else ("gate_proj", "up_proj")
        parts = tensors.pop(key).chunk(len(names))
        for name, part in zip(names, parts, strict=True):
            tensors[key.replace("qkv_proj" if "qkv" in key else "gate_up_proj", name)] = part.contiguous()


@pytest.mark.parametrize("form", ["separate", "bin", "old bin", "transposed bin", "bfloat16"])
def test_fused_and_separate_keys_are_the_same_model(form, phi3, checkpoint_of):
    expected = read_all(checkpoint_of("phi3"))
    whole = load_file(phi3 / "model.safetensors")
    if form == "separate":
        edit(phi3, separate)
    elif form == "bfloat16":
        edit(phi3, lambda tensors: tensors.update({key: it.to(torch.bfloat16) for key, it in tensors.items()}))
        expected = {name: tensor.to(torch.bfloat16) for name, tensor in expected.items()}
    else:
        (phi3 / "model.safetensors").unlink()
        if form == "transposed bin":
            whole = {key: it.T.contiguous().T if it.dim() == 2 else it for key, it in whole.items()}
        torch.save(whole, phi3 / "pytorch_model.bin", _use_new_zipfile_serialization=form != "old bin")
    found = read_all(phi3)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_only_the_rows_of_a_part_are_read(phi3):
    checkpoint = open_checkpoint(str(phi3))
    reader = CheckpointReader(phi3)
    key = f"{LAYER}.mlp.gate_up_proj.weight"
    whole, (rows, columns) = reader.read(key), reader.shapes[key]
    reader.divide(key, {"first": 100, "second": rows - 100})
    assert key not in reader.shapes and reader.shapes["second"] == (rows - 100, columns)
    assert reader.read("first").untyped_storage().nbytes() == 100 * columns * 4
    assert torch.equal(reader.read("second"), whole[100:])
    assert checkpoint.weights.read(
        next(it for it in checkpoint.weights.tensors(checkpoint.build_model(max_context_len=1)) if "up_proj" in it.fqn)
    ).shape == (512, 384)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update({f"{LAYER}.self_attn.qkv_proj.weight": torch.ones(1151, 384)}),
            r"1 wrong shapes \(language_model.model.layers.1.self_attn.qkv_proj.weight is \[1151, 384\], config.json "
            r"says \[1152, 384\]\)",
        ),
        (
            lambda t: t.update({f"{LAYER}.mlp.gate_up_proj.weight": torch.ones(1024)}),
            r"gate_up_proj.weight is \[1024\], config.json says \[1024, 384\]",
        ),
        (
            lambda t: t.update({f"{LAYER}.self_attn.k_proj.weight": torch.ones(384, 384)}),
            r"layers.1.self_attn.qkv_proj.weight and .*layers.1.self_attn.k_proj.weight in .* two forms of one weight",
        ),
        (lambda t: t.pop(f"{LAYER}.mlp.gate_up_proj.weight"), r"2 keys missing .*layers.1.mlp.gate_proj.weight"),
        (
            lambda t: t.update({f"{LAYER}.self_attn.qkv_proj.bias": torch.ones(1152)}),
            r"3 unexpected keys .*layers.1.self_attn.k_proj.bias",
        ),
        (
            lambda t: t[f"{LAYER}.self_attn.qkv_proj.weight"][400].fill_(torch.nan),
            r"layers.1.self_attn.k_proj.weight in .* has NaN",
        ),
    ],
    ids=["rows", "dimensions", "both forms", "missing", "biases", "nan"],
)
def test_fused_keys_that_do_not_fit_are_told(change, message, phi3):
    edit(phi3, change)
    with pytest.raises(CheckpointError, match=message):
        read_all(phi3)


def test_quantized_fused_keys_are_refused_as_others_are(phi3):
    key = f"{LAYER}.self_attn.qkv_proj.weight"
    edit(phi3, lambda tensors: tensors.update({key: tensors[key].to(torch.int8)}))
    with pytest.raises(UserError, match=r"q_proj.weight .* is I8.*only float16, bfloat16 and float32"):
        open_checkpoint(str(phi3))


def test_a_vocabulary_of_152000_with_a_tied_head(tmp_path):
    shape = Shape(
        Qwen2Config,
        text={"vocab_size": 152000, "hidden_size": 32, "num_key_value_heads": 2, "tie_word_embeddings": True,
              **SPECIAL_IDS},
        whole={"image_token_index": 151646, "tie_word_embeddings": True},
    )  # fmt: skip
    folder = save_checkpoint(random_llava(shape), tmp_path / "checkpoint")
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.config.text.tie_word_embeddings and checkpoint.config.text.vocab_size == 152000
    ours = load(folder)
    theirs = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 151645, 7, 151999]])
    found = ours.text_decoder(ours.token_embedding(ids), torch.tensor([0]))
    assert relative_error(found, theirs(input_ids=ids, logits_to_keep=1).logits) < 1e-4


def test_a_projector_and_a_language_model_make_a_whole_model(tmp_path):
    from tests.adapters import random_projector, save_tower

    base = tmp_path / "base"
    config = MistralConfig(**TEXT, num_key_value_heads=2, vocab_size=VOCAB_SIZE)
    MistralForCausalLM(config).save_pretrained(base)
    shutil.copy(TINY_LLAVA / "tokenizer.model", base)
    projector = {f"model.mm_projector.{name}": it for name, it in random_projector(seed=4).state_dict().items()}
    (tmp_path / "projector").mkdir()
    torch.save(projector, tmp_path / "projector" / "mm_projector.bin")
    checkpoint = open_checkpoint(
        str(tmp_path / "projector"), base_model=str(base), vision_tower=str(save_tower(tmp_path / "tower"))
    )
    assert checkpoint.config.text.model_type == "mistral" and checkpoint.config.text.num_key_value_heads == 2

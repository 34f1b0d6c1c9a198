"""GGUF files of Mistral, Qwen2 and Phi-3: names, order and types are llama.cpp's, and it says what the model says."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFReader
from gguf.tensor_mapping import get_tensor_name_map
from transformers import MistralConfig, Qwen2Config

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.errors import ExportError
from llava_export.gguf.next_tokens import next_tokens
from llava_export.gguf.types import text_type
from tests.checkpoints import SHAPES, SPECIAL_IDS, Shape, random_llava, save_checkpoint
from tests.commands import llava_here
from tests.integration.test_gguf import export, failures
from tests.marks import needs_llama_cpp


@pytest.mark.parametrize(
    ("shape", "architecture"),
    [("mistral", MODEL_ARCH.LLAMA), ("qwen2", MODEL_ARCH.QWEN2), ("phi3", MODEL_ARCH.PHI3)],
)
def test_language_models_are_stored_as_llama_cpps_converter_does(shape, architecture, checkpoint_of, tmp_path):
    """Compare with the names that llama.cpp's converter gives transformers' parameters, and with their shapes."""
    folder = export(checkpoint_of(shape), tmp_path)
    assert failures(folder) == []
    names = get_tensor_name_map(architecture, 4)
    model = random_llava(SHAPES[shape])
    parameters = {f"model.{name}": it for name, it in model.model.language_model.named_parameters()}
    if not model.config.tie_word_embeddings:
        parameters["lm_head.weight"] = model.lm_head.weight
    expected = {
        names.get_name(name, try_suffixes=(".weight", ".bias")): tuple(it.shape) for name, it in parameters.items()
    }
    reader = GGUFReader(folder / "ggml-model-f16.gguf")
    assert {it.name: tuple(reversed(it.shape.tolist())) for it in reader.tensors} == expected
    assert {it.tensor_type.name for it in reader.tensors if it.name.endswith(".bias")} <= {"F32"}
    keys = {
        name.removeprefix(f"{MODEL_ARCH_NAMES[architecture]}."): it.contents() for name, it in reader.fields.items()
    }
    text = open_checkpoint(str(checkpoint_of(shape))).config.text
    assert keys["general.architecture"] == MODEL_ARCH_NAMES[architecture]
    assert keys["attention.key_length"] == keys["rope.dimension_count"] == text.head_dim
    assert keys["attention.head_count_kv"] == text.num_key_value_heads
    assert ("attention.sliding_window" in keys) == (shape == "phi3")


@pytest.mark.parametrize(("shape", "is_reordered"), [("mistral", True), ("qwen2", False), ("phi3", False)])
def test_rows_are_reordered_for_llama_alone(shape, is_reordered, checkpoint_of, tmp_path):
    reader = GGUFReader(export(checkpoint_of(shape), tmp_path) / "ggml-model-f16.gguf")
    stored = {tensor.name: torch.from_numpy(tensor.data.copy()).float() for tensor in reader.tensors}
    checkpoint = open_checkpoint(str(checkpoint_of(shape)))
    tensors = checkpoint.weights.tensors(checkpoint.build_model(max_context_len=1))
    weights = {it.fqn: checkpoint.weights.read(it) for it in tensors if "layers.1.self_attn" in it.fqn}
    q, k, v = (weights[f"text_decoder.layers.1.self_attn.{name}_proj.weight"].half().float() for name in "qkv")
    found = stored["blk.1.attn_qkv.weight"] if shape == "phi3" else stored["blk.1.attn_q.weight"]
    expected = torch.cat([q, k, v]) if shape == "phi3" else q
    assert torch.equal(found, expected) != is_reordered


def test_windows_and_odd_heads_of_llama_cpp_are_told(tmp_path):
    text = {"num_key_value_heads": 2, "sliding_window": 100}
    save_checkpoint(random_llava(Shape(MistralConfig, text=text)), tmp_path / "mistral")
    done = llava_here("gguf", "--model", tmp_path / "mistral", "--output-dir", tmp_path / "gguf")
    assert done.returncode == 0
    assert "attention sees 100 positions (sliding_window)" in " ".join((done.stdout + done.stderr).split())
    wide = Shape(Qwen2Config, text={"head_dim": 128, "num_key_value_heads": 2, **SPECIAL_IDS})
    save_checkpoint(random_llava(wide), tmp_path / "wide")
    with pytest.raises(ExportError, match=r"reads a Qwen2 only if .* model, 256; 4 heads of 128 are 512 wide"):
        export(tmp_path / "wide", tmp_path / "none")


def test_types_of_a_phi3_are_those_of_llama_cpps_quantizer():
    """Compare with the rules of llama.cpp for fused queries, keys and values, and for a fused gate."""
    columns = {"attn_qkv": 3072, "attn_output": 3072, "ffn_up": 3072, "ffn_down": 8192}

    def types(quantization: str, part: str) -> Counter[str]:
        it = ((f"blk.{i}.{part}.weight", (1, columns[part])) for i in range(32))
        return Counter(text_type(name, shape, quantization=quantization, num_layers=32).name for name, shape in it)

    assert types("q4_k_m", "attn_qkv") == {"Q5_K": 32} and types("q5_k_m", "attn_qkv") == {"Q6_K": 32}
    assert types("q4_k_s", "attn_qkv") == {"Q4_K": 32} and types("q4_0", "attn_qkv") == {"Q4_0": 32}
    assert types("q4_k_m", "ffn_up") == {"Q4_K": 32} and types("q4_k_m", "ffn_down") == {"Q4_K": 16, "Q6_K": 16}


@needs_llama_cpp
@pytest.mark.parametrize("shape", ["mistral", "qwen2", "phi3"])
def test_llama_cpp_says_what_the_float_model_says(shape, checkpoint_of, tmp_path):
    checkpoint = open_checkpoint(str(checkpoint_of(shape)))
    path = export(checkpoint_of(shape), tmp_path) / "ggml-model-f16.gguf"
    prompts = ["What is in the image?", "A red circle", "One, two, three, four, five"]
    found = list(next_tokens(path, checkpoint, prompts=prompts))
    assert all(token.top1 for token in found) and max(token.kl for token in found) < 1e-4

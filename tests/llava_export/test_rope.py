"""Scaled rotary embedding: its tables, its spellings, what is refused, and what GGUF files say of it."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from transformers import AutoConfig, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.checkpoint.prompt import find_prompt
from llava_export.config import LinearScaling, Llama3Scaling, TextConfig
from llava_export.errors import ConfigError
from llava_export.families import find_family
from llava_export.families.language_models import LLAMA
from llava_export.families.sections import text_config
from llava_export.gguf.export import export_gguf
from llava_export.gguf.verify import check
from llava_export.models.rotary import frequency_divisors, rotary_tables
from llava_export.split import split
from llava_export.stages import Stages
from llava_runner.documents import JsonObject
from tests.commands import llava_here
from tests.doctor import examine

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA31 = {**LLAMA3, "original_max_position_embeddings": 8192}
LONG = {"max_position_embeddings": 131072, "rope_theta": 500000.0}
SPELLINGS: dict[str, dict[str, Any]] = {
    "plain": {"rope_theta": 5000.0},
    "linear by its older name": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 3}, "rope_theta": 20000},
    "linear of transformers 5": {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 1e6}},
    "a factor of 1": {"rope_scaling": {"rope_type": "linear", "factor": 1.0}},
    "both names": {"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}},
    "both spellings": {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 7.0},
    },
    "null": {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
    "llama3": {**LONG, "rope_scaling": LLAMA31},
    "llama3 by the older name": {**LONG, "rope_scaling": {**LLAMA31, "type": "llama3"}},
    "llama3 of transformers 5": {"max_position_embeddings": 131072, "rope_parameters": {**LLAMA31, "rope_theta": 5e5}},
    "llama3 of other values": {
        **LONG,
        "head_dim": 80,
        "rope_scaling": {
            **LLAMA3,
            "factor": 32,
            "low_freq_factor": 0.5,
            "high_freq_factor": 7.5,
            "original_max_position_embeddings": 3000,
        },
    },
    "the original length is beside it": {**LONG, "original_max_position_embeddings": 4096, "rope_scaling": LLAMA31},
    "the original length is missing": {**LONG, "rope_scaling": LLAMA3},
}


def parsed(settings: dict[str, Any]) -> TextConfig:
    """Return the decoder's sizes that a Llama's ``config.json`` gives."""
    document = JsonObject(settings, what="config.json", error=ConfigError)
    return text_config(LLAMA.section(document), language_model=LLAMA, tied=False)


@pytest.mark.parametrize("name", SPELLINGS)
def test_frequencies_and_tables_equal_transformers(name):
    settings = {"hidden_size": 512, "num_attention_heads": 4, **SPELLINGS[name]}
    rotary = LlamaRotaryEmbedding(LlamaConfig(**copy.deepcopy(settings)))
    config = parsed(settings)
    theirs = rotary.inv_freq
    frequencies = config.rope_theta ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
    torch.testing.assert_close(frequencies / frequency_divisors(config), theirs, rtol=1e-6, atol=0)
    length = 64
    cos, sin = rotary(torch.zeros(1), torch.arange(length)[None])
    for ours, expected in zip(rotary_tables(config, length=length), (cos, sin), strict=True):
        assert ours.shape == (length, config.head_dim // 2)
        torch.testing.assert_close(ours, expected[0, :, : config.head_dim // 2], rtol=0, atol=1e-6)


def test_llama3_scales_low_frequencies_alone():
    config = parsed({"hidden_size": 4096, "num_attention_heads": 32, **LONG, "rope_scaling": LLAMA31})
    divisors = frequency_divisors(config)
    turns = 8192 * 500000.0 ** -(torch.arange(0, 128, 2) / 128) / (2 * math.pi)
    between = (turns > 1) & (turns < 4)
    assert set(divisors[turns > 4].tolist()) == {1.0} and set(divisors[turns < 1].tolist()) == {8.0}
    assert between.any() and all(1 < value < 8 for value in divisors[between].tolist())


def test_the_context_is_what_the_scaling_makes_room_for():
    vicuna = {"max_position_embeddings": 4096, "max_sequence_length": 16384}
    linear = {"rope_scaling": {"type": "linear", "factor": 4.0}}
    for settings, length in (
        ({**vicuna, **linear}, 16384),
        (vicuna, 4096),
        ({"max_position_embeddings": 16384, **linear}, 16384),
        ({"max_position_embeddings": 16384, "max_sequence_length": 2048, **linear}, 16384),
        ({**LONG, "rope_scaling": LLAMA31}, 131072),
    ):
        assert parsed(settings).max_position_embeddings == length, settings
    windowed = parsed({**vicuna, **linear, "sliding_window": 4096})
    assert (windowed.max_position_embeddings, windowed.max_context_len) == (16384, 4096)


@pytest.fixture
def folder(checkpoint_of, tmp_path) -> Path:
    """The folder of a copy that a test may change."""
    return Path(shutil.copytree(checkpoint_of("plain"), tmp_path / "copy"))


def set_rope(folder: Path, key: str, value: Any) -> None:
    """Change what ``config.json`` says of rotary embedding: nothing else than ``value`` under ``key``."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    text = {name: it for name, it in config["text_config"].items() if not name.startswith("rope_")}
    path.write_text(json.dumps({**config, "text_config": {**text, key: value}}))


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        *(
            ({name: kind, "factor": 2.0}, f"rotary embedding of type '{kind}' is not supported; default, linear and")
            for name in ("type", "rope_type")
            for kind in ("yarn", "dynamic", "longrope", "su", "proportional", "mrope", "Linear", "")
        ),
        ({"rope_type": {}, "factor": 2.0}, "rotary embedding of type {} is not supported"),
        ({"factor": 2.0}, r"text_config\.rope_\w+ in .* has a factor and no rope_type"),
        ({"type": None, "factor": 2.0}, "has a factor and no rope_type"),
        ({"type": "linear"}, r"text_config\.rope_\w+ in .*config.json lacks factor, which must be a number"),
        ({"type": "linear", "factor": 0.99}, "type linear: factor 0.99 must be a number from 1 to"),
        ({"type": "linear", "factor": -2}, r"type linear: factor -2.0 must be"),
        ({"type": "linear", "factor": 1e39}, r"type linear: factor 1e\+39 must be"),
        ({"type": "linear", "factor": math.inf}, r"factor in .* is inf; it must be a number"),
        ({"type": "linear", "factor": math.nan}, r"factor in .* is nan; it must be a number"),
        ({"type": "linear", "factor": "4"}, r"factor in .* is '4'; it must be a number"),
        ({"type": "linear", "factor": True}, r"factor in .* is True; it must be a number"),
        ({"type": "linear", "factor": [2.0]}, r"factor in .* is \[2.0\]; it must be a number"),
        ({"type": "linear", "factor": 2.0, "rope_theta": "x"}, r"rope_theta in .* is 'x'; it must be a number"),
        ({"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, r"partial_rotary_factor in .* is 0.5; only"),
        ({**LLAMA31, "factor": 0.5}, "type llama3: factor 0.5 must be a number from 1 to"),
        ({**LLAMA31, "factor": None}, r"lacks factor, which must be a number"),
        ({**LLAMA31, "low_freq_factor": None}, "lacks low_freq_factor, which must be a number"),
        ({**LLAMA31, "high_freq_factor": "4"}, "high_freq_factor in .* is '4'; it must be a number"),
        ({**LLAMA31, "low_freq_factor": math.inf}, "low_freq_factor in .* is inf; it must be a number"),
        ({**LLAMA31, "low_freq_factor": 0}, "low_freq_factor 0.0 must be above 0 and below high_freq_factor, 4.0"),
        ({**LLAMA31, "low_freq_factor": 4.0}, "low_freq_factor 4.0 must be above 0 and below high_freq_factor, 4.0"),
        ({**LLAMA31, "original_max_position_embeddings": 0}, "original_max_position_embeddings must be a positive"),
        ({**LLAMA31, "original_max_position_embeddings": 1 << 40}, "original_max_position_embeddings .* is above"),
        ({**LLAMA31, "original_max_position_embeddings": 8192.0}, r"is 8192.0; it must be a whole number"),
        ([], "it must be an object"),
        ("linear", "it must be an object"),
    ],
    ids=str,
)
def test_other_kinds_and_bad_values_are_refused(value, message, key, folder):
    set_rope(folder, key, value)
    with pytest.raises(ConfigError, match=message) as refused:
        open_checkpoint(str(folder))
    assert "\n" not in str(refused.value)


def test_commands_refuse_bad_scaling_in_one_line(folder, capsys):
    set_rope(folder, "rope_scaling", {"type": "linear", "factor": 0.5})
    message = "rotary embedding of type linear: factor 0.5 must be a number from 1 to"
    done = llava_here("export", "--model", folder, "--dry-run")
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    code, printed = examine(folder, capsys=capsys)
    assert code == 2 and message in printed


@pytest.fixture(scope="module")
def files_of(checkpoint_of, tmp_path_factory) -> Callable[[str], Path]:
    """A function ``files_of(shape)``: it returns the folder of the GGUF files of a random checkpoint, made once."""
    folders: dict[str, Path] = {}

    def make(shape: str) -> Path:
        if shape not in folders:
            folders[shape] = write_gguf(open_checkpoint(str(checkpoint_of(shape))), tmp_path_factory.mktemp(shape))
        return folders[shape]

    return make


def write_gguf(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write both GGUF files of a checkpoint to ``folder``. Return ``folder``."""
    prompt = find_prompt(checkpoint)
    export_gguf(checkpoint, quantization="f16", mmproj_type="f16", prompt=prompt, output_dir=folder, stages=Stages())
    return folder


def failures(folder: Path, model: Path | None = None) -> list[str]:
    """Return what the verification of a folder finds wrong."""
    return [
        it for comparison in check(folder, model=None if model is None else str(model)) for it in comparison.failures
    ]


def test_gguf_has_the_factor_of_linear_scaling(files_of, checkpoint_of, tmp_path):
    folder = files_of("linear_rope")
    assert failures(folder) == []
    reader = GGUFReader(folder / "ggml-model-f16.gguf")
    found = {key: it.contents() for key, it in reader.fields.items() if key.startswith("llama.rope.scaling.")}
    assert found == {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert reader.fields["llama.context_length"].contents() == 64
    assert all(not tensor.name.startswith("rope") for tensor in reader.tensors)
    # Changed in the file, and not in the checkpoint at all.
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    field = GGUFReader(changed / "ggml-model-f16.gguf", "r+").fields["llama.rope.scaling.factor"]
    field.parts[field.data[0]][0] = 2.0
    del field  # which writes the file
    failure, *_ = failures(changed)  # llama.cpp, where it is installed, also answers otherwise
    assert failure.endswith("llama.rope.scaling.factor is 2.0, and 4.0 in the checkpoint")
    plain = Path(shutil.copytree(checkpoint_of("linear_rope"), tmp_path / "plain"))
    set_rope(plain, "rope_theta", 10000.0)
    assert [failure.split(": ")[1].split(",")[0] for failure in failures(folder, plain)][:2] == [
        "says llama.rope.scaling.factor",
        "says llama.rope.scaling.type",
    ]


def test_gguf_has_the_divisors_of_llama3_scaling(files_of, checkpoint_of, tmp_path):
    folder = files_of("llama3_rope")
    assert failures(folder) == []
    reader = GGUFReader(folder / "ggml-model-f16.gguf")
    assert not any(key.startswith("llama.rope.scaling.") for key in reader.fields)
    (stored,) = (tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
    assert stored.tensor_type == GGMLQuantizationType.F32 and list(stored.shape) == [32]
    text = AutoConfig.from_pretrained(checkpoint_of("llama3_rope")).text_config
    unscaled = 500.0 ** -(torch.arange(0, 64, 2) / 64)
    expected = unscaled / LlamaRotaryEmbedding(text).inv_freq
    torch.testing.assert_close(torch.from_numpy(stored.data.copy()), expected, rtol=1e-6, atol=0)
    assert 1 < expected.unique().numel() < 32

    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    tensors = GGUFReader(changed / "ggml-model-f16.gguf", "r+").tensors
    next(tensor for tensor in tensors if tensor.name == "rope_freqs.weight").data[-1] = 7.0
    del tensors  # which writes the file
    assert any("rope_freqs.weight has an error of" in failure for failure in failures(changed))
    plain = Path(shutil.copytree(checkpoint_of("llama3_rope"), tmp_path / "plain"))
    set_rope(plain, "rope_theta", 500.0)
    assert any(failure.endswith("also has rope_freqs.weight (1 tensors)") for failure in failures(folder, plain))
    assert any(
        "lacks rope_freqs.weight" in it for it in failures(files_of("linear_rope"), checkpoint_of("llama3_rope"))
    )


@pytest.mark.parametrize("shape", ["linear_rope", "llama3_rope"])
def test_split_keeps_the_scaling(shape, checkpoint_of, tmp_path):
    checkpoint = open_checkpoint(str(checkpoint_of(shape)))
    split(checkpoint, tmp_path)
    settings = json.loads((tmp_path / "text-model" / "config.json").read_text())
    assert parsed(settings) == checkpoint.config.text
    assert isinstance(checkpoint.config.text.rope_scaling, LinearScaling if shape == "linear_rope" else Llama3Scaling)
    found = LlamaRotaryEmbedding(AutoConfig.from_pretrained(tmp_path / "text-model")).inv_freq
    expected = LlamaRotaryEmbedding(AutoConfig.from_pretrained(checkpoint_of(shape)).text_config).inv_freq
    assert torch.equal(found, expected)


def test_a_decoder_in_the_original_layout_is_scaled_alike():
    settings = {
        "model_type": "llava_llama",
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 1024,
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "max_sequence_length": 16384,
        "max_position_embeddings": 4096,
    }
    document = JsonObject(settings, what="config.json", error=ConfigError)
    text = find_family(document).parse_config(document, None).text
    assert text.rope_scaling == LinearScaling(factor=4.0) and text.max_position_embeddings == 16384

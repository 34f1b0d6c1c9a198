"""Adapters and projectors: what is exported is what peft merges, and what cannot be merged is named."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file

from llava_export.builtin import CHECKPOINTS
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.checkpoint.prompt import find_prompt
from llava_export.errors import CheckpointError, ConfigError
from llava_export.gguf.export import export_gguf
from llava_export.gguf.tensors import PART_KEYS, SOURCE
from llava_export.gguf.verify import check
from llava_export.reference import FloatReference
from llava_export.stages import Stages
from tests.adapters import (
    ATTENTION,
    LLAVA_CONFIG,
    Adapted,
    adapt_llava,
    adapt_original,
    random_projector,
    save_llama,
    save_tower,
)
from tests.checkpoints import SHAPES, VOCAB_SIZE, random_llava, save_checkpoint

NEW_TOKENS = 5
Q_PROJ = "language_model.layers.0.self_attn.q_proj"


def adapt_attention(folder: Path) -> Adapted:
    """Save an adapter of all attention, and all biases. Some layers have another rank or alpha than the others."""
    return adapt_llava(
        folder,
        dtype=torch.float16,
        r=4,
        lora_alpha=6,
        target_modules=ATTENTION,
        bias="all",
        rank_pattern={r"layers\.1\.self_attn\.v_proj": 7},
        alpha_pattern={"language_model.layers.0.self_attn.q_proj": 20},
    )


def adapt_grown(folder: Path) -> Adapted:
    """Save a rank-stabilized adapter with a grown vocabulary, whose embedding and head are saved as a whole."""
    return adapt_llava(
        folder,
        dtype=torch.bfloat16,
        prepare=lambda model: model.resize_token_embeddings(VOCAB_SIZE + NEW_TOKENS, mean_resizing=False),
        r=8,
        use_rslora=True,
        target_modules=["q_proj", "down_proj", "linear_2"],
        modules_to_save=["embed_tokens", "lm_head"],
    )


def adapt_dora(folder: Path) -> Adapted:
    """Save an adapter with DoRA."""
    return adapt_llava(folder, r=4, use_dora=True, target_modules=["q_proj", "v_proj", "up_proj", "fc1", "lm_head"])


def adapt_embedding(folder: Path) -> Adapted:
    """Save an adapter of the embedding and a convolution, with the projector as a whole."""
    return adapt_llava(
        folder,
        r=4,
        target_modules=["embed_tokens", "patch_embedding"],
        modules_to_save=["multi_modal_projector"],
    )


KINDS = {
    "attention": adapt_attention,
    "original": adapt_original,
    "grown": adapt_grown,
    "dora": adapt_dora,
    "embedding": adapt_embedding,
}


@pytest.fixture(scope="session")
def adapted_of(tmp_path_factory):
    """A function ``adapted_of(kind)``: it returns the folders of a random adapter, made once."""
    made: dict[str, Adapted] = {}

    def make(kind: str) -> Adapted:
        if kind not in made:
            made[kind] = KINDS[kind](tmp_path_factory.mktemp(kind))
        return made[kind]

    return make


def opened(adapted: Adapted) -> Checkpoint:
    """Return the checkpoint of an adapter whose base may be out of reach."""
    config = json.loads((adapted.adapter / "adapter_config.json").read_text())
    is_there = Path(config["base_model_name_or_path"]).is_dir()
    return open_checkpoint(str(adapted.adapter), base_model=None if is_there else str(adapted.base))


def tensors_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Return all tensors that a model is made of, as they are read."""
    tensors = checkpoint.weights.tensors(checkpoint.build_model(max_context_len=1))
    return {tensor.fqn: checkpoint.weights.read(tensor) for tensor in tensors}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_that_peft_merges(kind, adapted_of):
    checkpoint, merged = opened(adapted_of(kind)), open_checkpoint(str(adapted_of(kind).merged))
    assert checkpoint.config == merged.config
    found, expected = tensors_of(checkpoint), tensors_of(merged)
    assert found.keys() == expected.keys()
    base = tensors_of(open_checkpoint(str(adapted_of(kind).base))) if kind != "original" else {}
    changed = 0
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype
        # peft rounds what is added to the type of the weight, and then rounds the sum.
        step = torch.finfo(tensor.dtype).eps
        size = (
            expected[name].abs().max()
            if name not in base or base[name].shape != tensor.shape
            else (expected[name].double().abs() + base[name].double().abs())
        )
        assert ((tensor.double() - expected[name].double()).abs() <= step * size * (4 if step < 1e-4 else 1)).all(), (
            name
        )
        changed += name in base and not torch.equal(tensor, base[name])
    assert changed or not base


def test_the_vocabulary_grows_with_the_saved_embedding(adapted_of):
    config = opened(adapted_of("grown")).config
    assert config.text.vocab_size == VOCAB_SIZE + NEW_TOKENS
    assert open_checkpoint(str(adapted_of("grown").base)).config.text.vocab_size == VOCAB_SIZE


def answers(checkpoint: Checkpoint) -> list[torch.Tensor]:
    """Return the float model's features of an image, and its logits of a prompt and of one more token."""
    reference = FloatReference(checkpoint.build_model(max_context_len=64), weights=checkpoint.weights)
    features = reference.encode_image(np.random.default_rng(0).integers(0, 256, (3, 50, 40), dtype=np.uint8))
    rows = torch.cat([reference.embed([1, 5]), features, reference.embed([7])], dim=1)
    first = reference.decode(rows, position=0)
    return [features, first, reference.decode(reference.embed([9]), position=rows.shape[1])]


@pytest.mark.parametrize("kind", ["original", "dora", "embedding"])
def test_the_float_model_answers_as_the_merged_one(kind, adapted_of):
    for found, expected in zip(
        answers(opened(adapted_of(kind))), answers(open_checkpoint(str(adapted_of(kind).merged))), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_what_another_process_opens_is_the_same(adapted_of):
    checkpoint = opened(adapted_of("original"))
    again = pickle.loads(pickle.dumps(checkpoint.reopen))()
    found, expected = tensors_of(again), tensors_of(checkpoint)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_gguf_files_are_those_of_the_merged_checkpoint(adapted_of, tmp_path):
    folders = {}
    for name, checkpoint in (
        ("adapter", opened(adapted_of("original"))),
        ("merged", open_checkpoint(str(adapted_of("original").merged))),
    ):
        prompt = find_prompt(checkpoint).template
        files = export_gguf(
            checkpoint,
            quantization="f16",
            mmproj_type="f16",
            prompt=prompt,
            output_dir=tmp_path / name,
            stages=Stages(),
        )
        folders[name] = {file: GGUFReader(tmp_path / name / file) for file in files}
    for file, found in folders["adapter"].items():
        expected = folders["merged"][file]
        named = {"general.name", SOURCE, *PART_KEYS.values()}
        assert found.fields.keys() - named == expected.fields.keys() - named
        for ours, theirs in zip(found.tensors, expected.tensors, strict=True):
            assert (ours.name, ours.tensor_type, list(ours.shape)) == (
                theirs.name,
                theirs.tensor_type,
                list(theirs.shape),
            )
            np.testing.assert_allclose(
                dequantize(ours.data, ours.tensor_type),
                dequantize(theirs.data, theirs.tensor_type),
                rtol=2e-3,
                atol=1e-6,
            )
    assert [failure for comparison in check(tmp_path / "adapter") for failure in comparison.failures] == []


def test_the_prompt_and_tokenizer_beside_an_adapter_come_first(adapted_of, tmp_path):
    adapter = shutil.copytree(adapted_of("attention").adapter, tmp_path / "adapter")
    base = adapted_of("attention").base
    assert open_checkpoint(str(adapter)).tokenizer_folder == base
    assert open_checkpoint(str(adapter)).file("tokenizer.model") == base / "tokenizer.model"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(CHECKPOINTS["tiny-llava"] / name, adapter)
    (adapter / "chat_template.jinja").write_text(
        (adapter / "chat_template.jinja").read_text().replace("ASSISTANT:", "HELPER:")
    )
    checkpoint = open_checkpoint(str(adapter))
    assert checkpoint.tokenizer_folder == adapter
    assert "HELPER:" in find_prompt(checkpoint).template.assistant


def test_the_base_is_found_where_the_adapter_names_it(adapted_of, tmp_path):
    adapted = adapted_of("attention")
    shutil.copytree(adapted.base, tmp_path / "models" / "base")
    adapter = shutil.copytree(adapted.adapter, tmp_path / "adapters" / "mine")
    change_json(adapter / "adapter_config.json", base_model_name_or_path="../../models/base")
    checkpoint = open_checkpoint(str(adapter))
    assert checkpoint.notes == (f"{adapter}: a LoRA merged into ../../models/base",)
    assert checkpoint.source == f"{adapter}; a LoRA merged into ../../models/base"
    change_json(adapter / "adapter_config.json", base_model_name_or_path="someone/of-nowhere")
    with pytest.raises(CheckpointError, match=r"adapter of someone/of-nowhere, which was not found.*--base-model"):
        open_checkpoint(str(adapter))
    assert open_checkpoint(str(adapter), base_model=str(adapted.base)).notes[0].endswith(str(adapted.base))
    with pytest.raises(CheckpointError, match="itself an adapter; --base-model takes a whole model"):
        open_checkpoint(str(adapter), base_model=str(shutil.copytree(adapted_of("original").adapter, tmp_path / "o")))


def change_json(path: Path, **changes: object) -> None:
    """Change values of a JSON object in a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def adapter(adapted_of, tmp_path) -> Path:
    """The folder of a copy of an adapter that a test may damage."""
    return Path(shutil.copytree(adapted_of("attention").adapter, tmp_path / "adapter"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'; only LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'.*merge_and_unload"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights 'loftq'"),
        ({"target_parameters": ["mlp.experts"]}, "has target_parameters, which"),
        ({"lora_bias": True, "use_qalora": True}, "has lora_bias, use_qalora, which"),
        ({"kasa_config": {"beta": 1}}, "has kasa_config, which"),
        ({"use_something_new": True}, "has use_something_new, which"),
        ({"r": 5}, r"self_attn.* the rank 5, and its matrices have the rank 4"),
        ({"r": "4"}, "r .* is '4'; it must be a whole number"),
        ({"alpha_pattern": {"[": 2}}, "is no pattern"),
        ({"use_dora": True}, "lora_magnitude_vector is odd"),
        ({"base_model_name_or_path": None}, "does not name its base model: give it with --base-model"),
    ],
)
def test_options_that_cannot_be_merged_are_named(changes, message, adapter):
    change_json(adapter / "adapter_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(adapter))


def edit_weights(adapter: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors of an adapter, or remove them. Keys have dots in place of two underscores."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name, tensor in changes.items():
        key = f"base_model.model.model.{name.replace('__', '.')}"
        tensors.pop(key, None)
        if tensor is not None:
            tensors[key] = tensor
    save_file(tensors, adapter / "adapter_model.safetensors")


def test_all_keys_that_match_nothing_and_all_wrong_shapes_are_named_at_once(adapter):
    q_proj = Q_PROJ.replace(".", "__")
    edit_weights(
        adapter,
        **{
            f"{q_proj}__lora_A__weight": torch.zeros(4, 99),
            f"{q_proj}__bias": torch.zeros(256),
            "language_model__layers__7__mlp__up_proj__lora_A__weight": torch.zeros(4, 256),
            "language_model__layers__7__mlp__up_proj__lora_B__weight": torch.zeros(384, 4),
        },
    )
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(adapter))
    assert "3 of its keys match no parameter" in str(caught.value)
    assert f"{Q_PROJ}.bias" in str(caught.value) and "layers.7.mlp.up_proj.lora_A.weight" in str(caught.value)
    assert f"{Q_PROJ} has [4, 99] and [256, 4] for a weight of [256, 256]" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("lora_B__weight", None, "lora_B is odd"),
        ("lora_A__weight", torch.zeros(0), "not saved as a whole"),
        ("lora_A__weight", torch.zeros(4, 256, dtype=torch.int8), "is I8; only float16"),
    ],
)
def test_matrices_that_are_none_are_named(part, value, message, adapter):
    edit_weights(adapter, **{f"{Q_PROJ.replace('.', '__')}__{part}": value})
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(adapter))


def test_matrices_with_nan_are_named_when_they_are_read(adapter):
    edit_weights(adapter, **{f"{Q_PROJ.replace('.', '__')}__lora_B__weight": torch.full((256, 4), torch.nan)})
    with pytest.raises(CheckpointError, match=r"q_proj.lora_B.weight in .*adapter_model.* has NaN or infinity"):
        tensors_of(open_checkpoint(str(adapter)))


def test_a_base_of_other_sizes_is_named(adapter, checkpoint_of):
    with pytest.raises(CheckpointError, match=r"k_proj has \[4, 256\] and \[256, 4\] for a weight of \[64, 256\]"):
        open_checkpoint(str(adapter), base_model=str(checkpoint_of("grouped_query")))


def test_files_that_are_missing_or_too_many_are_named(adapter, adapted_of):
    shutil.copy(adapted_of("attention").base / "model.safetensors", adapter)
    with pytest.raises(CheckpointError, match="both an adapter and the weights of a whole model"):
        open_checkpoint(str(adapter))
    (adapter / "model.safetensors").unlink()
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    assert len(tensors_of(open_checkpoint(str(adapter))))  # the other format
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"neither adapter_model.safetensors nor adapter_model.bin"):
        open_checkpoint(str(adapter))


def test_a_tied_head_cannot_be_changed_alone(adapted_of, checkpoint_of, adapter):
    assert open_checkpoint(str(adapter), base_model=str(checkpoint_of("tied_head"))).config.text.tie_word_embeddings
    with pytest.raises(ConfigError, match="tie_word_embeddings"):
        open_checkpoint(str(adapted_of("embedding").adapter), base_model=str(checkpoint_of("tied_head")))


def save_projector(path: Path, *, seed: int, prefix: str = "model.mm_projector.") -> dict[str, torch.Tensor]:
    """Save a projector as LLaVA's pretraining does. Return its tensors by the names of ours."""
    projector = random_projector(seed=seed).state_dict()
    torch.save({prefix + name: tensor for name, tensor in projector.items()}, path)
    names = {"0": "linear_1", "2": "linear_2"}
    return {f"vision_encoder.projector.{names[key[0]]}{key[1:]}": tensor for key, tensor in projector.items()}


@pytest.fixture
def llama(tmp_path) -> Path:
    """The folder of a language model without vision tower and projector."""
    save_llama(tmp_path / "llama")
    return tmp_path / "llama"


def test_a_projector_alone_goes_with_its_base(llama, tmp_path):
    folder = tmp_path / "pretrained"
    folder.mkdir()
    expected = save_projector(folder / "mm_projector.bin", seed=5)
    with pytest.raises(CheckpointError, match=r"has only a projector: name the language model .* --base-model"):
        open_checkpoint(str(folder))
    with pytest.raises(ConfigError, match=r"no config.json beside .*mm_projector.bin that names one: .*--vision-tower"):
        open_checkpoint(str(folder), base_model=str(llama))
    tower = save_tower(tmp_path / "tower")
    checkpoint = open_checkpoint(str(folder), base_model=str(llama), vision_tower=str(tower))
    (folder / "config.json").write_text(json.dumps({**LLAVA_CONFIG, "mm_vision_tower": "../tower"}))
    again = open_checkpoint(str(llama), projector=str(folder))  # the same, and its config.json is read
    for found in (tensors_of(checkpoint), tensors_of(again)):
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert torch.equal(
            found["token_embedding.weight"], load_file(llama / "model.safetensors")["model.embed_tokens.weight"]
        )


@pytest.mark.parametrize("prefix", ["mm_projector.", "model.mm_projector.", "base_model.model.model.mm_projector."])
def test_a_projector_replaces_that_of_any_layout(prefix, checkpoint_of, tmp_path):
    expected = save_projector(tmp_path / "trained.bin", seed=6, prefix=prefix)
    base = checkpoint_of("plain")
    checkpoint = open_checkpoint(str(base), projector=str(tmp_path / "trained.bin"))
    found, before = tensors_of(checkpoint), tensors_of(open_checkpoint(str(base)))
    for name, tensor in found.items():
        assert torch.equal(tensor, expected.get(name, before[name]))
    assert tmp_path / "trained.bin" in checkpoint.paths and "trained.bin" in checkpoint.source


def test_projectors_that_are_none_are_named(checkpoint_of, tmp_path):
    base = str(checkpoint_of("plain"))
    with pytest.raises(CheckpointError, match="neither an adapter nor a projector alone"):
        open_checkpoint(base, base_model="tiny-llava")
    with pytest.raises(CheckpointError, match=r"is no folder and no .bin or .safetensors file"):
        open_checkpoint(base, projector=str(tmp_path / "nothing.bin"))
    with pytest.raises(CheckpointError, match=r"has no mm_projector.bin and no mm_projector.safetensors"):
        open_checkpoint(base, projector=str(tmp_path))
    torch.save({"model.mm_projector.weight": torch.zeros(256, 128)}, tmp_path / "mm_projector.bin")
    with pytest.raises(CheckpointError, match=r"no part of a projector that fits .* \(model.mm_projector.weight\)"):
        open_checkpoint(base, projector=str(tmp_path))
    torch.save({"mm_projector.0.weight": torch.zeros(256, 77)}, tmp_path / "mm_projector.bin")
    with pytest.raises(CheckpointError, match=r"is \[256, 77\], config.json says \[256, 128\]"):
        open_checkpoint(base, projector=str(tmp_path))


def test_an_adapter_of_a_whole_llava_may_be_in_the_original_layout(adapted_of, tmp_path):
    base = save_checkpoint(random_llava(SHAPES["plain"]), tmp_path / "base")
    found = tensors_of(open_checkpoint(str(adapted_of("original").adapter), base_model=str(base)))
    before = tensors_of(open_checkpoint(str(base)))
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert {name for name in found if "_proj.weight" in name and name.startswith("text_decoder")} <= changed
    assert not any(name.startswith("vision_encoder.vision_tower") for name in changed)

"""MobileVLM against its published formulas and transformers' modules, LLaVA's original layout, and mismatched parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.checkpoint.reader import CheckpointReader
from llava_export.checkpoint.weights import Weights
from llava_export.config import ProjectorConfig
from llava_export.errors import CheckpointError, ConfigError
from llava_export.families import MOBILEVLM
from llava_export.models.llava import LlavaModel
from llava_export.models.projectors import build_projector
from llava_export.reference import FloatReference
from tests.checkpoints import MOBILEVLM_SHAPES, TOWER, random_ldp

INSIDE = "model.vision_tower.vision_tower."


# The published projectors, in torch's own modules. Shapes are [1, C, S, S] within a projector.


def convolution(x: Tensor, weights: dict[str, Tensor], name: str, *, stride: int = 1, groups: int = 1) -> Tensor:
    """Return a convolution with the weights under ``name``."""
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    outputs, inputs, size, _ = weight.shape
    module = nn.Conv2d(
        inputs * groups, outputs, size, stride=stride, padding=size // 2, groups=groups, bias=bias is not None
    )
    module.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return module(x)


def channel_norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    """Return a layer norm over channels with the weights under ``name``."""
    module = nn.LayerNorm(x.shape[1], eps=1e-5)
    module.load_state_dict({what: weights[f"{name}.{what}"] for what in ("weight", "bias")})
    return module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def mlp(x: Tensor, weights: dict[str, Tensor], first: str, second: str) -> Tensor:
    """Return two linears with GELU between them."""
    hidden = F.gelu(F.linear(x, weights[f"{first}.weight"], weights[f"{first}.bias"]))
    return F.linear(hidden, weights[f"{second}.weight"], weights[f"{second}.bias"])


def ldp(features: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Return what MobileVLM's projector makes of features ``[1, N, in]``: rows ``[1, N / 4, C]``."""
    rows = mlp(features, weights, "model.mlp.1", "model.mlp.3")
    side = round(rows.shape[1] ** 0.5)
    x = rows.transpose(1, 2).reshape(1, -1, side, side)
    for i, stride in ((1, 1), (2, 2)):
        name, entering = f"model.mb_block.{i}.block", x
        x = convolution(x, weights, f"{name}.0.0", stride=stride, groups=x.shape[1])
        x = nn.Hardswish()(channel_norm(x, weights, f"{name}.0.1"))
        squeezed = F.relu(convolution(x.mean((2, 3), keepdim=True), weights, f"{name}.1.fc1"))
        x = x * nn.Hardsigmoid()(convolution(squeezed, weights, f"{name}.1.fc2"))
        x = channel_norm(convolution(x, weights, f"{name}.2.0"), weights, f"{name}.2.1")
        x = x + entering if stride == 1 else x
    return x.flatten(2).transpose(1, 2)


def ldpv2(features: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Return what MobileVLM V2's projector makes of features ``[1, N, in]``: rows ``[1, N / 4, C]``."""
    rows = mlp(features, weights, "mlp.mlp.0", "mlp.mlp.2")
    side = round(rows.shape[1] ** 0.5)
    x = nn.AvgPool2d(2, 2)(rows.transpose(1, 2).reshape(1, -1, side, side))
    return (x + convolution(x, weights, "peg.peg.0", groups=x.shape[1])).flatten(2).transpose(1, 2)


# By mm_projector_type: our name of the projector, and its formula.
REFERENCES = {"ldpnet": ("ldp", ldp), "ldpnetv2": ("ldpv2", ldpv2)}


class InMemoryReader(CheckpointReader):
    """A reader of a dictionary instead of a checkpoint's files."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        """Keep the tensors. No files are opened."""
        self._tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def read(self, key: str) -> Tensor:
        """Return a tensor."""
        return self._tensors[key]


@pytest.mark.parametrize("side", [24, 6, 2])
@pytest.mark.parametrize("width", [2048, 2560])
@pytest.mark.parametrize("published", REFERENCES)
@torch.no_grad()
def test_projectors_equal_the_published_formulas(published, width, side, checkpoint_of):
    features, (kind, reference) = 64, REFERENCES[published]
    tensors = random_ldp(published, features=features, width=width)
    config = ProjectorConfig(
        type=kind, in_features=features, out_features=width, hidden_act="gelu", bias=True, grid_side=side
    )
    projector = build_projector(config).eval()
    weights = Weights(
        InMemoryReader({f"model.mm_projector.{name}": tensor for name, tensor in tensors.items()}),
        family=MOBILEVLM,
        config=open_checkpoint(str(checkpoint_of("mobilevlm"))).config,
    )
    weights.fill(projector, prefix="vision_encoder.projector")
    x = torch.randn(1, side * side, features, generator=torch.Generator().manual_seed(side))
    found, expected = projector(x), reference(x, tensors)
    assert found.shape == (1, side * side // 4, width)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def load(checkpoint: Checkpoint) -> LlavaModel:
    """Return the model with its weights."""
    model = checkpoint.build_model(max_context_len=64)
    checkpoint.weights.fill(model, prefix="")
    return model


@pytest.mark.parametrize("name", MOBILEVLM_SHAPES)
@torch.no_grad()
def test_the_whole_model_equals_transformers_parts_and_the_formulas(name, checkpoint_of):
    folder = checkpoint_of(name)
    checkpoint = open_checkpoint(str(folder))
    ours = load(checkpoint)
    stored = {key: value.float() for key, value in torch.load(folder / "pytorch_model.bin").items()}
    settings = json.loads((folder / "config.json").read_text())
    tower = CLIPVisionModel(CLIPVisionConfig(**TOWER)).eval()
    names = {key.removeprefix("vision_model."): key for key in tower.state_dict()}
    tower.load_state_dict({key: stored[f"{INSIDE}vision_model.{short}"] for short, key in names.items()})
    decoder = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in settings.items() if k != "model_type"})).eval()
    decoder.load_state_dict({key: stored[key] for key in decoder.state_dict()})
    projector = {k.removeprefix("model.mm_projector."): v for k, v in stored.items() if "mm_projector" in k}

    image = torch.randint(0, 256, (3, 56, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixel_values = ours.vision_encoder.pixel_values(image)
    patches = tower(pixel_values, output_hidden_states=True).hidden_states[-2][:, 1:]
    features = REFERENCES[settings["mm_projector_type"]][1](patches, projector)
    found = ours.vision_encoder(image)
    assert found.shape == (1, checkpoint.config.num_image_tokens, settings["hidden_size"])
    torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-4)

    ids = torch.tensor([[1, 7, 100, 511]])
    rows = torch.cat([ours.token_embedding(ids), features], dim=1)
    expected = decoder(inputs_embeds=torch.cat([decoder.get_input_embeddings()(ids), features], 1)).logits[:, -1]
    logits = ours.text_decoder(rows, torch.tensor([0]))
    assert float((logits - expected).abs().max() / expected.abs().max()) < 1e-4

    reference = FloatReference(checkpoint.build_model(max_context_len=64), weights=checkpoint.weights)
    torch.testing.assert_close(reference.encode_image(image.numpy()), found, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reference.decode(rows, position=0), logits.flatten(), rtol=1e-4, atol=1e-4)


@pytest.fixture
def folder(checkpoint_of, tmp_path) -> Path:
    """The folder of a copy that a test may change."""
    return shutil.copytree(checkpoint_of("mobilevlm"), tmp_path / "copy")


def change_config(path: Path, **changes: object) -> None:
    """Change values in a ``config.json``."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def remove_tower(folder: Path) -> dict[str, Tensor]:
    """Remove the vision tower from a checkpoint's weights. Return its tensors."""
    tensors = torch.load(folder / "pytorch_model.bin")
    torch.save({k: v for k, v in tensors.items() if not k.startswith(INSIDE)}, folder / "pytorch_model.bin")
    return {k.removeprefix(INSIDE): v for k, v in tensors.items() if k.startswith(INSIDE)}


def save_clip(tower: dict[str, Tensor], folder: Path) -> Path:
    """Save a whole CLIP checkpoint with this vision tower and a text half, as OpenAI's are. Return ``folder``."""
    config = CLIPConfig(vision_config=TOWER, text_config={"hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 99})
    clip = CLIPModel(config)
    names = {key.removeprefix("vision_model."): key for key in clip.state_dict() if key.startswith("vision_model.")}
    clip.load_state_dict({key: tower[f"vision_model.{short}"].float() for short, key in names.items()}, strict=False)
    clip.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("named_by", ["flag", "config, absolute", "config, in the checkpoint"])
def test_a_tower_in_a_folder_of_its_own_is_the_same(named_by, folder, checkpoint_of, tmp_path):
    expected = load(open_checkpoint(str(checkpoint_of("mobilevlm")))).vision_encoder.state_dict()
    shutil.rmtree(folder / "tower")
    clip = save_clip(remove_tower(folder), folder / "clip" if "in the" in named_by else tmp_path / "clip")
    name = {"flag": "openai/some-tower", "config, absolute": str(clip)}.get(named_by, "clip")
    change_config(folder / "config.json", mm_vision_tower=name)
    checkpoint = open_checkpoint(str(folder), vision_tower=str(clip) if named_by == "flag" else None)
    found = load(checkpoint).vision_encoder.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_published_tower_needs_no_config_where_its_weights_are_inside(folder):
    change_config(
        folder / "config.json", mm_vision_tower="/home/someone/clip-vit-large-patch14-336", mm_hidden_size=1024
    )
    with pytest.raises(CheckpointError, match=r"position_embedding.weight is \[17, 128\].* says \[577, 1024\]"):
        open_checkpoint(str(folder))


def test_without_a_tower_anywhere_the_message_says_what_to_give(folder):
    remove_tower(folder)
    change_config(folder / "config.json", mm_vision_tower="./nowhere/tower")
    with pytest.raises(CheckpointError, match=r"vision tower, ./nowhere/tower in config.json.*--vision-tower"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("mobilevlm", "ldpnetv2", "mm_projector_type ldpnetv2, but the weights are those of ldpnet:"),
        ("mobilevlm_v2", "ldpnet", "mm_projector_type ldpnet, but the weights are those of ldpnetv2:"),
        ("mobilevlm", "mlp2x_gelu", "mm_projector_type 'mlp2x_gelu' is not supported; choose from ldpnet, ldpnetv2"),
        ("mobilevlm", None, "mm_projector_type None is not supported"),
    ],
)
def test_weights_of_another_projector_are_named(name, other, message, checkpoint_of, tmp_path):
    folder = shutil.copytree(checkpoint_of(name), tmp_path / "copy")
    change_config(folder / "config.json", mm_projector_type=other)
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 64}, "mm_hidden_size 128, but the vision tower's hidden_size is 64"),
        ({"image_size": 70}, "halves the grid of patches, and 5 a side cannot be halved"),
        ({"model_type": "dinov2"}, "'dinov2' is not supported"),
        ({"vision_config": 3}, "vision_config in .* is 3; it must be an object"),
    ],
    ids=str,
)
def test_a_tower_of_another_size_is_named(changes, message, folder):
    change_config(folder / "tower" / "config.json", **changes)
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(str(folder))


def test_a_tower_for_smaller_images_does_not_replace_the_published_one(folder, tmp_path):
    clip = save_clip(remove_tower(folder), tmp_path / "clip")
    change_config(folder / "config.json", mm_vision_tower="openai/clip-vit-large-patch14-336")
    with pytest.raises(ConfigError, match=r"trained with openai/clip-vit-large-patch14-336, whose hidden_size is 1024"):
        open_checkpoint(str(folder), vision_tower=str(clip))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_vision_tower": None}, "must name a vision tower"),
        ({"mm_vision_select_feature": "all"}, "choose from patch, cls_patch"),
        ({"mm_vision_select_feature": "cls_patch"}, "reads a grid of 16 patches, and the vision tower gives 17 rows"),
        ({"mm_use_im_start_end": "yes"}, "mm_use_im_start_end in .* must be true or false"),
        ({"hidden_act": "gelu"}, "silu is"),
    ],
    ids=str,
)
def test_configs_that_no_released_model_has_are_refused(changes, message, folder):
    change_config(folder / "config.json", **changes)
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(str(folder))


def original_llava(source: Path, folder: Path) -> tuple[Path, Path]:
    """Save a llava-hf checkpoint in the layout of LLaVA's authors. Return the model's folder and the vision tower's."""
    tensors = load_file(source / "model.safetensors")
    settings = json.loads((source / "config.json").read_text())
    decoder = {k.removeprefix("language_model."): v for k, v in tensors.items() if k.startswith("language_model.")}
    for i, theirs in (("1", "0"), ("2", "2")):
        for what in ("weight", "bias"):
            decoder[f"model.mm_projector.{theirs}.{what}"] = tensors[f"multi_modal_projector.linear_{i}.{what}"]
    tower = {k.removeprefix("vision_tower."): v for k, v in tensors.items() if k.startswith("vision_tower.")}
    model, clip = folder / "llava", folder / "clip"
    for path, content, config in (
        (
            model,
            decoder,
            {
                **settings["text_config"],
                "model_type": "llava",
                "mm_projector_type": "mlp2x_gelu",
                "mm_vision_tower": str(clip),
                "mm_hidden_size": 128,
            },
        ),
        (clip, tower, settings["vision_config"]),
    ):
        path.mkdir()
        save_file(content, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(config))
    shutil.copy(source / "tokenizer.model", model)
    return model, clip


def test_the_original_llava_layout_gives_the_same_model(checkpoint_of, tmp_path):
    model, _ = original_llava(checkpoint_of("plain"), tmp_path)
    found, expected = (open_checkpoint(str(folder)) for folder in (model, checkpoint_of("plain")))
    assert found.config == expected.config and found.family.name == expected.family.name == "llava-1.5"
    ours, theirs = (load(checkpoint).state_dict() for checkpoint in (found, expected))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_tower_is_not_given_to_a_checkpoint_that_names_none(checkpoint_of, tmp_path):
    _, clip = original_llava(checkpoint_of("plain"), tmp_path)
    with pytest.raises(ConfigError, match="have theirs inside"):
        open_checkpoint(str(checkpoint_of("plain")), vision_tower=str(clip))

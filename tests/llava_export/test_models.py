"""The eager model against transformers: image and text together, in prefill and in decode with the cache."""

from __future__ import annotations

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.models.llama import QkvLinear
from llava_export.models.llava import LlavaModel
from llava_export.reference import FloatModel, FloatReference
from tests.checkpoints import SHAPES, VOCAB_SIZE, random_llava, save_checkpoint

TOLERANCE = 1e-4


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference, divided by the largest magnitude expected."""
    return float((found - expected).abs().max() / expected.abs().max())


def load(folder) -> LlavaModel:
    """Return the model in a folder with its weights."""
    checkpoint = open_checkpoint(str(folder))
    model = checkpoint.build_model(max_context_len=64)
    checkpoint.weights.fill(model, prefix="")
    return model


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_logits_equal_transformers_in_prefill_and_decode(shape, checkpoint_of):
    folder = checkpoint_of(shape)
    theirs = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    ours = load(folder)
    torch.manual_seed(1)
    side = ours.vision_encoder.image_size
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    pixel_values = ours.vision_encoder.pixel_values(image)
    features = ours.vision_encoder(image)
    before, after, answer = torch.randint(3, 500, (1, 5)), torch.randint(3, 500, (1, 7)), torch.randint(3, 500, (3,))

    image_ids = torch.full((1, features.shape[1]), theirs.config.image_token_id)
    output = theirs(
        input_ids=torch.cat([before, image_ids, after], 1), pixel_values=pixel_values, use_cache=True, logits_to_keep=1
    )
    rows, position = torch.cat([ours.token_embedding(before), features, ours.token_embedding(after)], 1), 0
    for token in answer:
        found = ours.text_decoder(rows, torch.tensor([position]))
        assert relative_error(found, output.logits) < TOLERANCE
        position += rows.shape[1]
        rows = ours.token_embedding(token.view(1, 1))
        output = theirs(input_ids=token.view(1, 1), past_key_values=output.past_key_values, use_cache=True)
    assert relative_error(ours.text_decoder(rows, torch.tensor([position])), output.logits) < TOLERANCE


@pytest.mark.parametrize("size", [(56, 56), (31, 56), (56, 2), (17, 40)])
def test_pixel_values_pad_with_the_mean_color(size, checkpoint_of):
    model = load(checkpoint_of("plain")).vision_encoder
    height, width = size
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    square = mean.expand(3, 56, 56).clone()
    top, left = (56 - height) // 2, (56 - width) // 2
    square[:, top : top + height, left : left + width] = image / 255
    torch.testing.assert_close(model.pixel_values(image), ((square - mean) / std)[None], rtol=1e-5, atol=1e-5)


def test_fused_queries_are_the_parts_reordered_within_heads():
    layer = QkvLinear(8, num_heads=2, num_key_value_heads=1, head_dim=4, bias=False)
    q, k, v = torch.arange(8.0)[:, None], 10 + torch.arange(4.0)[:, None], 20 + torch.arange(4.0)[:, None]
    fused = layer.fuse([q, k, v]).flatten().tolist()
    assert fused == [0, 1, 4, 5, 2, 3, 6, 7, 10, 11, 12, 13, 20, 21, 22, 23]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_reference_run_block_by_block_equals_the_whole_model(dtype, tmp_path):
    folder = save_checkpoint(random_llava(SHAPES["biases"], seed=3).to(dtype), tmp_path / "checkpoint")
    checkpoint = open_checkpoint(str(folder))
    whole = load(folder)
    steps = []
    reference = FloatReference(
        checkpoint.build_model(max_context_len=64), weights=checkpoint.weights, on_block=lambda: steps.append(1)
    )
    image = torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8)
    features = whole.vision_encoder(image)
    torch.testing.assert_close(reference.encode_image(image.numpy()), features, rtol=1e-5, atol=1e-5)
    ids = list(range(3, 9))
    rows = reference.embed(ids)
    assert torch.equal(rows, whole.token_embedding(torch.tensor([ids])))
    for position, piece in ((0, features), (features.shape[1], rows), (features.shape[1] + len(ids), rows[:, :1])):
        expected = whole.text_decoder(piece, torch.tensor([position])).flatten()
        torch.testing.assert_close(reference.decode(piece, position=position), expected, rtol=1e-5, atol=1e-5)
    assert all(parameter.is_meta for parameter in reference._model.parameters())
    num_blocks = len(list(reference._model.blocks()))
    assert len(steps) == num_blocks + 2 * (checkpoint.config.text.num_hidden_layers + 2)  # the decoder ran three times
    for model in (reference, FloatModel(whole)):
        each = [model.decode(rows[:, i : i + 1], position=i) for i in range(len(ids))]
        torch.testing.assert_close(model.verify(rows, position=0), torch.stack(each), rtol=1e-5, atol=1e-5)


def test_positions_beyond_the_context_are_refused(checkpoint_of):
    model = load(checkpoint_of("plain"))
    rows = model.token_embedding(torch.tensor([[5] * 3]))
    with pytest.raises(RuntimeError):
        model.text_decoder(rows, torch.tensor([62]))
    assert model.text_decoder(rows, torch.tensor([61])).shape[-1] == VOCAB_SIZE

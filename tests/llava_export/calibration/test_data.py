"""Samples as rows of the decoder, against the whole float model and against transformers' processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from llava_export.builtin import CHECKPOINTS, SAMPLE_IMAGE
from llava_export.calibration.data import calibration_rows, num_steps
from llava_export.calibration.samples import Sample, open_samples
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.checkpoint.prompt import find_prompt
from llava_export.errors import CalibrationError, CorpusError
from llava_export.reference import FloatReference
from llava_export.streams import DecoderBlocks, Stream
from llava_runner.errors import ImageError, PromptError
from llava_runner.image import preprocess
from llava_runner.prompt import Span

TINY = str(CHECKPOINTS["tiny-llava"])


class Embedder:
    """Embeds as a checkpoint does, and remembers the ids."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.ids: list[list[int]] = []
        self._blocks = DecoderBlocks(checkpoint, max_len=8)

    def __call__(self, sequences: list[Tensor]) -> list[Tensor]:
        self.ids += [ids.tolist() for ids in sequences]
        return self._blocks.embed(sequences)


def rows_of(
    checkpoint: Checkpoint, samples: list[Sample], *, max_len: int = 256, **options: Any
) -> tuple[list[Tensor], list[list[int]]]:
    embedder = Embedder(checkpoint)
    prompt = find_prompt(checkpoint, given=options.pop("given", None))
    rows = calibration_rows(checkpoint, samples, prompt=prompt, max_len=max_len, embed=embedder, **options)
    return rows, embedder.ids


@torch.no_grad()
def whole_features(checkpoint: Checkpoint, pixels: np.ndarray) -> Tensor:
    """Return an image's features by the model with all its weights."""
    model = checkpoint.build_model(max_context_len=1)
    checkpoint.weights.fill(model, prefix="")
    return model.vision_encoder(torch.from_numpy(pixels))


def sample_pixels(checkpoint: Checkpoint) -> np.ndarray:
    """Return the sample image as the model sees it."""
    images = checkpoint.images
    pixels = preprocess(
        Image.open(SAMPLE_IMAGE).convert("RGB"),
        image_size=images.size,
        image_mean=images.mean,
        image_aspect_ratio=images.aspect_ratio,
        image_resize=images.resize,
        image_resample=images.resample,
    )
    return pixels


@pytest.mark.parametrize("shape", ["several_feature_layers", "last_layer_with_class_token", "mobilevlm"])
def test_images_together_have_the_features_of_the_whole_model(shape, checkpoint_of):
    checkpoint = open_checkpoint(str(checkpoint_of(shape)))
    side = checkpoint.images.size
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (3, height, side), dtype=np.uint8) for height in (side, side // 2, side)]
    blocks = []
    reference = FloatReference(
        checkpoint.build_model(max_context_len=1), weights=checkpoint.weights, on_block=lambda: blocks.append(1)
    )
    found = reference.encode_images(images)
    for features, pixels in zip(found, images, strict=True):
        torch.testing.assert_close(features, whole_features(checkpoint, pixels), rtol=1e-4, atol=1e-4)
    assert len(blocks) == checkpoint.config.num_vision_layers + 3  # each block is read once


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_conversation_is_what_the_processor_makes_of_it(name):
    """Tokens and places, by the text that the checkpoint's own template and tokenizer make in transformers."""
    from llava_export.checkpoint.processor import Processor

    checkpoint = open_checkpoint(str(CHECKPOINTS[name]))
    samples = [
        Sample(SAMPLE_IMAGE, "What is in the image?", "A red circle."),
        Sample(SAMPLE_IMAGE, "Where is it?", ""),
        Sample(None, "Who are you?", "A model.\n\n1. Yes"),
    ]
    rows, ids = rows_of(checkpoint, samples)
    prompt = find_prompt(checkpoint).template
    texts = [
        (f"{prompt.system}USER: ", "\nWhat is in the image? ASSISTANT: A red circle.</s>"),
        (f"{prompt.system}USER: ", "\nWhere is it? ASSISTANT:"),
        (f"{prompt.system}USER: Who are you? ASSISTANT: A model.\n\n1. Yes</s>",),
    ]
    count = checkpoint.config.num_image_tokens
    processor = Processor.open(checkpoint)
    assert processor is not None
    features = whole_features(checkpoint, sample_pixels(checkpoint))
    for found, found_ids, text in zip(rows, ids, texts, strict=True):
        expected = processor.prompt_ids(list(text), adds_bos=checkpoint.tokenizer.rules.adds_bos)
        assert found_ids == [number for part in expected for number in part]
        assert found.shape[1] == len(found_ids) + count * (len(text) - 1)
        if len(text) > 1:
            at = len(expected[0])
            torch.testing.assert_close(found[:, at : at + count], features, rtol=1e-3, atol=1e-3)
            embedded = DecoderBlocks(checkpoint, max_len=8).embed([torch.tensor(found_ids)])[0]
            assert torch.equal(torch.cat([found[:, :at], found[:, at + count :]], dim=1), embedded)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_model_expects_the_answers_of_its_scenes(name):
    """It has learned them, so that it would be surprised by other spaces, places or features."""
    checkpoint = open_checkpoint(str(CHECKPOINTS[name]))
    scenes = [sample for sample in open_samples(None) if sample.image][:3]
    asked = [Sample(sample.image, sample.question, "") for sample in scenes]
    rows, ids = rows_of(checkpoint, [*scenes, *asked])
    blocks = DecoderBlocks(checkpoint, max_len=256)
    stream = Stream(rows[:3], decoder=blocks.decoder)
    for fqn in blocks.layers:
        with blocks.loaded(fqn) as layer:
            stream.advance(layer)
    with blocks.head() as head:
        for x_1TD, whole, question in zip(stream.rows, ids[:3], ids[3:], strict=True):
            answer = whole[len(question) :]
            assert answer[-1] == checkpoint.config.eos_ids[0]
            assert head.logits(x_1TD)[-len(answer) - 1 : -1].argmax(-1).tolist() == answer


def test_an_answer_begins_and_ends_as_the_model_writes_it(checkpoint_of):
    """Of prompts other than LLaVA's, too: an answer ends with the token that stops it."""
    checkpoint = open_checkpoint(TINY)
    for given, end in (("vicuna_v1", "</s>"), ("chatml", "<|im_end|>\n"), ("llava_hf", " ")):
        _, (ids,) = rows_of(checkpoint, [Sample(None, "Who?", "Me.")], given=given)
        (alone,) = checkpoint.tokenizer.chat_tokenizer(bos_id=1).encode_turn(
            [(Span(f"{find_prompt(checkpoint, given=given).template.assistant}", is_template=True),)]
        )
        text = b"".join(map(checkpoint.tokenizer.chat_tokenizer(bos_id=1).decode_piece, ids)).decode()
        assert len(ids) > len(alone) and text.endswith("Me." + end.replace("</s>", ""))
        assert (ids[-1] == 2) == (given == "vicuna_v1")


def test_special_tokens_in_a_users_text_are_text():
    checkpoint = open_checkpoint(TINY)
    _, (ids, text) = rows_of(checkpoint, [Sample(None, "</s>", "<image> </s>"), Sample(None, "", "</s>")])
    assert ids.count(2) == 1 and text.count(2) == 0 and not {512, 513} & {*ids, *text}


def test_long_conversations_are_cut_and_counted():
    checkpoint = open_checkpoint(TINY)
    count = checkpoint.config.num_image_tokens
    samples = [Sample(None, "a", "b"), Sample(SAMPLE_IMAGE, "a", "long " * 200), Sample(None, "long " * 200, "")]
    whole, whole_ids = rows_of(checkpoint, samples, max_len=2000)
    notes: list[str] = []
    rows, ids = rows_of(checkpoint, samples, max_len=200, on_note=notes.append)
    assert notes == ["2 of 3 samples are cut at 200 positions"]
    assert [it.shape[1] for it in rows] == [whole[0].shape[1], 200, 200]
    assert [len(it) for it in ids] == [len(whole_ids[0]), 200 - count, 200]
    for found, expected in zip(rows, whole, strict=True):
        torch.testing.assert_close(found, expected[:, : found.shape[1]])


def test_texts_are_divided_and_each_part_begins_as_a_text():
    checkpoint = open_checkpoint(TINY)
    text = "A dog, a cat\nand " * 30
    _, (whole,) = rows_of(checkpoint, [Sample(None, "", text)], max_len=2000)
    rows, ids = rows_of(checkpoint, [Sample(None, "", text)], max_len=50)
    assert [number for part in ids for number in part[1:]] == whole[1:]
    assert {part[0] for part in ids} == {checkpoint.config.bos_id}
    lengths = {it.shape[1] for it in rows}
    assert max(lengths) <= 50 and max(lengths) - min(lengths) <= 1


def test_token_ids_are_read_as_they_are():
    checkpoint = open_checkpoint(TINY)
    _, ids = rows_of(checkpoint, [Sample(None, "", "", ids=torch.arange(100))], max_len=50)
    assert ids == [list(range(50)), list(range(50, 100))]
    with pytest.raises(CorpusError, match=r"x\.npy has the token id 9999; .* 0 to 575"):
        rows_of(checkpoint, [Sample(None, "", "", name="x.npy", ids=torch.tensor([1, 9999]))])


def test_what_ships_can_be_read_by_each_built_in_model():
    for name in CHECKPOINTS:
        checkpoint = open_checkpoint(str(CHECKPOINTS[name]))
        samples = open_samples(None)
        steps: list[int] = []
        rows, _ = rows_of(checkpoint, samples, limit=6, on_step=lambda steps=steps: steps.append(1))
        assert len(rows) == 6 and all(it.isfinite().all() and it.shape[1] <= 256 for it in rows)
        assert 1 < len(steps) <= num_steps(checkpoint, samples, limit=6)


def test_an_image_of_several_samples_is_encoded_once_and_many_go_in_turns(tmp_path, monkeypatch):
    checkpoint = open_checkpoint(TINY)
    encoded: list[int] = []
    encode = FloatReference.encode_images

    def encode_images(self: FloatReference, images: list[np.ndarray]) -> list[Tensor]:
        encoded.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(FloatReference, "encode_images", encode_images)
    monkeypatch.setattr("llava_export.calibration.data.IMAGES_AT_ONCE", 2)
    scenes = [sample for sample in open_samples(None) if sample.image][:3]
    samples = [*scenes, *scenes, scenes[0]]
    steps: list[int] = []
    rows, _ = rows_of(checkpoint, samples, on_step=lambda: steps.append(1))
    assert encoded == [2, 1] and len(steps) == num_steps(checkpoint, samples)
    assert torch.equal(rows[0], rows[6]) and torch.equal(rows[1], rows[4])
    assert not torch.equal(rows[0], rows[1])


def test_mistakes_are_told_before_anything_is_computed(tmp_path, monkeypatch):
    checkpoint = open_checkpoint(TINY)
    monkeypatch.setattr(FloatReference, "encode_images", lambda *_: pytest.fail("computed"))
    for name, content in (("a.png", b""), ("b.png", b"%PDF"), ("c.png", SAMPLE_IMAGE.read_bytes())):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=r"^2 images \(.*a\.png, .*b\.png\) are unreadable: .*it is empty"):
        rows_of(checkpoint, open_samples(tmp_path))
    count = checkpoint.config.num_image_tokens
    sample = Sample(SAMPLE_IMAGE, "What?", "", name="line 3 of x")
    with pytest.raises(CalibrationError, match=rf"^line 3 of x: the image, which takes {count} positions"):
        rows_of(checkpoint, [sample], max_len=count + 5)
    with pytest.raises(CalibrationError, match="the samples have no tokens"):
        rows_of(checkpoint, [Sample(None, "", "")])
    for wrong in (Sample(None, "\ud800", "", name="line 1 of x"), Sample(None, "", "\ud800", name="line 1 of x")):
        with pytest.raises(PromptError, match=r"^line 1 of x: "):
            rows_of(checkpoint, [wrong])

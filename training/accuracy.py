"""The accuracy of a saved checkpoint, in float and quantized, through transformers' own ``generate``."""

from __future__ import annotations

import io
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import nn

from training import questions, scenes
from training.checkpoints import load_mobilevlm
from training.images import normalize, preprocess
from training.model import GROUP_SIZE, text_linears
from training.tokenizer import NUM_PIECES, Tokenizer

log = logging.getLogger("training")

NUM_HELD_OUT = 500


def measure(model: transformers.LlavaForConditionalGeneration, *, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the exact-match rate over the held-out scenes, in all and by question type."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for seed in range(questions.HELD_OUT_SEED, questions.HELD_OUT_SEED + NUM_HELD_OUT):
        image, question, expected = questions.question_for(seed)
        said = answer(model, image, question, tokenizer=tokenizer)
        question_type = questions.question_type_for(seed)
        asked[question_type] += 1
        right[question_type] += said == expected
        if said != expected:
            log.info("  seed %d: %s | said %r | expected %r", seed, question, said, expected)
    by_type = {name: round(right[name] / asked[name], 4) for name in questions.QUESTION_TYPES}
    return {"exact_match": round(sum(right.values()) / NUM_HELD_OUT, 4), "by_question_type": by_type}


@torch.no_grad()
def answer(
    model: transformers.LlavaForConditionalGeneration, image: Image.Image, question: str, *, tokenizer: Tokenizer
) -> str:
    """Return the answer to a question about an image, decoded greedily by transformers' own ``generate``."""
    ids = tokenizer.prefix() + tokenizer.encode(f"\n{question} ASSISTANT:")
    untyped: Any = model  # the annotations of `generate` do not accept its own class
    out = untyped.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        pixel_values=normalize(preprocess(image)[None]),
        max_new_tokens=64,
        do_sample=False,
    )
    return tokenizer.model.decode([i for i in out[0, len(ids) :].tolist() if i < NUM_PIECES])


def load(folder: Path, *, recipe: str = "float") -> transformers.LlavaForConditionalGeneration:
    """Return a checkpoint in float32. The recipe ``8da4w`` quantizes its linears as an export does."""
    if (folder / "pytorch_model.bin").exists():
        model = load_mobilevlm(folder)
    else:
        model = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    if recipe == "8da4w":
        from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerAxis, PerGroup, quantize_

        text = {id(linear) for linear in text_linears(model)}
        int4_type = torch.int4  # type: ignore[attr-defined]  # torch's stubs lack int4
        int4 = Int8DynamicActivationIntxWeightConfig(weight_dtype=int4_type, weight_granularity=PerGroup(GROUP_SIZE))
        int8 = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
        quantize_(model, int4, filter_fn=lambda module, fqn: id(module) in text)
        quantize_(model, int8, filter_fn=lambda module, fqn: isinstance(module, nn.Linear) and id(module) not in text)
    return model


def pick_sample(folder: Path, *, tokenizer: Tokenizer) -> int:
    """Return the seed of a held-out scene that suits as the sample image.

    It has three large objects of different colors and shapes, and little noise. The float and the quantized model
    answer all of its questions right. Raises ``RuntimeError`` if there is none.
    """
    models = [load(folder, recipe=recipe) for recipe in ("float", "8da4w")]
    for seed in range(questions.HELD_OUT_SEED + NUM_HELD_OUT, questions.HELD_OUT_SEED + 1_000_000):
        layout = scenes.make_layout(seed)
        colors, shapes = ({getattr(item, name) for item in layout.objects} for name in ("color", "shape"))
        large = all(item.radius > 0.12 * layout.unit for item in layout.objects)
        if not (
            large and len(layout.objects) == len(colors) == len(shapes) == 3 and layout.width == layout.height >= 320
        ):
            continue
        scene = questions.render_scene(seed)
        png = io.BytesIO()
        scene.image.save(png, "png", optimize=True)
        if len(png.getvalue()) > 100_000:  # much noise, which does not compress
            continue
        if all(
            answer(model, scene.image, question, tokenizer=tokenizer) == expected
            for model in models
            for question, expected in scene.questions
        ):
            return seed
    raise RuntimeError("no scene shows the model well; train it for longer")

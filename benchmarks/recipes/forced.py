"""Right answers as a model reads them: would it have said them, and how far is it from the float model at each token?

A model that decodes greedily says the right answer exactly if at each of its tokens, with all before it read, that
token is the most probable one. So one pass over prompt and answer is enough, and no token waits for the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torchao.quantization import IntxUnpackedToInt8Tensor

from llava_export.calibration.data import answered
from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.checkpoint.prompt import find_prompt
from llava_export.models.llava import LlavaModel
from llava_export.quantize.weights import CalibratedBlock, simulate
from llava_export.recipe import KV_CACHES, Recipe
from llava_export.streams import WholeSequenceAttention
from llava_runner.prompt import question_chunks
from training.questions import question_for
from training.scenes import Style


@dataclass(frozen=True)
class Question:
    """A question about an image, uint8 ``[3, H, W]``, and its right answer.

    ``ids`` are the tokens of the prompt before and after the image, and ``answer`` those of the answer and its end.
    """

    pixels: np.ndarray
    ids: list[list[int]]
    answer: list[int]


@dataclass(frozen=True)
class Reading:
    """How a model reads an answer of so many ``tokens``. ``right`` says that it would have given it.

    At ``agreed`` of the tokens it would choose the float model's. ``kl`` is the sum of the Kullback-Leibler divergences
    from it, in nats.
    """

    tokens: int
    right: bool
    agreed: int
    kl: float


def questions_about(seeds: Sequence[int], style: Style, checkpoint: Checkpoint) -> list[Question]:
    """Return the question about the scene of each seed, as a checkpoint's model reads it."""
    prompt = find_prompt(checkpoint)
    tokenizer = checkpoint.tokenizer.chat_tokenizer(bos_id=checkpoint.config.bos_id)
    found = []
    for seed in seeds:
        image, question, answer = question_for(seed, style)
        asked = question_chunks(question, template=prompt.template, num_images=1, first_turn=True)
        ids = tokenizer.encode_turn(asked)
        whole = tokenizer.encode_turn(answered(asked, answer, prompt))
        length = len(ids[-1])
        assert whole[:-1] == ids[:-1] and whole[-1][:length] == ids[-1], "the answer changes the tokens before it"
        end = next(i for i, token in enumerate(whole[-1]) if i >= length and token in checkpoint.config.eos_ids)
        found.append(Question(checkpoint.images.prepared(image), ids, whole[-1][length : end + 1]))
    return found


def loaded_model(
    checkpoint: Checkpoint,
    recipe: Recipe | None = None,
    *,
    max_len: int,
    calibrated: Callable[[str], CalibratedBlock | None] = lambda fqn: None,
) -> LlavaModel:
    """Return a checkpoint's model with all weights in memory, quantized by a fitted recipe or not.

    It reads whole sequences of at most ``max_len`` positions. ``calibrated`` returns what was calibrated of a layer
    before.
    """
    cache_dtype = getattr(torch, KV_CACHES[recipe.kv_cache] if recipe else "float32")
    attention = partial(WholeSequenceAttention, cache_dtype=cache_dtype)
    model = checkpoint.build_model(max_context_len=max_len, cached_attention=attention)
    checkpoint.weights.fill(model, prefix="")
    if recipe:
        for fqn, block in model.blocks():
            recipe.quantize(block, fqn=fqn, calibrated=calibrated(fqn))
        _dequantize(model)
    return model


def _dequantize(model: nn.Module) -> None:
    """Replace quantized weights by the floats that they stand for, and round the inputs of their linears.

    torchao would do this anew for every sequence.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, IntxUnpackedToInt8Tensor):
            if isinstance(module, nn.Linear):
                simulate(module, weight.dequantize())
            else:
                module.weight = nn.Parameter(weight.dequantize(), requires_grad=False)


@torch.no_grad()
def image_features(model: LlavaModel, question: Question) -> Tensor:
    """Return the rows ``[1, num_image_tokens, hidden_size]`` that the decoder reads of a question's image."""
    return model.vision_encoder(torch.from_numpy(question.pixels))


@torch.no_grad()
def answer_logits(model: LlavaModel, question: Question, features: Tensor) -> Tensor:
    """Return the logits ``[T, vocab_size]`` that each of the T tokens of a question's answer is chosen from.

    ``features`` are those of its image.
    """
    decoder = model.text_decoder
    before, after = question.ids[0], [*chain(*question.ids[1:]), *question.answer[:-1]]
    rows = (
        model.token_embedding(torch.tensor([before])),
        features,
        model.token_embedding(torch.tensor([after])),
    )
    x_1TD = torch.cat(rows, dim=1)
    start, cos_T1e, sin_T1e = decoder.positions(torch.tensor([0]), x_1TD.shape[1])
    for layer in decoder.layers:
        x_1TD = layer(x_1TD, cos_T1e, sin_T1e, start)
    return decoder.lm_head(decoder.norm(x_1TD[:, -len(question.answer) :]))[0]


def reading(logits_TV: Tensor, expected_TV: Tensor, question: Question) -> Reading:
    """Return how a model reads an answer. ``expected_TV`` are the float model's logits."""
    chosen_T = logits_TV.argmax(-1)
    found, expected = (logits.double().log_softmax(-1) for logits in (logits_TV, expected_TV))
    return Reading(
        tokens=len(question.answer),
        right=chosen_T.tolist() == question.answer,
        agreed=int((chosen_T == expected_TV.argmax(-1)).sum()),
        kl=max(0.0, float((expected.exp() * (expected - found)).sum())),
    )

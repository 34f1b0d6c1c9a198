"""Stage 2: the whole model learns to answer.

All questions about an image share one sequence. Each sees the prefix (system sentence and image) and itself, but no
other question. So one pass over the prefix serves many answers. Every other one of the last steps uses weights rounded
to int4, so that a package with 4-bit weights answers as well as the float model.

Shapes: B images, P patches, T tokens, D hidden size.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from training import questions, scenes
from training.images import normalize, preprocess
from training.model import rounded_to_int4, text_linears, vision_features
from training.optimization import batches_of, make_optimizer, update
from training.tokenizer import IMAGE_TOKEN, PAD, Tokenizer

log = logging.getLogger("training")

# Seeds for watching progress. They are below the held-out seeds, and `--num-scenes` never reaches them.
VALIDATION_SEED = questions.HELD_OUT_SEED - 10_000

# How often each type is asked. Types that are learned late are asked more often, a relation of two objects for example.
ASKED = {
    "description": 1.0,
    "color": 1.5,
    "shape": 1.5,
    "count": 0.3,
    "count_shape": 0.7,
    "count_color": 0.7,
    "relation": 2.5,
    "place": 2.5,
}


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Peak learning rates of the three parts."""

    vision: float
    projector: float
    decoder: float


def train_answers(
    model: transformers.LlavaForConditionalGeneration,
    pixels: np.ndarray,
    *,
    tokenizer: Tokenizer,
    steps: int,
    rounded_from: int,
    seed: int,
    rates: Rates,
    snapshot: Callable[[], None],
) -> None:
    """Train the whole model to answer. From step ``rounded_from`` on, every other step rounds the text weights to int4.

    ``pixels`` are uint8 [count, IMAGE_SIZE, IMAGE_SIZE, 3], those of seed i in row i. ``snapshot`` is called after each
    validation.
    """
    rng = random.Random(seed)
    vision = list(model.model.vision_tower.parameters())
    projector = list(model.model.multi_modal_projector.parameters())
    decoder = [*model.model.language_model.parameters(), *model.lm_head.parameters()]
    groups = [(vision, rates.vision), (projector, rates.projector), (decoder, rates.decoder)]
    optimizer, schedule = make_optimizer(groups, steps=steps, warmup=100)
    for step, seeds in enumerate(batches_of(len(pixels), size=16, steps=steps, seed=seed)):
        rounded = text_linears(model) if step >= rounded_from and step % 2 else []
        batch = pack([make_sequence(tokenizer, int(i), rng=rng) for i in seeds])
        with rounded_to_int4(rounded):
            with torch.autocast("cpu", torch.bfloat16):
                logits, targets, weights = answer_logits(model, batch, normalize(pixels[seeds]))
            losses = F.cross_entropy(logits, targets, reduction="none")
            loss = (losses * weights).sum() / weights.sum()
            optimizer.zero_grad()
            loss.backward()
        update(vision + projector + decoder, optimizer, schedule)
        if step % 50 == 49:
            hit = (logits.argmax(-1) == targets).float().mean()
            log.info("answers %d/%d loss %.4f tokens %.4f", step + 1, steps, losses.mean(), hit)
        if step % 400 == 399 or step == steps - 1:
            log.info("  validation float %s", validate(model, tokenizer=tokenizer))
            with rounded_to_int4(text_linears(model)):
                log.info("  validation int4 %s", validate(model, tokenizer=tokenizer))
            snapshot()


@torch.no_grad()
def validate(model: transformers.LlavaForConditionalGeneration, *, tokenizer: Tokenizer, count: int = 288) -> str:
    """Return as text the exact-match rate over scenes that no training sees, one question each, in all and by type.

    A batch takes one forward pass: an answer is right if each of its tokens is the most likely one after those before
    it. Greedy decoding would then give the same answer.
    """
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for start in range(VALIDATION_SEED, VALIDATION_SEED + count, 48):
        seeds = range(start, start + 48)
        items = [questions.question_for(seed) for seed in seeds]
        turns = [tokenizer.turn(f"\n{question} ASSISTANT:", answer) for _, question, answer in items]
        blocks = [Block(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer)) for prompt, answer in turns]
        batch = pack([(tokenizer.prefix(), [block]) for block in blocks])
        logits, targets, _ = answer_logits(
            model, batch, normalize(np.stack([preprocess(image) for image, _, _ in items]))
        )
        hits = (logits.argmax(-1) == targets).split([len(answer) for _, answer in turns])
        for seed, hit in zip(seeds, hits, strict=True):
            question_type = questions.question_type_for(seed)
            asked[question_type] += 1
            right[question_type] += bool(hit.all())
    by_type = " ".join(f"{name} {right[name] / asked[name]:.2f}" for name in questions.QUESTION_TYPES)
    return f"{sum(right.values()) / count:.4f} ({by_type})"


@dataclass(frozen=True)
class Block:
    """The tokens of prompts and answers after an image, and the weight of each in the loss, zero for prompts."""

    ids: list[int]
    weights: list[float]


def make_sequence(tokenizer: Tokenizer, seed: int, *, rng: random.Random) -> tuple[list[int], list[Block]]:
    """Return a prefix and blocks of about 170 tokens together, so that all sequences are about as long."""
    asked = questions.ask(scenes.make_layout(seed))
    blocks: list[Block] = []
    while sum(len(block.ids) for block in blocks) < 170:
        blocks.append(make_block(tokenizer, asked, rng=rng))
    return tokenizer.prefix(with_system=rng.random() >= 0.15), blocks


def make_block(tokenizer: Tokenizer, asked: dict[str, questions.Pairs], *, rng: random.Random) -> Block:
    """Return one conversation: mostly a single turn, sometimes two or three, sometimes no question at all.

    ``asked`` has (question, answer) pairs by question type.
    """
    ids: list[int] = []
    weights: list[float] = []

    def add(prompt: str, answer: str, *, dummy_prefix: bool) -> None:
        """Append a prompt and its answer."""
        prompt_ids, answer_ids = tokenizer.turn(prompt, answer, dummy_prefix=dummy_prefix)
        ids.extend(prompt_ids + answer_ids)
        # Short answers are the harder ones. This lies between the same weight for each answer and for each token.
        weights.extend([0.0] * len(prompt_ids) + [len(answer_ids) ** -0.5] * len(answer_ids))

    # transformers' processor has no dummy prefix after an image and after an end token, so the model must know both.
    kind, dummy_prefix = rng.random(), rng.random() >= 0.1
    if kind < 0.08:
        prompt = rng.choice(("ASSISTANT:", " ASSISTANT:", "\nASSISTANT:"))
        add(prompt, asked["description"][0][1], dummy_prefix=dummy_prefix)
        return Block(ids, weights)
    for turn in range(1 if kind < 0.85 else rng.choice((2, 3))):
        (question_type,) = rng.choices(list(asked), [ASKED[name] for name in asked])
        question, answer = rng.choice(asked[question_type])
        add(f"{'USER: ' if turn else chr(10)}{question} ASSISTANT:", answer, dummy_prefix=dummy_prefix)
    return Block(ids, weights)


@dataclass(frozen=True)
class Batch:
    """Packed sequences. ``mask_B1TT`` is True where a query (row) may see a key (column)."""

    ids_BT: Tensor
    weights_BT: Tensor
    positions_BT: Tensor
    mask_B1TT: Tensor


def pack(sequences: list[tuple[list[int], list[Block]]]) -> Batch:
    """Return a batch with one sequence for each (prefix, blocks). Blocks of a sequence do not see each other."""
    length = max(len(prefix) + sum(len(block.ids) for block in blocks) for prefix, blocks in sequences)
    ids = torch.full((len(sequences), length), PAD)
    weights = torch.zeros(len(sequences), length)
    positions = torch.zeros(len(sequences), length, dtype=torch.long)
    owner = torch.full((len(sequences), length), -1)
    for row, (prefix, blocks) in enumerate(sequences):
        end = 0
        for number, block in enumerate([Block(prefix, [0.0] * len(prefix)), *blocks]):
            start, end = end, end + len(block.ids)
            ids[row, start:end] = torch.tensor(block.ids)
            weights[row, start:end] = torch.tensor(block.weights)
            positions[row, start:end] = torch.arange(end - start) + (len(prefix) if number else 0)
            owner[row, start:end] = number
    seen = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return Batch(ids, weights, positions, (seen & causal)[:, None])


def answer_logits(
    model: transformers.LlavaForConditionalGeneration, batch: Batch, pixels_BCHW: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (logits [N, vocab], targets [N], weights [N]) of the N answer tokens in a batch."""
    image_BPD = model.model.multi_modal_projector(vision_features(model, pixels_BCHW))
    embeds_BTD = model.get_input_embeddings()(batch.ids_BT)
    is_image = (batch.ids_BT == IMAGE_TOKEN)[:, :, None]
    embeds_BTD = embeds_BTD.masked_scatter(is_image, image_BPD.to(embeds_BTD.dtype))
    hidden_BTD = model.model.language_model(
        inputs_embeds=embeds_BTD,
        attention_mask=batch.mask_B1TT,
        position_ids=batch.positions_BT,
        use_cache=False,
    ).last_hidden_state
    answered = batch.weights_BT[:, 1:] > 0
    logits = model.lm_head(hidden_BTD[:, :-1][answered])
    return logits.float(), batch.ids_BT[:, 1:][answered], batch.weights_BT[:, 1:][answered]

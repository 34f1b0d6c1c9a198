"""Train the built-in tiny LLaVA from scratch: tokenizer, vision tower, projector and language model, on CPU.

    python tools/train_tiny.py --output llava_export/builtin/tiny-llava --seed 0

The result is an ordinary llava-hf checkpoint folder (fp16) that answers questions about the scenes of `scenes.py`.
Two stages: the vision tower first learns, patch by patch, what it sees and what is in the whole scene (by heads that
are thrown away); then all of it learns to answer. In the second stage the questions about an image share one sequence:
each sees the prefix (system sentence and image) and itself alone, so one pass over the prefix serves many answers. The
last steps run half the time on weights rounded to int4, so that a package with 4-bit weights answers as well as in
float.

Shapes: B images, P patches, T tokens, D hidden size.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import hashlib
import io
import json
import logging
import math
import multiprocessing
import random
import shlex
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torchao
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import scenes

log = logging.getLogger("train_tiny")

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
IMAGE_SIZE, PATCH_SIZE = 112, 14
NUM_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PAD_COLOR = tuple(int(mean * 255) for mean in CLIP_MEAN)

NUM_PIECES = 512
BOS, EOS, IMAGE_TOKEN, PAD = 1, 2, NUM_PIECES, NUM_PIECES + 1
VOCAB_SIZE = 576  # the next multiple of 64, as llava-1.5 goes from 32000 to 32064
GROUP_SIZE = 128

VALIDATION_SEED = scenes.HELD_OUT_SEED - 10_000  # training seeds that `--num-scenes` never reaches, to watch progress
NUM_HELD_OUT = 500

VISION = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 6,  # five are used: the features come from the last but one
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "projection_dim": 128,
    "hidden_act": "quick_gelu",
}
# Four layers of 384 instead of three of 512: a middle layer that repeats, and still under 8 MB.
TEXT = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}


# --- tokenizer --------------------------------------------------------------------------------------------------------


def train_tokenizer(*, seed: int) -> bytes:
    """Return a SentencePiece model: byte-fallback BPE as Llama's, on our prompts, answers and stdlib docstrings."""
    rng = random.Random(seed)
    lines = [SYSTEM, "USER: ASSISTANT:"] * 800  # so that what every prompt repeats is few tokens
    for scene_seed in range(600):
        for pairs in scenes.ask(scenes.make_layout(scene_seed)).values():
            lines += [f"{question} ASSISTANT: {answer}" for question, answer in pairs]
    english = _docstring_lines()
    lines += rng.sample(english, min(1500, len(english)))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=NUM_PIECES,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _docstring_lines() -> list[str]:
    """Return plain English lines from the standard library, so that words outside our scenes have pieces as well."""
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;?!'\"()-")
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8", errors="ignore"))) or ""
        lines = (" ".join(line.split()) for line in text.splitlines())
        found += [line for line in lines if len(line) > 30 and set(line) <= allowed]
    return found


@dataclass(frozen=True)
class Tokenizer:
    """Tokenizes as the original LLaVA does: the chunks before and after the image each on their own."""

    model: sentencepiece.SentencePieceProcessor

    def encode(self, chunk: str, *, dummy_prefix: bool = True) -> list[int]:
        """Encode a chunk; without the dummy prefix it does not begin with the piece for a space."""
        if dummy_prefix:
            return _encode(self.model, chunk)
        skipped = _encode(self.model, "\n")
        return _encode(self.model, "\n" + chunk)[len(skipped) :]

    def turn(self, prompt: str, answer: str, *, dummy_prefix: bool = True) -> tuple[list[int], list[int]]:
        """Return the tokens of `prompt` (which ends in "ASSISTANT:") and those of its answer with the end token."""
        prompt_ids = self.encode(prompt, dummy_prefix=dummy_prefix)
        ids = self.encode(f"{prompt} {answer}", dummy_prefix=dummy_prefix)
        assert ids[: len(prompt_ids)] == prompt_ids, (prompt, answer)
        return prompt_ids, [*ids[len(prompt_ids) :], EOS]

    def prefix(self, *, with_system: bool = True) -> list[int]:
        """Return the tokens up to the image and one image token a patch."""
        text = f"{SYSTEM} USER: " if with_system else "USER: "
        return [BOS, *self.encode(text)] + [IMAGE_TOKEN] * NUM_PATCHES


@cache
def _encode(model: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    return model.encode(text)


# --- images and their dense labels ------------------------------------------------------------------------------------


def preprocess(image: Image.Image) -> np.ndarray:
    """Pad to a square with CLIP's mean color and resize: uint8 [IMAGE_SIZE, IMAGE_SIZE, 3]."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), PAD_COLOR)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def normalize(pixels: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] with CLIP's mean and deviation."""
    scaled = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


KINDS = [(color, shape) for color in scenes.COLORS for shape in scenes.SHAPES]


MAX_OBJECTS = 4
# What a patch's feature is taught to tell, and how many classes it has; the first five are about the object on it.
HEADS = {
    "kind": 1 + len(KINDS),  # 0: no object
    "rank_x": MAX_OBJECTS,
    "rank_y": MAX_OBJECTS,
    "place_x": 1,  # a number, not a class: the object's center as a fraction of the square
    "place_y": 1,
    **{f"number_{name}": MAX_OBJECTS + 1 for name in (*scenes.COLORS, *scenes.SHAPES)},
    **{f"kind_{i}": 1 + len(KINDS) for i in range(MAX_OBJECTS)},  # of the i-th object from the left
}
ABOUT_OBJECT = ("rank_x", "rank_y", "place_x", "place_y")


def patch_labels(layout: scenes.Layout) -> dict[str, np.ndarray]:
    """Return for each of `HEADS` what it is to say, float32 [P]: of the object on the patch, then of the whole scene.

    Where no object is, the labels of one are zeros. Knowing the scene in every patch spares the language model, which
    is small, from finding and counting patches.
    """
    scale = IMAGE_SIZE / layout.unit
    left, top = (layout.unit - layout.width) // 2, (layout.unit - layout.height) // 2
    middles = (np.arange(IMAGE_SIZE // PATCH_SIZE) + 0.5) * PATCH_SIZE
    labels = {name: np.zeros(NUM_PATCHES, np.float32) for name in HEADS}
    nearest = np.full(NUM_PATCHES, np.inf)
    by_height = sorted(layout.objects, key=lambda item: item.y)
    for rank, item in enumerate(layout.objects):
        x, y = (item.x + left) * scale, (item.y + top) * scale
        distance = np.hypot(np.tile(x - middles, len(middles)), np.repeat(y - middles, len(middles)))
        # Every object gets at least one patch: no point is farther than 9.9 pixels from the middle of its patch.
        covered = (distance < nearest) & (distance < 0.85 * item.radius * scale + 2)
        nearest[covered] = distance[covered]
        kind = 1 + KINDS.index((item.color, item.shape))
        of_object = (kind, rank, by_height.index(item), x / IMAGE_SIZE, y / IMAGE_SIZE)
        for name, value in zip(("kind", *ABOUT_OBJECT), of_object, strict=True):
            labels[name][covered] = value
        labels[f"kind_{rank}"][:] = kind
        labels[f"number_{item.color}"] += 1
        labels[f"number_{item.shape}"] += 1
    return labels


def _render_into(start: int, *, stop: int, path: Path, count: int) -> None:
    pixels = np.memmap(path, np.uint8, "r+", shape=(count, IMAGE_SIZE, IMAGE_SIZE, 3))
    for seed in range(start, stop):
        pixels[seed] = preprocess(scenes.draw(scenes.make_layout(seed)))
    pixels.flush()


def render_training_scenes(count: int, *, workers: int) -> np.ndarray:
    """Return uint8 [count, IMAGE_SIZE, IMAGE_SIZE, 3] of the seeds 0..count, memory-mapped; kept for the next run."""
    code = Path(scenes.__file__).read_bytes() + Path(__file__).read_bytes().split(b"# --- model")[0]
    path = Path(tempfile.gettempdir()) / f"tiny_llava_scenes_{count}_{hashlib.sha256(code).hexdigest()[:12]}.bin"
    shape = (count, IMAGE_SIZE, IMAGE_SIZE, 3)
    if not path.exists():
        partial_path = path.with_suffix(".partial")
        np.memmap(partial_path, np.uint8, "w+", shape=shape).flush()
        bounds = np.linspace(0, count, workers + 1).astype(int)
        jobs = [
            multiprocessing.Process(
                target=_render_into, args=(start,), kwargs={"stop": stop, "path": partial_path, "count": count}
            )
            for start, stop in pairwise(bounds)
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
            if job.exitcode:
                raise RuntimeError(f"rendering scenes into {partial_path} failed; see the traceback above")
        partial_path.rename(path)
    return np.memmap(path, np.uint8, "r", shape=shape)


# --- model ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def rounded_to_int4(linears: list[nn.Linear]) -> Iterator[None]:
    """Round weights as torchao's symmetric int4 does (groups along in_features), and put the originals back after.

    A backward pass inside gives the originals the gradients of the rounded weights: the straight-through estimator.
    """
    originals = [linear.weight.data for linear in linears]
    for linear in linears:
        groups = linear.weight.data.unflatten(1, (-1, GROUP_SIZE))
        scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-8) / 7.5
        linear.weight.data = ((groups / scale).round().clamp(-8, 7) * scale).flatten(1)
    try:
        yield
    finally:
        for linear, original in zip(linears, originals, strict=True):
            linear.weight.data = original


def build_model(*, seed: int) -> transformers.LlavaForConditionalGeneration:
    torch.manual_seed(seed)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=NUM_PATCHES,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        pad_token_id=PAD,
    )
    return transformers.LlavaForConditionalGeneration(config)


@torch.no_grad()
def start_language_model(model: transformers.LlavaForConditionalGeneration, pixels: np.ndarray) -> None:
    """Set what stage 2 starts from, so that both kinds of rows come to the decoder in one size.

    Matrices get the standard deviation that keeps a vector's size; transformers' 0.02 is meant for wider models. The
    projector first takes the mean off the tower's features and divides by their standard deviation: raw, its rows are
    two hundred times as long as embedded tokens, and no layer could change them.
    """
    features = vision_features(model, normalize(pixels[:256])).flatten(0, 1)
    mean, deviation = features.mean(0), features.std(0)
    projector = model.model.multi_modal_projector
    for linear in (*text_linears(model), projector.linear_1, projector.linear_2):
        linear.weight.normal_(0, linear.in_features**-0.5)
    projector.linear_1.weight.div_(deviation)
    projector.linear_1.bias.copy_(-projector.linear_1.weight @ mean)
    model.get_input_embeddings().weight.normal_(0, 0.5)


def text_linears(model: transformers.LlavaForConditionalGeneration) -> list[nn.Linear]:
    """Return the linears that 8da4w packs to int4: those of the decoder layers, and the head."""
    decoder = [module for module in model.model.language_model.modules() if isinstance(module, nn.Linear)]
    return [*decoder, model.lm_head]


def vision_features(model: transformers.LlavaForConditionalGeneration, pixels_BCHW: Tensor) -> Tensor:
    """Return [B, P, D] from the last but one layer, without running the last; the class token is dropped."""
    tower = model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    hidden_BPD = tower.pre_layrnorm(tower.embeddings(pixels_BCHW))
    for layer in tower.encoder.layers[:-1]:
        hidden_BPD = layer(hidden_BPD, attention_mask=None)
    return hidden_BPD[:, 1:]


# --- conversations ----------------------------------------------------------------------------------------------------


# How often each type is asked: more often those that are learned late, as a relation between two objects is.
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


@dataclass(frozen=True)
class Block:
    """The text after an image: prompts and answers; the loss weight of each token, zero for those of prompts."""

    ids: list[int]
    weights: list[float]


def make_block(tokenizer: Tokenizer, asked: dict[str, scenes.Pairs], *, rng: random.Random) -> Block:
    """Make one conversation: mostly a single turn, sometimes two or three, sometimes no question at all."""
    ids: list[int] = []
    weights: list[float] = []

    def add(prompt: str, answer: str, *, dummy_prefix: bool) -> None:
        prompt_ids, answer_ids = tokenizer.turn(prompt, answer, dummy_prefix=dummy_prefix)
        ids.extend(prompt_ids + answer_ids)
        # Between one vote an answer and one vote a token: short answers are the harder ones.
        weights.extend([0.0] * len(prompt_ids) + [len(answer_ids) ** -0.5] * len(answer_ids))

    # transformers' processor leaves out the dummy prefix after an image and after an end token.
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
    """Packed sequences. mask_B1TT is True where a query (row) may see a key (column)."""

    ids_BT: Tensor
    weights_BT: Tensor
    positions_BT: Tensor
    mask_B1TT: Tensor


def pack(sequences: list[tuple[list[int], list[Block]]]) -> Batch:
    """Lay out each (prefix, blocks) as one sequence whose blocks do not see each other."""
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
    """Return (logits, targets, weights) of the answer tokens alone, flat over the batch."""
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


# --- training ---------------------------------------------------------------------------------------------------------


def make_optimizer(groups: list[tuple[list[nn.Parameter], float]], *, steps: int, warmup: int):
    """Return AdamW over (parameters, learning rate) groups, with a linear warmup and a cosine to a hundredth."""
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rate} for parameters, rate in groups], betas=(0.9, 0.98), weight_decay=0.02
    )

    def factor(step: int) -> float:
        progress = max(0.0, (step - warmup) / max(1, steps - warmup))
        return min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def batches_of(count: int, *, size: int, steps: int, seed: int):
    """Yield `steps` arrays of `size` seeds below `count`: each epoch in a new order."""
    rng = np.random.default_rng(seed)
    order = np.empty(0, np.int64)
    for _ in range(steps):
        if len(order) < size:
            order = rng.permutation(count)
        taken, order = order[:size], order[size:]
        yield taken


def train_vision(
    model: transformers.LlavaForConditionalGeneration, pixels: np.ndarray, *, steps: int, seed: int
) -> None:
    """Stage 1: linear heads read from each patch's feature what `patch_labels` says; they are thrown away."""
    head = nn.Sequential(nn.LayerNorm(VISION["hidden_size"]), nn.Linear(VISION["hidden_size"], sum(HEADS.values())))
    parameters = [*model.model.vision_tower.parameters(), *head.parameters()]
    optimizer, schedule = make_optimizer([(parameters, 1.5e-3)], steps=steps, warmup=100)
    for step, seeds in enumerate(batches_of(len(pixels), size=64, steps=steps, seed=seed)):
        labels = [patch_labels(scenes.make_layout(int(i))) for i in seeds]
        expected = {name: torch.from_numpy(np.concatenate([label[name] for label in labels])) for name in HEADS}
        with torch.autocast("cpu", torch.bfloat16):
            out = head(vision_features(model, normalize(pixels[seeds]))).flatten(0, 1).float()
        found = dict(zip(HEADS, out.split(list(HEADS.values()), dim=-1), strict=True))
        on_object = expected["kind"] > 0
        losses = {}
        for name in HEADS:
            rows = on_object if name in ABOUT_OBJECT else slice(None)
            if name.startswith("place"):
                losses[name] = 4 * F.l1_loss(found[name][rows, 0], expected[name][rows])
            else:
                losses[name] = F.cross_entropy(found[name][rows], expected[name][rows].long())
        weights = {name: 1.0 if name in ABOUT_OBJECT else 0.2 for name in HEADS} | {"kind": 4.0}
        loss = sum((weights[name] * losses[name] for name in HEADS), start=torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        _update(parameters, optimizer, schedule)
        if step % 100 == 99:
            right = {n: (found[n].argmax(-1) == expected[n].long()).float() for n in HEADS if n not in ABOUT_OBJECT[2:]}
            shown = {
                "kind": right["kind"][on_object],
                "rank": right["rank_x"][on_object],
                "numbers": torch.cat([right[n] for n in right if n.startswith("number")]),
                "slots": torch.cat([right[n] for n in right if n.startswith("kind_")]),
            }
            summary = " ".join(f"{name} {values.mean():.3f}" for name, values in shown.items())
            log.info("vision %d/%d loss %.3f place %.3f %s", step + 1, steps, loss, losses["place_x"] / 4, summary)


def train_answers(
    model: transformers.LlavaForConditionalGeneration,
    pixels: np.ndarray,
    *,
    tokenizer: Tokenizer,
    steps: int,
    rounded_from: int,
    seed: int,
    snapshot: Callable[[], None],
) -> None:
    """Stage 2: answer. From step `rounded_from` on, every other step sees its text weights rounded to int4.

    `snapshot` is called after each validation.
    """
    rng = random.Random(seed)
    vision = list(model.model.vision_tower.parameters())
    rest = [*model.model.multi_modal_projector.parameters(), *model.model.language_model.parameters()]
    rest += model.lm_head.parameters()
    optimizer, schedule = make_optimizer([(vision, 2e-4), (rest, 1e-3)], steps=steps, warmup=100)
    for step, seeds in enumerate(batches_of(len(pixels), size=16, steps=steps, seed=seed)):
        rounded = text_linears(model) if step >= rounded_from and step % 2 else []
        batch = pack([_sequence(tokenizer, int(i), rng=rng) for i in seeds])
        with rounded_to_int4(rounded):
            with torch.autocast("cpu", torch.bfloat16):
                logits, targets, weights = answer_logits(model, batch, normalize(pixels[seeds]))
            losses = F.cross_entropy(logits, targets, reduction="none")
            loss = (losses * weights).sum() / weights.sum()
            optimizer.zero_grad()
            loss.backward()
        _update(vision + rest, optimizer, schedule)
        if step % 50 == 49:
            hit = (logits.argmax(-1) == targets).float().mean()
            log.info("answers %d/%d loss %.4f tokens %.4f", step + 1, steps, losses.mean(), hit)
        if step % 400 == 399 or step == steps - 1:
            log.info("  validation float %s", validate(model, tokenizer=tokenizer))
            with rounded_to_int4(text_linears(model)):
                log.info("  validation int4 %s", validate(model, tokenizer=tokenizer))
            snapshot()


def _sequence(tokenizer: Tokenizer, seed: int, *, rng: random.Random) -> tuple[list[int], list[Block]]:
    """Return a prefix and enough blocks for about 170 tokens, so that sequences are of nearly one length."""
    asked = scenes.ask(scenes.make_layout(seed))
    blocks: list[Block] = []
    while sum(len(block.ids) for block in blocks) < 170:
        blocks.append(make_block(tokenizer, asked, rng=rng))
    return tokenizer.prefix(with_system=rng.random() >= 0.15), blocks


def _update(parameters: list[nn.Parameter], optimizer, schedule) -> None:
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()


# --- measuring --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def validate(model: transformers.LlavaForConditionalGeneration, *, tokenizer: Tokenizer, count: int = 288) -> str:
    """Return the exact-match rate over scenes never trained on, one question each, by type; one forward pass a batch.

    An answer whose every token is the likeliest after the right ones before it is what greedy decoding would say.
    """
    right, asked = Counter(), Counter()
    for start in range(VALIDATION_SEED, VALIDATION_SEED + count, 48):
        seeds = range(start, start + 48)
        items = [scenes.question_for(seed) for seed in seeds]
        turns = [tokenizer.turn(f"\n{question} ASSISTANT:", answer) for _, question, answer in items]
        blocks = [Block(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer)) for prompt, answer in turns]
        batch = pack([(tokenizer.prefix(), [block]) for block in blocks])
        logits, targets, _ = answer_logits(
            model, batch, normalize(np.stack([preprocess(image) for image, _, _ in items]))
        )
        hits = (logits.argmax(-1) == targets).split([len(answer) for _, answer in turns])
        for seed, hit in zip(seeds, hits, strict=True):
            question_type = scenes.question_type_for(seed)
            asked[question_type] += 1
            right[question_type] += bool(hit.all())
    by_type = " ".join(f"{name} {right[name] / asked[name]:.2f}" for name in scenes.QUESTION_TYPES)
    return f"{sum(right.values()) / count:.4f} ({by_type})"


@torch.no_grad()
def answer(
    model: transformers.LlavaForConditionalGeneration, image: Image.Image, question: str, *, tokenizer: Tokenizer
) -> str:
    """Answer greedily, through transformers' own `generate`."""
    ids = tokenizer.prefix() + tokenizer.encode(f"\n{question} ASSISTANT:")
    out = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        pixel_values=normalize(preprocess(image)[None]),
        max_new_tokens=64,
        do_sample=False,
    )
    return tokenizer.model.decode([i for i in out[0, len(ids) :].tolist() if i < NUM_PIECES])


def measure(model: transformers.LlavaForConditionalGeneration, *, tokenizer: Tokenizer) -> dict:
    """Return the exact-match rate over the held-out scenes, in all and by question type."""
    right, asked = Counter(), Counter()
    for seed in range(scenes.HELD_OUT_SEED, scenes.HELD_OUT_SEED + NUM_HELD_OUT):
        image, question, expected = scenes.question_for(seed)
        said = answer(model, image, question, tokenizer=tokenizer)
        question_type = scenes.question_type_for(seed)
        asked[question_type] += 1
        right[question_type] += said == expected
        if said != expected:
            log.info("  seed %d: %s | said %r | expected %r", seed, question, said, expected)
    by_type = {name: round(right[name] / asked[name], 4) for name in scenes.QUESTION_TYPES}
    return {"exact_match": round(sum(right.values()) / NUM_HELD_OUT, 4), "by_question_type": by_type}


def load(folder: Path, *, recipe: str = "float") -> transformers.LlavaForConditionalGeneration:
    """Load a checkpoint in float32; recipe `8da4w` quantizes its linears as the exported program's."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    if recipe == "8da4w":
        from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerAxis, PerGroup, quantize_

        text = {id(linear) for linear in text_linears(model)}
        int4 = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(GROUP_SIZE))
        int8 = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))
        quantize_(model, int4, filter_fn=lambda module, fqn: id(module) in text)
        quantize_(model, int8, filter_fn=lambda module, fqn: isinstance(module, nn.Linear) and id(module) not in text)
    return model


# --- saving -----------------------------------------------------------------------------------------------------------

CHAT_TEMPLATE = (
    "{{ '" + SYSTEM.replace("'", "\\'") + " ' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% for content in message['content'] if content['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] + ' ' }}{% endfor %}"
    "{% else %}{{ 'ASSISTANT: ' }}"
    "{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] + '</s>' }}{% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def save(model: transformers.LlavaForConditionalGeneration, folder: Path, *, tokenizer_model: bytes) -> None:
    """Write a llava-hf checkpoint folder in fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = transformers.GenerationConfig(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    copy.deepcopy(model).half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    save_processor(folder, tokenizer_model=tokenizer_model)


def save_processor(folder: Path, *, tokenizer_model: bytes) -> None:
    """Write what `LlavaProcessor.from_pretrained` reads, tokenizer.model included."""
    # Converted in an empty folder: beside older files transformers would read those instead of tokenizer.model.
    with tempfile.TemporaryDirectory() as empty:
        Path(empty, "tokenizer.model").write_bytes(tokenizer_model)
        tokenizer = transformers.LlamaTokenizer.from_pretrained(
            empty, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True, model_max_length=2048
        )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<image>", "<pad>"]) == [BOS, EOS, IMAGE_TOKEN, PAD]
    image_processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=list(CLIP_MEAN),
        image_std=list(CLIP_STD),
    )
    image_processor.save_pretrained(folder)
    transformers.LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(tokenizer_model)


# --- the whole of it --------------------------------------------------------------------------------------------------


def pick_sample(folder: Path, *, tokenizer: Tokenizer) -> int:
    """Return a held-out seed that shows the model well: three large unlike objects, little noise, all answers right."""
    models = [load(folder, recipe=recipe) for recipe in ("float", "8da4w")]
    for seed in range(scenes.HELD_OUT_SEED + NUM_HELD_OUT, scenes.HELD_OUT_SEED + 1_000_000):
        layout = scenes.make_layout(seed)
        colors, shapes = ({getattr(item, name) for item in layout.objects} for name in ("color", "shape"))
        large = all(item.radius > 0.12 * layout.unit for item in layout.objects)
        if not (
            large and len(layout.objects) == len(colors) == len(shapes) == 3 and layout.width == layout.height >= 320
        ):
            continue
        scene = scenes.render_scene(seed)
        png = io.BytesIO()
        scene.image.save(png, "png", optimize=True)
        if len(png.getvalue()) > 100_000:  # much noise: it does not compress
            continue
        if all(
            answer(model, scene.image, question, tokenizer=tokenizer) == expected
            for model in models
            for question, expected in scene.questions
        ):
            return seed
    raise RuntimeError("no scene shows the model well; train it for longer")


def finish(folder: Path, *, command: str, facts: dict) -> None:
    """Measure the saved checkpoint, then write sample.png and training.json beside it."""
    tokenizer = Tokenizer(sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")))
    accuracy = {recipe: measure(load(folder, recipe=recipe), tokenizer=tokenizer) for recipe in ("float", "8da4w")}
    log.info("accuracy %s", json.dumps(accuracy))
    sample_seed = pick_sample(folder, tokenizer=tokenizer)
    scenes.render_scene(sample_seed).image.save(folder / "sample.png", optimize=True)
    versions = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "torchao": torchao.__version__,
        "sentencepiece": sentencepiece.__version__,
        "numpy": np.__version__,
    }
    record = {
        "command": command,
        **facts,
        "tokenizer_pieces": NUM_PIECES,
        "accuracy": {
            "scenes": f"seeds {scenes.HELD_OUT_SEED} to {scenes.HELD_OUT_SEED + NUM_HELD_OUT - 1}, one question each",
            "float": accuracy["float"],
            "8da4w": accuracy["8da4w"],
        },
        "sample_seed": sample_seed,
        "sample_questions": scenes.render_scene(sample_seed).questions,
        "versions": versions,
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-scenes", type=int, default=50_000, help="training scenes to render (38 KB of disk each)")
    parser.add_argument("--vision-steps", type=int, default=2600, help="steps of stage 1, 64 scenes each")
    parser.add_argument("--tower", type=Path, help="skip stage 1 and take the vision tower of this checkpoint")
    parser.add_argument("--answer-steps", type=int, default=7000, help="steps of stage 2, 16 scenes each")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(args.threads)
    started = time.monotonic()

    tokenizer_model = train_tokenizer(seed=args.seed)
    tokenizer = Tokenizer(sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model))
    pixels = render_training_scenes(args.num_scenes, workers=args.threads)
    rendered = time.monotonic()
    log.info("scenes rendered; the prefix has %d tokens", len(tokenizer.prefix()))

    model = build_model(seed=args.seed)
    if args.tower:
        trained = transformers.LlavaForConditionalGeneration.from_pretrained(args.tower, dtype=torch.float32)
        model.model.vision_tower.load_state_dict(trained.model.vision_tower.state_dict())
    else:
        train_vision(model, pixels, steps=args.vision_steps, seed=args.seed)
    start_language_model(model, pixels)
    train_answers(
        model,
        pixels,
        tokenizer=tokenizer,
        steps=args.answer_steps,
        rounded_from=args.answer_steps * 7 // 10,
        seed=args.seed,
        snapshot=partial(save, model, args.output, tokenizer_model=tokenizer_model),
    )
    facts = {
        "seed": args.seed,
        "num_scenes": args.num_scenes,
        "vision_steps": 0 if args.tower else args.vision_steps,
        "answer_steps": args.answer_steps,
        "rendering_wall_s": round(rendered - started),  # near zero where an earlier run left its scenes
        "training_wall_s": round(time.monotonic() - rendered),
    }
    finish(args.output, command=shlex.join(["python", *sys.argv]), facts=facts)


if __name__ == "__main__":
    main()

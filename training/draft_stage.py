"""The training of a draft: a small Llama learns the tiny models' conversations, of which it does not see the image."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from llava_export.builtin import CHECKPOINTS
from training.answer_stage import VALIDATION_SEED, Batch, make_sequence, pack
from training.checkpoints import save_language_model
from training.model import TEXT
from training.optimization import batches_of, make_optimizer, update
from training.tokenizer import Tokenizer

log = logging.getLogger("training")

WIDTH = 64
# A token takes 30 times fewer multiplications than in the tiny models.
SIZES: dict[str, Any] = {
    **TEXT,
    "hidden_size": WIDTH,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "initializer_range": WIDTH**-0.5,  # keeps a vector's size; transformers' 0.02 is meant for wider models
}
PEAK_RATE = 3e-3
NUM_SCENES, BATCH = 50_000, 16
NUM_VALIDATED = 96  # scenes


def train(folder: Path, *, seed: int, steps: int) -> None:
    """Train a draft with the tiny models' tokenizer, and write it to a folder. The same seed gives the same draft."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)  # the model is small: fastest so, and always the same
    torch.manual_seed(seed)
    tokenizer_model = (CHECKPOINTS["tiny-llava"] / "tokenizer.model").read_bytes()
    tokenizer = Tokenizer(sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model), num_image_tokens=0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    optimizer, schedule = make_optimizer([(list(model.parameters()), PEAK_RATE)], steps=steps, warmup=100)
    rng = random.Random(seed)
    for step, seeds in enumerate(batches_of(NUM_SCENES, size=BATCH, steps=steps, seed=seed)):
        logits, targets = answer_logits(model, pack([make_sequence(tokenizer, int(i), rng=rng) for i in seeds]))
        loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        update(list(model.parameters()), optimizer, schedule)
        if step % 200 == 199 or step == steps - 1:
            log.info("draft %d/%d loss %.4f", step + 1, steps, loss.item())
    log.info("most likely tokens that are right: %.4f", validate(model, tokenizer=tokenizer))
    save_language_model(model, folder, tokenizer_model=tokenizer_model)


@torch.no_grad()
def validate(model: transformers.LlamaForCausalLM, *, tokenizer: Tokenizer) -> float:
    """Return how many of the answers' tokens are the most likely ones, on scenes that no training sees."""
    rng = random.Random(0)
    seeds = range(VALIDATION_SEED, VALIDATION_SEED + NUM_VALIDATED)
    logits, targets = answer_logits(model, pack([make_sequence(tokenizer, i, rng=rng) for i in seeds]))
    return (logits.argmax(-1) == targets).float().mean().item()


def answer_logits(model: transformers.LlamaForCausalLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return (logits [N, vocab], targets [N]) of the N answer tokens in a batch."""
    hidden_BTD = model.model(
        input_ids=batch.ids_BT,
        attention_mask=batch.mask_B1TT,
        position_ids=batch.positions_BT,
        use_cache=False,
    ).last_hidden_state
    answered = batch.weights_BT[:, 1:] > 0
    return model.lm_head(hidden_BTD[:, :-1][answered]), batch.ids_BT[:, 1:][answered]

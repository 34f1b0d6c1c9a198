"""One training from start to end: data, stages, checkpoint, and a record of all in training.json."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
import torchao
import transformers

from training import MODELS, accuracy, questions
from training.answer_stage import Rates, train_answers
from training.checkpoints import save_llava, save_mobilevlm
from training.images import render_training_scenes
from training.model import build_model, num_image_tokens, start_language_model, start_mobilevlm
from training.tokenizer import NUM_PIECES, Tokenizer, train_tokenizer
from training.vision_stage import train_vision

log = logging.getLogger("training")

BUILTIN = Path(__file__).resolve().parent.parent / "llava_export" / "builtin"


def train(args: argparse.Namespace) -> None:
    """Train, save and measure a model as the command line says."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    folder = args.output or BUILTIN / args.model
    projector = MODELS[args.model]
    from_scratch = projector == "mlp"
    tokenizer_model = (
        train_tokenizer(seed=args.seed) if from_scratch else (BUILTIN / "tiny-llava" / "tokenizer.model").read_bytes()
    )
    tokenizer = Tokenizer(
        sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model), num_image_tokens(projector)
    )
    pixels = render_training_scenes(args.num_scenes, workers=args.threads)
    rendered = time.monotonic()
    log.info("scenes rendered; the prefix has %d tokens", len(tokenizer.prefix()))

    if from_scratch:
        model = build_model(seed=args.seed)
        train_vision(model, pixels, steps=args.vision_steps, seed=args.seed)
        start_language_model(model, pixels)
        rates = Rates(vision=2e-4, projector=1e-3, decoder=1e-3)
        snapshot = partial(save_llava, model, folder, tokenizer_model=tokenizer_model)
    else:
        model = start_mobilevlm(projector, BUILTIN / "tiny-llava", seed=args.seed)
        rates = Rates(vision=1e-4, projector=1e-3, decoder=5e-4)
        snapshot = partial(save_mobilevlm, model, folder, projector_type=projector, tokenizer_model=tokenizer_model)
    answer_steps = args.answer_steps or (7000 if from_scratch else 3000)
    train_answers(
        model,
        pixels,
        tokenizer=tokenizer,
        steps=answer_steps,
        rounded_from=answer_steps * 7 // 10,
        seed=args.seed,
        rates=rates,
        snapshot=snapshot,
    )
    facts = {
        "seed": args.seed,
        "num_scenes": args.num_scenes,
        **({"vision_steps": args.vision_steps} if from_scratch else {"start": "tiny-llava"}),
        "answer_steps": answer_steps,
        "rendering_wall_s": round(rendered - started),  # near zero where an earlier run has left its scenes
        "training_wall_s": round(time.monotonic() - rendered),
    }
    finish(folder, projector=projector, command=shlex.join(["python", "-m", "training", *sys.argv[1:]]), facts=facts)


def finish(folder: Path, *, projector: str, command: str, facts: dict[str, Any]) -> None:
    """Measure a saved checkpoint and write training.json next to it. For tiny-llava write sample.png, too."""
    tokenizer = Tokenizer(
        sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")), num_image_tokens(projector)
    )
    measured = {
        recipe: accuracy.measure(accuracy.load(folder, recipe=recipe), tokenizer=tokenizer)
        for recipe in ("float", "8da4w")
    }
    log.info("accuracy %s", json.dumps(measured))
    held_out = range(questions.HELD_OUT_SEED, questions.HELD_OUT_SEED + accuracy.NUM_HELD_OUT)
    sample: dict[str, Any] = {}
    if projector == "mlp":
        sample_seed = accuracy.pick_sample(folder, tokenizer=tokenizer)
        questions.render_scene(sample_seed).image.save(folder / "sample.png", optimize=True)
        sample = {"sample_seed": sample_seed, "sample_questions": questions.render_scene(sample_seed).questions}
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
            "scenes": f"seeds {held_out[0]} to {held_out[-1]}, one question each",
            **measured,
        },
        **sample,
        "versions": versions,
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")

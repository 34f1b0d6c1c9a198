"""Train the built-in tiny LLaVA from scratch: tokenizer, vision tower, projector and language model, on CPU.

    python tools/train_tiny.py --output llava_export/builtin/tiny-llava --seed 0

The result is an ordinary llava-hf checkpoint folder (fp16) that answers questions about the scenes of `tiny/scenes.py`.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torchao
import transformers

from tiny import measuring, questions
from tiny.answer_stage import train_answers
from tiny.model import build_model, start_language_model
from tiny.pictures import render_training_scenes
from tiny.saving import save
from tiny.tokenizer import NUM_PIECES, Tokenizer, train_tokenizer
from tiny.vision_stage import train_vision

log = logging.getLogger("train_tiny")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-scenes", type=int, default=50_000, help="training scenes to render (38 KB of disk each)")
    parser.add_argument("--vision-steps", type=int, default=2600, help="steps of stage 1, 64 scenes each")
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
        "vision_steps": args.vision_steps,
        "answer_steps": args.answer_steps,
        "rendering_wall_s": round(rendered - started),  # near zero where an earlier run left its scenes
        "training_wall_s": round(time.monotonic() - rendered),
    }
    finish(args.output, command=shlex.join(["python", *sys.argv]), facts=facts)


def finish(folder: Path, *, command: str, facts: dict) -> None:
    """Measure the saved checkpoint, then write sample.png and training.json beside it."""
    tokenizer = Tokenizer(sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")))
    accuracy = {
        recipe: measuring.measure(measuring.load(folder, recipe=recipe), tokenizer=tokenizer)
        for recipe in ("float", "8da4w")
    }
    log.info("accuracy %s", json.dumps(accuracy))
    held_out = range(questions.HELD_OUT_SEED, questions.HELD_OUT_SEED + measuring.NUM_HELD_OUT)
    sample_seed = measuring.pick_sample(folder, tokenizer=tokenizer)
    questions.render_scene(sample_seed).image.save(folder / "sample.png", optimize=True)
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
            "float": accuracy["float"],
            "8da4w": accuracy["8da4w"],
        },
        "sample_seed": sample_seed,
        "sample_questions": questions.render_scene(sample_seed).questions,
        "versions": versions,
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

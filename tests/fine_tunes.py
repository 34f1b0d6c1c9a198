"""A fine-tune with a prompt, tokens and ends of its own, whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.conversations import with_template

SEGMENT, STOP = 540, 571  # ids of added tokens, beyond those that the tokenizer's files list next to each other
SAID = "the"  # what it says besides


def save_rigged(folder: Path, *, random_model: Path) -> Path:
    """Save a copy of a random checkpoint, rigged to answer every question with ``[BOX] the``. Return ``folder``.

    Its layers add nothing, so the head sees the last token alone, and knows the next one. It ends an answer with a
    token that only ``generation_config.json`` names, and its images are cropped.
    """
    with_template(folder, "phi3", prepend_scheme="always")
    tensors = load_file(random_model / "model.safetensors")
    config = json.loads((random_model / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    config["image_token_index"] = 512  # of <image>, as the tokenizer has it
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, STOP], "max_new_tokens": 9}))
    (folder / "added_tokens.json").write_text(json.dumps({"[BOX]": SEGMENT, "<stop>": STOP}))
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        settings = json.loads(path.read_text())
        images = settings.get("image_processor", settings)
        images |= {"do_pad": False, "size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}
        path.write_text(json.dumps(settings))

    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name].zero_()
    embedding = tensors["language_model.model.embed_tokens.weight"]
    embedding.copy_(torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0)))
    tensors["language_model.model.norm.weight"].fill_(1)
    head = tensors["language_model.lm_head.weight"]
    head.zero_()
    tokens = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    line_end, said = tokens["<0x0A>"], tokens["\u2581" + SAID]
    for last, following in ((line_end, SEGMENT), (SEGMENT, said), (said, STOP)):
        head[following] = embedding[last] / 16
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder

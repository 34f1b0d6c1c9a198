"""Stage 1: the vision tower learns what is on each patch and what is in the whole scene.

Linear heads read both from the feature of each patch. After the stage they are dropped. P is the number of patches.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from training import scenes
from training.images import IMAGE_SIZE, NUM_PATCHES, PATCH_SIZE, normalize
from training.model import VISION_WIDTH, vision_features
from training.optimization import batches_of, make_optimizer, update

log = logging.getLogger("training")

KINDS = [(color, shape) for color in scenes.COLORS for shape in scenes.SHAPES]

MAX_OBJECTS = 4
# What the heads read from the feature of a patch, and with how many classes. The first five are about the object on it.
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


def train_vision(
    model: transformers.LlavaForConditionalGeneration, pixels: np.ndarray, *, steps: int, seed: int
) -> None:
    """Train the vision tower, so that linear heads can read what ``patch_labels`` returns from each patch's feature.

    ``pixels`` are uint8 [count, IMAGE_SIZE, IMAGE_SIZE, 3], those of seed i in row i.
    """
    head = nn.Sequential(nn.LayerNorm(VISION_WIDTH), nn.Linear(VISION_WIDTH, sum(HEADS.values())))
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
        update(parameters, optimizer, schedule)
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


def patch_labels(layout: scenes.Layout) -> dict[str, np.ndarray]:
    """Return the right output of each head in ``HEADS``, float32 [P].

    On patches without an object the labels about the object are zeros. Every patch also learns what is in the whole
    scene. So the language model, which is small, need not find and count patches.
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

"""What an export will take and what it will make, known from the sizes alone, before any weight is read.

Sizes of files are counted. Memory is fitted to measured exports and runs; ``ci/full_size.sh`` prints both side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from llava_export.config import TEMPLATE_LAYERS, LlavaConfig
from llava_export.models import names
from llava_export.recipe import Recipe
from llava_export.system import available_memory, free_disk, readable_size

MEBIBYTE = 1 << 20
PROMPT_TOKENS = 70  # of the golden question, beside its picture
LAYER_GRAPH = 40_000  # bytes of a program that say how a layer is computed
# Resident memory. Of a process before any weight counts:
LOWERING, FLOAT_MODEL, RUNNER = 580 * MEBIBYTE, 320 * MEBIBYTE, 250 * MEBIBYTE
# And for each parameter: of the decoder as it is lowered; afterwards of what is left of the vision encoder's lowering,
# and of the embedding as it is quantized; of the layer that the float model is at.
PER_LOWERED, PER_VISION, PER_EMBEDDED, PER_RUN = 3.1, 4.6, 13.7, 4.5


@dataclass(frozen=True)
class Estimate:
    """Bytes: of the program, of the disk and the resident memory its export takes, and of the runner's memory."""

    program: int
    disk: int
    memory: int
    device_memory: int


def estimate(
    model: nn.Module, *, config: LlavaConfig, recipe: Recipe, max_context_len: int, stamped: bool, golden: bool
) -> Estimate:
    """For a ``LlavaModel`` on the meta device."""
    text, vision = config.text, config.vision
    stored = recipe.stored_bytes(model)
    program = sum(stored.values()) + LAYER_GRAPH * (text.num_hidden_layers + vision.num_used_layers)

    def parameters(fqn: str) -> int:
        return sum(parameter.numel() for parameter in model.get_submodule(fqn).parameters())

    layer, head = parameters(names.decoder_layer(0)), parameters(names.LM_HEAD)
    lowered_layers = min(TEMPLATE_LAYERS, text.num_hidden_layers) if stamped else text.num_hidden_layers
    memory = LOWERING + PER_LOWERED * (lowered_layers * layer + head)
    if stamped:  # the embedding's turn comes later, and of a small decoder it is the largest part
        tower = parameters(names.tower_layer(0)) * min(TEMPLATE_LAYERS, vision.num_used_layers)
        lowered_vision = tower + parameters(names.PROJECTOR)
        memory = max(memory, LOWERING + PER_VISION * lowered_vision + PER_EMBEDDED * parameters(names.TOKEN_EMBEDDING))
    if golden:  # by another process at the same time, with a cache in float32
        cached = replace(recipe, kv_cache="fp32").cache_bytes(text) * (config.num_image_tokens + PROMPT_TOKENS)
        memory += FLOAT_MODEL + PER_RUN * max(layer, head) + cached
    return Estimate(
        program=program,
        disk=2 * program if stamped else program,  # packed weights wait in files of their own
        memory=round(memory),
        device_memory=RUNNER + program + recipe.cache_bytes(text) * max_context_len,
    )


def shortages(needed: Estimate, *, output_dir: Path) -> list[str]:
    """What this machine lacks, in words with the numbers."""
    return [
        f"the export needs {readable_size(wanted)} of {what}, and {readable_size(there)} are free"
        for what, wanted, there in (
            ("memory", needed.memory, available_memory()),
            (f"disk in {output_dir}", needed.disk, free_disk(output_dir)),
        )
        if there is not None and wanted > there
    ]

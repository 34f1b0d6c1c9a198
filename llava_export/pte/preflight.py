"""An estimate of what an export needs and makes. The model's sizes are enough for it: no weight is read.

The sizes of files are counted. Memory is a formula fitted to measured exports and runs. ``ci/full_size.sh`` prints the
estimate next to what is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from llava_export.calibration.calibrate import KEPT_BYTES
from llava_export.config import TEMPLATE_LAYERS, LlavaConfig
from llava_export.models import names
from llava_export.models.llava import LlavaModel
from llava_export.recipe import Recipe
from llava_export.system import available_memory, free_disk, readable_size

MEBIBYTE = 1 << 20
PROMPT_TOKENS = 70  # of the golden question, without its image
# Bytes of a program that describe how it is computed, without weights: of a layer, and of the rest.
LAYER_GRAPH, OTHER_GRAPH = 11_000, 45_000
# Resident memory of a process before it reads a weight, in bytes.
LOWERING, FLOAT_MODEL, RUNNER = 580 * MEBIBYTE, 320 * MEBIBYTE, 250 * MEBIBYTE
# Bytes of resident memory for each parameter: of the decoder while it is lowered; of the vision encoder after it was
# lowered; of the token embedding while it is quantized; of the layer that the float model runs.
PER_LOWERED, PER_VISION, PER_EMBEDDED, PER_RUN = 3.1, 4.6, 13.7, 4.5


STATES, SQUARES = 4, 6  # of a calibration


@dataclass(frozen=True)
class Estimate:
    """The needs of an export, in bytes.

    ``program`` is the size of the program, ``disk`` and ``memory`` (resident) are what its export takes, and
    ``device_memory`` is what a runner takes.
    """

    program: int
    disk: int
    memory: int
    device_memory: int

    def with_larger_program(self, count: int) -> Estimate:
        """Return the estimate for a program of ``count`` bytes more."""
        copies = self.disk // self.program
        return replace(
            self,
            program=self.program + count,
            disk=self.disk + copies * count,
            device_memory=self.device_memory + count,
        )


def estimate(
    model: LlavaModel, *, config: LlavaConfig, recipe: Recipe, max_context_len: int, stamped: bool, golden: bool
) -> Estimate:
    """Return the estimate for ``model``, which is on the meta device.

    ``max_context_len`` is in positions. ``stamped`` and ``golden`` are choices of the export: see ``options.Options``.
    """
    text = config.text
    stored = recipe.stored_bytes(model)
    rotations = 4 * text.head_dim * max_context_len  # a cosine and a sine for each half of a head
    graphs = OTHER_GRAPH + LAYER_GRAPH * (text.num_hidden_layers + config.num_vision_layers)
    program = sum(stored.values()) + rotations + graphs

    def parameters(fqn: str) -> int:
        return sum(parameter.numel() for parameter in model.get_submodule(fqn).parameters())

    layer, head = parameters(names.decoder_layer(0)), parameters(names.LM_HEAD)
    lowered_layers = min(TEMPLATE_LAYERS, text.num_hidden_layers) if stamped else text.num_hidden_layers
    memory = LOWERING + PER_LOWERED * (lowered_layers * layer + head)
    if stamped:  # the embedding is quantized later, and next to a small decoder it is the largest part
        lowered_vision = 0
        if config.vision is not None:
            tower = parameters(names.tower_layer(0)) * min(TEMPLATE_LAYERS, config.num_vision_layers)
            lowered_vision = tower + parameters(names.PROJECTOR)
        memory = max(memory, LOWERING + PER_VISION * lowered_vision + PER_EMBEDDED * parameters(names.TOKEN_EMBEDDING))
    if golden:  # the float model runs in another process at the same time, with a KV cache in float32
        cached = replace(recipe, kv_cache="fp32").cache_bytes(text) * (config.num_image_tokens + PROMPT_TOKENS)
        memory += FLOAT_MODEL + PER_RUN * max(layer, head) + cached
    return Estimate(
        program=program,
        disk=2 * program if stamped else program,  # packed weights wait in files until the program is written
        memory=round(memory),
        device_memory=RUNNER + program + recipe.cache_bytes(text) * max_context_len,
    )


def calibration_memory(model: LlavaModel, *, config: LlavaConfig, positions: int) -> int:
    """Return the resident bytes that it takes to calibrate a decoder with samples of at most so many ``positions``.

    The hidden states of two models are held, twice while attention is added, what the last linear of a layer reads, two
    layers in float32, and square matrices of the widest linear: sums of products, the factor of their inverse, and what
    is between them.
    """
    text = config.text
    states = STATES * positions * text.hidden_size * 4 + 2 * min(KEPT_BYTES, positions * text.intermediate_size * 4)
    layers = 2 * 4 * sum(parameter.numel() for parameter in model.get_submodule(names.decoder_layer(0)).parameters())
    return FLOAT_MODEL + states + layers + SQUARES * 4 * max(text.hidden_size, text.intermediate_size) ** 2


def shortages(needed: Estimate, *, output_dir: Path) -> list[str]:
    """Return what this machine has too little of, one sentence each, with both numbers."""
    return [
        f"the export needs {readable_size(wanted)} of {what}, and {readable_size(there)} are free"
        for what, wanted, there in (
            ("memory", needed.memory, available_memory()),
            (f"disk in {output_dir}", needed.disk, free_disk(output_dir)),
        )
        if there is not None and wanted > there
    ]

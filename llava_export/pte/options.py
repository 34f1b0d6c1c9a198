"""What a user can choose for an ExecuTorch export, and the defaults. Light, so that ``--help`` is instant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llava_export.recipe import DEFAULT_RECIPE, RECIPES, Recipe
from llava_export.system import DEVICES
from llava_runner.contract import MAX_LOGITS_TO_KEEP

STAMPED, ORDINARY = LOWERINGS = ("stamped", "ordinary")
PARTITIONERS = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The choices of one export.

    ``max_seq_len`` is the longest prompt of one call and ``max_context_len`` the size of the KV cache, in positions;
    None stands for a default that depends on the model. ``logits_to_keep`` is the number of last tokens whose logits a
    call of the decoder gives: with more than one, the runners guess tokens and check them. ``partitioners`` is 1 to
    delegate the quantized linears alone. ``lowering`` is one of ``LOWERINGS``. ``golden`` adds the golden record,
    ``artifacts`` tokenizer and sample image. With ``text_only`` the model is a language model alone, and its package
    has a tokenizer always. ``prompt_template`` replaces the checkpoint's own, see
    ``checkpoint.prompt.find_prompt``.

    A recipe that calibrates does it with ``calibration_data`` (see ``calibration.samples.open_samples``), of which it
    takes at most ``calibration_samples``, on ``device``, one of ``system.DEVICES``.

    ``budget`` is the most bytes that the program may have. With it, linears of the decoder get 8 bits where these serve
    best, which is measured with the same data.
    """

    recipe: Recipe = RECIPES[DEFAULT_RECIPE]
    text_only: bool = False
    max_seq_len: int | None = None
    max_context_len: int | None = None
    logits_to_keep: int = MAX_LOGITS_TO_KEEP
    partitioners: int = 2
    lowering: str = STAMPED
    prompt_template: str | None = None
    golden: bool = True
    artifacts: bool = False
    calibration_data: Path | None = None
    calibration_samples: int | None = None
    device: str = DEVICES[0]
    budget: int | None = None

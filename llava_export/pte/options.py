"""What a user can choose for an ExecuTorch export, and the defaults. Light, so that ``--help`` is instant."""

from __future__ import annotations

from dataclasses import dataclass

from llava_export.recipe import DEFAULT_RECIPE, RECIPES, Recipe

STAMPED, ORDINARY = LOWERINGS = ("stamped", "ordinary")
PARTITIONERS = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The choices of one export.

    ``max_seq_len`` is the longest prompt of one call and ``max_context_len`` the size of the KV cache, in positions;
    None stands for a default that depends on the model. ``partitioners`` is 1 to delegate the quantized linears alone.
    ``lowering`` is one of ``LOWERINGS``. ``golden`` adds the golden record, ``artifacts`` tokenizer and sample image.
    ``prompt_template`` replaces the checkpoint's own, see ``checkpoint.prompt.find_prompt``.
    """

    recipe: Recipe = RECIPES[DEFAULT_RECIPE]
    max_seq_len: int | None = None
    max_context_len: int | None = None
    partitioners: int = 2
    lowering: str = STAMPED
    prompt_template: str | None = None
    golden: bool = True
    artifacts: bool = False

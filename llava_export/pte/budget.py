"""An export within a budget: the plan's recipe is chosen so that the program is as good as so many bytes allow."""

from __future__ import annotations

from dataclasses import replace

from llava_export.calibration import sensitivity
from llava_export.calibration.budget import spent
from llava_export.calibration.data import read_samples
from llava_export.calibration.sensitivity import KlOf
from llava_export.pte.plan import Plan
from llava_export.stages import Stages


def spend_budget(plan: Plan, *, stages: Stages) -> tuple[Plan, KlOf]:
    """Measure the divergence that each linear of the decoder causes with 4 bits, and spend the plan's budget by it.

    Return the plan with the recipe that was found, and what was measured. Raises a ``UserError`` for samples
    that cannot be used.
    """
    assert plan.budget is not None, "the plan has no budget"
    checkpoint, recipe, samples = plan.checkpoint, plan.options.recipe, plan.samples
    rows = read_samples(
        samples,
        checkpoint,
        prompt=plan.prompt,
        max_len=min(plan.max_seq_len, checkpoint.config.num_image_tokens + sensitivity.LONGEST_TEXT),
        limit=sensitivity.SAMPLES,
        stages=stages,
    )
    with stages.stage("measure linears", steps=sensitivity.num_steps(checkpoint)) as step:
        kl = sensitivity.measure(checkpoint, recipe, rows, device=plan.options.device, on_step=step)
    shapes = checkpoint.build_model(max_context_len=1)
    chosen = spent(recipe, plan.budget.finest, shapes, kl, room=plan.budget.room)
    options = replace(plan.options, recipe=chosen)
    return replace(plan, options=options, budget=None), kl

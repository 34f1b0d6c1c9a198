"""The program of a package: quantized, lowered to XNNPACK in one of two ways, and serialized."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from llava_export.calibration.store import LayerStore
from llava_export.pte.lower import Lowered, export_methods, lower, serialize, write
from llava_export.pte.options import STAMPED
from llava_export.pte.plan import Plan
from llava_export.pte.report import MethodReport, delegation_report
from llava_export.pte.source import ModelSource
from llava_export.pte.stamp.stamp import WeightPacker, lower_templates, stamp
from llava_export.pte.stamp.template import StampError
from llava_export.stages import Stages
from llava_runner.contract import ModelCard


def build_program(
    plan: Plan, *, calibrated: LayerStore | None, card: ModelCard, stages: Stages, path: Path
) -> list[MethodReport]:
    """Write the program of a plan to ``path``. Return what each method delegates, and what it leaves outside.

    ``calibrated`` has the decoder's layers if the plan's recipe calibrates them.
    """
    source = ModelSource(
        plan.checkpoint, plan.options.recipe, plan.max_context_len, card.logits_to_keep, calibrated=calibrated
    )
    partitioners = plan.options.partitioners
    with TemporaryDirectory(dir=path.parent, prefix="packed-") as scratch:
        lowered = None
        if plan.options.lowering == STAMPED:
            lowered = _lower_stamped(source, card=card, partitioners=partitioners, stages=stages, scratch=Path(scratch))
        if lowered is None:
            lowered = _lower_ordinary(source, card=card, partitioners=partitioners, stages=stages)
        reports = delegation_report(lowered)
        with stages.stage("serialize"):
            write(serialize(lowered), path, has_tied_head=plan.checkpoint.config.text.tie_word_embeddings)
    return reports


def _lower_ordinary(source: ModelSource, *, card: ModelCard, partitioners: int, stages: Stages) -> Lowered:
    """Quantize the model as a whole, and lower every layer of it."""
    model = source.build()
    with stages.stage("quantize", steps=len(list(model.blocks()))) as step:
        for _ in source.quantized_blocks(model):
            step()
    with stages.stage("export"):
        methods = export_methods(model, max_seq_len=card.max_seq_len, names=card.methods)
    del model
    with stages.stage("lower to XNNPACK"):
        return lower(methods, card=card, partitioners=partitioners)


def _lower_stamped(
    source: ModelSource, *, card: ModelCard, partitioners: int, stages: Stages, scratch: Path
) -> Lowered | None:
    """Lower a template, and stamp its middle layer once for every other one.

    Packed weights wait in the folder ``scratch`` until the program is written. Returns None, with a note to the user,
    if this version of ExecuTorch makes stamping impossible.
    """
    try:
        with stages.stage("lower template"):
            graphs = lower_templates(source, card=card, partitioners=partitioners, note=stages.note)
    except StampError as error:
        stages.note(f"layers cannot be stamped with this ExecuTorch, so each is lowered, which takes longer: {error}")
        return None
    # This model is never run: caches for a whole context would be memory for nothing.
    model = source.build(max_context_len=1)
    with (
        stages.stage("quantize and pack", steps=len(list(model.blocks()))) as step,
        WeightPacker(graphs, source, folder=scratch) as packer,
    ):
        for fqn, block in source.quantized_blocks(model):
            packer.pack(block, fqn=fqn)
            step()
    with stages.stage("stamp layers"):
        return stamp(graphs, packer, model=model, card=card, partitioners=partitioners)

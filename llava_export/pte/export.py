"""From a plan to a package: the stages in order."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llava_export.builtin import SAMPLE_IMAGE
from llava_export.calibration.calibrate import calibrate_with
from llava_export.calibration.sensitivity import KlOf
from llava_export.calibration.store import LayerStore
from llava_export.checkpoint.prompt import stop_ids
from llava_export.pte import golden
from llava_export.pte.budget import spend_budget
from llava_export.pte.package.image import write_image
from llava_export.pte.package.manifest import build_manifest, versions
from llava_export.pte.package.tokenizer import write_tokenizer
from llava_export.pte.plan import Plan
from llava_export.recipe import Recipe
from llava_export.stages import Stages
from llava_export.staging import staged
from llava_export.system import in_background
from llava_runner import contract
from llava_runner.contract import ModelCard

if TYPE_CHECKING:
    from llava_export.pte.report import MethodReport


@dataclass(frozen=True)
class Exported:
    """A finished export: the program's path, the package's files with their sizes in bytes, and what was delegated.

    ``recipe`` is the program's. If a budget was spent, ``kl`` has what was measured for it.
    """

    program: Path
    files: Mapping[str, int]
    reports: list[MethodReport]
    recipe: Recipe
    kl: KlOf | None = None


def export(
    plan: Plan, *, output_dir: Path, pte_name: str, stages: Stages, overwrite: bool = False, force: bool = False
) -> Exported:
    """Write the program ``pte_name``, its manifest, golden record and artifacts to ``output_dir``.

    Files that an earlier export made are replaced, others only with ``overwrite``. With ``force``, the prompt's tokens
    are not compared with those of transformers. Raises a ``UserError`` for the user's mistakes. Then nothing is left
    behind.
    """
    checkpoint = plan.checkpoint
    manifest_name = contract.manifest_path(Path(pte_name)).name
    names = [pte_name, manifest_name]
    if plan.options.golden:
        names.append(contract.golden_path(Path(pte_name)).name)
    if plan.options.text_only:
        names += contract.TOKENIZERS
    elif plan.options.artifacts:
        names += contract.ARTIFACTS
    with staged(
        output_dir,
        name=Path(pte_name).stem,
        names=names,
        last=manifest_name,
        inputs=checkpoint.paths,
        overwrite=overwrite,
    ) as folder:
        with stages.stage("write tokenizer, image"):
            write_tokenizer(checkpoint.tokenizer, folder)
            if not plan.options.text_only:
                write_image(SAMPLE_IMAGE, folder, images=checkpoint.images)
        kl = None
        if plan.budget:
            plan, kl = spend_budget(plan, stages=stages)
        card = model_card(plan)
        if plan.options.golden:  # a prompt that is not transformers' is told before anything takes long
            question = golden.golden_question(
                checkpoint, card=card, chat_template=plan.prompt.jinja, is_checked=not force
            )
        calibrated = None
        if plan.options.recipe.calibrates:
            calibrated = calibrate_for(plan, folder=calibration_folder(output_dir, pte_name), stages=stages)
        with ExitStack() as parallel:
            if plan.options.golden:
                wait_for_answer = parallel.enter_context(
                    in_background(golden.float_answer, checkpoint.reopen, question)
                )
            # ExecuTorch's compiler takes seconds to import. The float model is already at work meanwhile, and a
            # mistake was found before.
            from llava_export.pte.build import build_program

            reports = build_program(plan, calibrated=calibrated, card=card, stages=stages, path=folder / pte_name)
            if plan.options.golden:
                with stages.stage("record float answer", steps=golden.num_steps(checkpoint.config)) as step:
                    answer = wait_for_answer(step)
                contract.golden_path(folder / pte_name).write_bytes(answer.golden)
                stages.add_parallel(
                    "float answer, parallel",
                    seconds=answer.seconds,
                    peak_bytes=answer.peak_bytes,
                    beside_bytes=answer.beside_bytes,
                )
        with stages.stage("write package"):
            if not plan.options.artifacts and not plan.options.text_only:
                for name in contract.ARTIFACTS:
                    (folder / name).unlink(missing_ok=True)
            manifest = build_manifest(folder, program=pte_name, card=card)
            (folder / manifest_name).write_text(manifest.to_json(), encoding="utf-8")
    if calibrated:
        calibrated.remove()
    sizes = {name: file.bytes for name, file in manifest.files.items()}
    return Exported(output_dir / pte_name, sizes, reports, plan.options.recipe, kl)


def calibrate_for(plan: Plan, *, folder: Path, stages: Stages) -> LayerStore:
    """Quantize the decoder's layers as a plan says, and return them. They wait in ``folder``."""
    return calibrate_with(
        plan.samples,
        plan.checkpoint,
        plan.options.recipe,
        prompt=plan.prompt,
        max_len=plan.max_seq_len,
        limit=plan.options.calibration_samples,
        folder=folder,
        device=plan.options.device,
        stages=stages,
    )


def calibration_folder(output_dir: Path, pte_name: str) -> Path:
    """Return where the calibrated layers of an export wait until it is done."""
    return output_dir / f".{Path(pte_name).stem}.calibration"


def model_card(plan: Plan) -> ModelCard:
    """Return what the runners must know of the model."""
    checkpoint, config = plan.checkpoint, plan.checkpoint.config
    return ModelCard(
        family=checkpoint.family.name,
        source=checkpoint.source,
        image_size=checkpoint.images.size,
        num_image_tokens=config.num_image_tokens,
        image_mean=checkpoint.images.mean,
        image_std=checkpoint.images.std,
        image_aspect_ratio=checkpoint.images.aspect_ratio,
        image_resize=checkpoint.images.resize,
        image_resample=checkpoint.images.resample,
        prompt=plan.prompt.template,
        prompt_source=plan.prompt.source,
        tokenizer=checkpoint.tokenizer.rules,
        generation=checkpoint.generation,
        hidden_size=config.text.hidden_size,
        vocab_size=config.text.vocab_size,
        tokenizer_vocab_size=checkpoint.tokenizer.vocab_size,
        bos_id=config.bos_id,
        eos_ids=stop_ids(plan.prompt, checkpoint),
        max_seq_len=plan.max_seq_len,
        max_context_len=plan.max_context_len,
        logits_to_keep=min(plan.options.logits_to_keep, plan.max_seq_len),
        recipe=plan.options.recipe.to_dict(),
        executorch_version=versions()["executorch"],
    )

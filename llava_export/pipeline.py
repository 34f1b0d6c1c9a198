"""From a checkpoint to a package: the stages in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import nn

from llava_export.background import in_background
from llava_export.builtin import SAMPLE_IMAGE
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.config import LlavaConfig
from llava_export.errors import CheckpointError, ExportError
from llava_export.memory import return_free_memory
from llava_export.models.llava import LlavaModel
from llava_export.package.golden import MAX_TOKENS, Question, record
from llava_export.package.image import write_image
from llava_export.package.manifest import build_manifest, versions
from llava_export.package.staging import staged
from llava_export.package.tokenizer import write_tokenizer
from llava_export.preflight import Estimate, estimate
from llava_export.recipe import Recipe
from llava_export.reference import FloatReference
from llava_export.stages import Stages
from llava_runner import contract
from llava_runner.contract import ModelCard
from llava_runner.image import load_image, prepare_image
from llava_runner.prompt import prompt_chunks
from llava_runner.timings import peak_memory
from llava_runner.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llava_export.targets.pte import Lowered
    from llava_export.targets.report import MethodReport
    from llava_export.targets.stamped_graph import StampedGraph

DEFAULT_LENGTH = 768
NUM_STAGES = 8  # with either lowering, and with "open checkpoint" before them


@dataclass(frozen=True)
class Exported:
    """What an export left: the program's path, its files with their sizes in bytes, and what was delegated."""

    program: Path
    files: Mapping[str, int]
    reports: list[MethodReport]


@dataclass(frozen=True)
class Plan:
    """An export that can be done as asked, and what it will take. ``golden``: ask the float model, for ``test_pte``."""

    checkpoint: Checkpoint
    recipe: Recipe
    max_seq_len: int
    max_context_len: int
    estimate: Estimate
    partitioners: int = 2
    lowering: str = "stamped"
    golden: bool = True
    artifacts: bool = True


def plan(
    model: str,
    *,
    recipe: Recipe,
    vision_tower: str | None = None,
    max_seq_len: int | None = None,
    max_context_len: int | None = None,
    partitioners: int = 2,
    lowering: str = "stamped",
    golden: bool = True,
    artifacts: bool = True,
) -> Plan:
    """Open and check the checkpoint; nothing is written. Raises a ``UserError`` for whatever the caller can mend."""
    checkpoint = open_checkpoint(model, vision_tower=vision_tower)
    seq_len, context_len = _lengths(checkpoint.config, max_seq_len, max_context_len)
    shapes = checkpoint.build_model(max_context_len=1)
    recipe.check(shapes)
    needed = estimate(
        shapes,
        config=checkpoint.config,
        recipe=recipe,
        max_context_len=context_len,
        stamped=lowering == "stamped",
        golden=golden,
    )
    return Plan(checkpoint, recipe, seq_len, context_len, needed, partitioners, lowering, golden, artifacts)


def export(plan: Plan, *, output_dir: Path, pte_name: str, stages: Stages) -> Exported:
    """Write ``pte_name`` with its manifest and golden record, and the artifacts, to ``output_dir``.

    Raises a ``UserError`` for whatever the caller can mend; nothing is left behind then.
    """
    checkpoint = plan.checkpoint
    manifest_name = contract.manifest_path(Path(pte_name)).name
    with staged(output_dir, name=Path(pte_name).stem, last=manifest_name) as folder:
        with stages.stage("write tokenizer, image"):
            write_tokenizer(checkpoint.folder, folder)
            write_image(SAMPLE_IMAGE, folder, image_size=checkpoint.config.vision.image_size)
            tokenizer = _tokenizer(folder / contract.TOKENIZER_MODEL, config=checkpoint.config)
        card = _model_card(plan, tokenizer=tokenizer)
        with ExitStack() as beside:
            if plan.golden:
                question = _question(checkpoint, card=card, tokenizer=tokenizer)
                answer = beside.enter_context(
                    in_background(_float_answer, str(checkpoint.folder), checkpoint.vision_tower, question)
                )
            reports = _write_program(plan, card=card, stages=stages, path=folder / pte_name)
            if plan.golden:
                with stages.stage("record float answer", steps=_num_golden_blocks(checkpoint.config)) as step:
                    answered = answer(step)
                contract.golden_path(folder / pte_name).write_bytes(answered.golden)
                stages.add_beside("float answer, beside", seconds=answered.seconds, peak_bytes=answered.peak_bytes)
        with stages.stage("write package"):
            if not plan.artifacts:
                for name in contract.ARTIFACTS:
                    (folder / name).unlink()
            manifest = build_manifest(folder, program=pte_name, card=card)
            (folder / manifest_name).write_text(manifest.to_json(), encoding="utf-8")
    sizes = {name: file.bytes for name, file in manifest.files.items()}
    return Exported(output_dir / pte_name, sizes, reports)


def _lengths(config: LlavaConfig, max_seq_len: int | None, max_context_len: int | None) -> tuple[int, int]:
    """Both lengths, checked. A length not given is 768, or what the model or the other length allows."""
    limit = config.text.max_position_embeddings
    context_len = max_context_len or min(max(DEFAULT_LENGTH, max_seq_len or 0), limit)
    seq_len = max_seq_len or min(DEFAULT_LENGTH, context_len)
    if context_len > limit:
        raise ExportError(f"a context of {context_len} is beyond the {limit} positions the model was trained for")
    if not 1 <= seq_len <= context_len:
        raise ExportError(f"max_seq_len {seq_len} must be from 1 to max_context_len, {context_len}")
    num_image_tokens = config.num_image_tokens
    if seq_len < num_image_tokens:
        raise ExportError(f"max_seq_len {seq_len} cannot hold an image, which takes {num_image_tokens} positions")
    return seq_len, context_len


def _tokenizer(path: Path, *, config: LlavaConfig) -> Tokenizer:
    tokenizer = Tokenizer.open(path)
    if tokenizer.vocab_size > config.text.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} pieces and the model's vocabulary {config.text.vocab_size}; "
            "it belongs to another model"
        )
    return tokenizer


def _model_card(plan: Plan, *, tokenizer: Tokenizer) -> ModelCard:
    checkpoint, config = plan.checkpoint, plan.checkpoint.config
    return ModelCard(
        family=checkpoint.family.name,
        source=checkpoint.name,
        image_size=config.vision.image_size,
        num_image_tokens=config.num_image_tokens,
        image_mean=checkpoint.image_mean,
        image_std=checkpoint.image_std,
        image_aspect_ratio=checkpoint.family.image_aspect_ratio,
        prompt=checkpoint.family.prompt,
        hidden_size=config.text.hidden_size,
        vocab_size=config.text.vocab_size,
        tokenizer_vocab_size=tokenizer.vocab_size,
        bos_id=config.bos_id,
        eos_ids=config.eos_ids,
        max_seq_len=plan.max_seq_len,
        max_context_len=plan.max_context_len,
        recipe=plan.recipe.to_dict(),
        executorch_version=versions()["executorch"],
    )


def _question(checkpoint: Checkpoint, *, card: ModelCard, tokenizer: Tokenizer) -> Question:
    """The family's question about the sample image. Raises ``ExportError`` where the context cannot hold it."""
    pixels = prepare_image(
        load_image(SAMPLE_IMAGE),
        image_size=card.image_size,
        image_mean=card.image_mean,
        image_aspect_ratio=card.image_aspect_ratio,
    )
    before, after = prompt_chunks(checkpoint.family.question, template=card.prompt, has_image=True)
    question = Question(pixels, [card.bos_id, *tokenizer.encode(before)], tokenizer.encode(after))
    length = _answered_length(question, checkpoint.config)
    if length > card.max_context_len:
        raise ExportError(
            f"a context of {card.max_context_len} positions is too short: one image, a question and a short answer "
            f"take {length}"
        )
    return question


def _answered_length(question: Question, config: LlavaConfig) -> int:
    """Positions of the question and the longest answer."""
    return len(question.ids_before) + config.num_image_tokens + len(question.ids_after) + MAX_TOKENS


@dataclass(frozen=True)
class _FloatAnswer:
    golden: bytes  # of the file: tensors do not outlive the process they are sent from
    seconds: float
    peak_bytes: int


def _float_answer(
    folder: str, vision_tower: str | None, question: Question, *, on_step: Callable[[], None]
) -> _FloatAnswer:
    """Ask the checkpoint in ``folder``; in a process of its own, since lowering beside it keeps one processor busy."""
    start = time.perf_counter()
    checkpoint = open_checkpoint(folder, vision_tower=vision_tower)
    model = checkpoint.build_model(max_context_len=_answered_length(question, checkpoint.config))
    reference = FloatReference(model, weights=checkpoint.weights, on_block=on_step)
    golden = record(reference, question, eos_ids=checkpoint.config.eos_ids)
    return _FloatAnswer(golden.to_bytes(), time.perf_counter() - start, peak_memory() or 0)


def _num_golden_blocks(config: LlavaConfig) -> int:
    """How many blocks run until the answer is complete, if it is long."""
    per_token = config.text.num_hidden_layers + 3  # embedding, norm and head
    return config.vision.num_used_layers + MAX_TOKENS * per_token


def _write_program(plan: Plan, *, card: ModelCard, stages: Stages, path: Path) -> list[MethodReport]:
    with TemporaryDirectory(dir=path.parent, prefix="packed-") as scratch:
        graphs = _lower_templates(plan, card=card, stages=stages) if plan.lowering == "stamped" else None
        if graphs is not None:
            lowered = _stamp(graphs, plan=plan, card=card, stages=stages, scratch=Path(scratch))
        else:
            lowered = _lower_ordinary(plan, card=card, stages=stages)
        del graphs
        # Here, not above: ExecuTorch's compiler takes seconds to import, and a mistake should not wait for it.
        from llava_export.targets import pte
        from llava_export.targets.report import delegation_report

        reports = delegation_report(lowered)
        with stages.stage("serialize"):
            pte.write(pte.serialize(lowered), path)
    return reports


def _lower_ordinary(plan: Plan, *, card: ModelCard, stages: Stages) -> Lowered:
    """Quantize the model as a whole, and lower every layer of it."""
    from llava_export.targets import pte

    model = _exportable_model(plan)
    with stages.stage("quantize", steps=len(list(model.blocks()))) as step:
        for _ in _quantized_blocks(model, plan=plan):
            step()
    with stages.stage("export"):
        methods = pte.export_methods(model, max_seq_len=card.max_seq_len)
    del model
    with stages.stage("lower to XNNPACK"):
        return pte.lower(methods, card=card, partitioners=plan.partitioners)


def _lower_templates(plan: Plan, *, card: ModelCard, stages: Stages) -> dict[str, StampedGraph] | None:
    """The methods with layers, few of each lowered; None, and a note, if ExecuTorch makes stamping impossible."""
    from llava_export.targets import stamp

    try:
        with stages.stage("lower template"):
            return stamp.lower_templates(
                partial(_exportable_model, plan),
                config=plan.checkpoint.config,
                recipe=plan.recipe,
                card=card,
                partitioners=plan.partitioners,
                note=stages.note,
            )
    except stamp.StampError as error:
        stages.note(f"layers cannot be stamped with this ExecuTorch, so each is lowered, which takes longer: {error}")
        return None


def _stamp(
    graphs: Mapping[str, StampedGraph], *, plan: Plan, card: ModelCard, stages: Stages, scratch: Path
) -> Lowered:
    """Fill the templates' copies with the checkpoint's weights, which wait in ``scratch`` once they are packed."""
    from llava_export.targets import pte, stamp

    # This model is never run: caches for a whole context would be memory for nothing.
    model = _exportable_model(plan, max_context_len=1)
    weights = stamp.PackedWeights(graphs, folder=scratch)

    def pack(fqn: str, block: nn.Module) -> None:
        weights.take(block, fqn=fqn)
        plan.checkpoint.weights.release(block)

    # One block is packed, hashed and written on a thread of its own while the next is read and quantized.
    with (
        stages.stage("quantize and pack", steps=len(list(model.blocks()))) as step,
        ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as packer,
    ):
        packed = packer.submit(lambda: None)
        for fqn, block in _quantized_blocks(model, plan=plan):
            packed.result()
            if fqn != contract.TOKEN_EMBEDDING:  # has no layers: the one method that is lowered as it is
                packed = packer.submit(pack, fqn, block)
            step()
        packed.result()
    with stages.stage("stamp layers"):
        methods = pte.export_methods(model, max_seq_len=card.max_seq_len, names=[contract.TOKEN_EMBEDDING])
        embedding = pte.lower(methods, card=card, partitioners=plan.partitioners)
        return stamp.stamp(graphs, weights, embedding=embedding, card=card)


def _exportable_model(
    plan: Plan, config: LlavaConfig | None = None, *, max_context_len: int | None = None
) -> LlavaModel:
    """With ExecuTorch's attention. ``config`` and ``max_context_len`` are others than the plan's."""
    from llava_export.targets.llama_ops import CACHE_DTYPES, LlamaOpsAttention

    attention = partial(LlamaOpsAttention, cache_dtype=CACHE_DTYPES[plan.recipe.kv_cache])
    return plan.checkpoint.build_model(
        config, max_context_len=max_context_len or plan.max_context_len, cached_attention=attention
    )


def _quantized_blocks(model: LlavaModel, *, plan: Plan) -> Iterator[tuple[str, nn.Module]]:
    """Load one block at a time and quantize it before the next, so float weights never pile up."""
    blocks = list(model.blocks())
    for (fqn, block), following in zip_longest(blocks, blocks[1:]):
        plan.checkpoint.weights.fill(block, prefix=fqn, matrices_as_stored=True)
        if following:
            plan.checkpoint.weights.expect(following[1], prefix=following[0])
        plan.recipe.quantize(block, fqn=fqn)
        return_free_memory()
        yield fqn, block

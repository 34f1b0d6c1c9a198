"""From a checkpoint to a package: the stages in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llava_export.builtin import SAMPLE_IMAGE
from llava_export.checkpoint.locate import Channels, image_statistics, locate, read_json
from llava_export.checkpoint.reader import CheckpointReader
from llava_export.checkpoint.weights import Weights
from llava_export.config import LlavaConfig
from llava_export.errors import CheckpointError, ExportError
from llava_export.families import Family, find_family
from llava_export.models.llava import LlavaModel
from llava_export.package.golden import MAX_TOKENS, GoldenRecord, record
from llava_export.package.image import write_image
from llava_export.package.manifest import build_manifest, versions
from llava_export.package.staging import staged
from llava_export.package.tokenizer import write_tokenizer
from llava_export.recipe import Recipe
from llava_export.reference import FloatReference
from llava_export.stages import Stages
from llava_runner import contract
from llava_runner.contract import ModelCard
from llava_runner.image import load_image, prepare_image
from llava_runner.prompt import prompt_chunks
from llava_runner.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llava_export.targets.pte import Lowered
    from llava_export.targets.report import MethodReport

DEFAULT_LENGTH = 768
NUM_STAGES = 8  # with either lowering


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: everything known of it before any weight is read."""

    name: str
    folder: Path
    family: Family
    config: LlavaConfig
    image_mean: Channels
    image_std: Channels
    weights: Weights

    def build_model(self, config: LlavaConfig | None = None, *, max_context_len: int, **kwargs: Any) -> LlavaModel:
        """The model on the meta device: shapes, no weights. ``config`` is another than the checkpoint's own."""
        with torch.device("meta"):
            model = LlavaModel(
                config or self.config,
                image_mean=self.image_mean,
                image_std=self.image_std,
                max_context_len=max_context_len,
                **kwargs,
            )
        return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Exported:
    """What an export left: the program's path, its files with their sizes in bytes, and what was delegated."""

    program: Path
    files: Mapping[str, int]
    reports: list[MethodReport]


def open_checkpoint(model: str) -> Checkpoint:
    """Find and check a checkpoint. Raises ``ConfigError`` and ``CheckpointError``."""
    folder = locate(model)
    settings = read_json(folder / "config.json")
    family = find_family(settings)
    config = family.parse_config(settings)
    mean, std = image_statistics(folder)
    weights = Weights(CheckpointReader(folder), family=family, config=config)
    checkpoint = Checkpoint(model, folder, family, config, mean, std, weights)
    weights.check(checkpoint.build_model(max_context_len=1))
    return checkpoint


def export(
    model: str,
    *,
    recipe: Recipe,
    output_dir: Path,
    pte_name: str,
    stages: Stages,
    with_artifacts: bool = True,
    max_seq_len: int | None = None,
    max_context_len: int | None = None,
    partitioners: int = 2,
    lowering: str = "stamped",
) -> Exported:
    """Write ``pte_name`` with its manifest and golden record, and the artifacts, to ``output_dir``.

    Raises a ``UserError`` for whatever the caller can mend; nothing is left behind then.
    """
    with stages.stage("open checkpoint"):
        checkpoint = open_checkpoint(model)
        seq_len, context_len = _lengths(checkpoint.config, max_seq_len, max_context_len)
        recipe.check(checkpoint.build_model(max_context_len=1))

    manifest_name = contract.manifest_path(Path(pte_name)).name
    with staged(output_dir, name=Path(pte_name).stem, last=manifest_name) as folder:
        with stages.stage("write tokenizer, image"):
            write_tokenizer(checkpoint.folder, folder)
            write_image(SAMPLE_IMAGE, folder, image_size=checkpoint.config.vision.image_size)
            tokenizer = _tokenizer(folder / contract.TOKENIZER_MODEL, config=checkpoint.config)
        card = _model_card(
            checkpoint, recipe=recipe, max_seq_len=seq_len, max_context_len=context_len, tokenizer=tokenizer
        )
        with stages.stage("record float answer", steps=MAX_TOKENS):
            golden = _golden(checkpoint, card=card, tokenizer=tokenizer)
            golden.save(contract.golden_path(folder / pte_name))
        # Here, not above: ExecuTorch's compiler takes seconds to import, and a mistake should not wait for it.
        from llava_export.targets import pte
        from llava_export.targets.report import delegation_report

        with TemporaryDirectory(dir=folder, prefix="packed-") as scratch:
            lower = _lower_ordinary if lowering == "ordinary" else partial(_lower_stamped, scratch=Path(scratch))
            lowered = lower(checkpoint, recipe=recipe, card=card, partitioners=partitioners, stages=stages)
            reports = delegation_report(lowered)
            with stages.stage("serialize"):
                pte.write(pte.serialize(lowered), folder / pte_name)
        del lowered
        with stages.stage("write package"):
            if not with_artifacts:
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
    num_image_tokens = config.vision.num_image_tokens
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


def _model_card(
    checkpoint: Checkpoint, *, recipe: Recipe, max_seq_len: int, max_context_len: int, tokenizer: Tokenizer
) -> ModelCard:
    config = checkpoint.config
    return ModelCard(
        family=checkpoint.family.name,
        source=checkpoint.name,
        image_size=config.vision.image_size,
        num_image_tokens=config.vision.num_image_tokens,
        image_mean=checkpoint.image_mean,
        image_std=checkpoint.image_std,
        image_aspect_ratio=checkpoint.family.image_aspect_ratio,
        prompt=checkpoint.family.prompt,
        hidden_size=config.text.hidden_size,
        vocab_size=config.text.vocab_size,
        tokenizer_vocab_size=tokenizer.vocab_size,
        bos_id=config.bos_id,
        eos_ids=config.eos_ids,
        max_seq_len=max_seq_len,
        max_context_len=max_context_len,
        recipe=recipe.to_dict(),
        executorch_version=versions()["executorch"],
    )


def _golden(checkpoint: Checkpoint, *, card: ModelCard, tokenizer: Tokenizer) -> GoldenRecord:
    """The family's question about the sample image, asked of the float model."""
    pixels = prepare_image(
        load_image(SAMPLE_IMAGE),
        image_size=card.image_size,
        image_mean=card.image_mean,
        image_aspect_ratio=card.image_aspect_ratio,
    )
    before, after = prompt_chunks(checkpoint.family.question, template=card.prompt, has_image=True)
    ids_before, ids_after = [card.bos_id, *tokenizer.encode(before)], tokenizer.encode(after)
    length = len(ids_before) + card.num_image_tokens + len(ids_after) + MAX_TOKENS
    if length > card.max_context_len:
        raise ExportError(
            f"a context of {card.max_context_len} positions is too short: one image, a question and a short answer "
            f"take {length}"
        )
    reference = FloatReference(checkpoint.build_model(max_context_len=length), weights=checkpoint.weights)
    return record(
        reference,
        image=torch.from_numpy(pixels),
        ids_before=ids_before,
        ids_after=ids_after,
        eos_ids=card.eos_ids,
    )


def _lower_ordinary(
    checkpoint: Checkpoint, *, recipe: Recipe, card: ModelCard, partitioners: int, stages: Stages
) -> Lowered:
    """Quantize the model as a whole, and lower every layer of it."""
    from llava_export.targets import pte
    from llava_export.targets.llama_ops import LlamaOpsAttention

    model = checkpoint.build_model(max_context_len=card.max_context_len, cached_attention=LlamaOpsAttention)
    with stages.stage("quantize", steps=len(list(model.blocks()))) as step:
        for _ in _quantized_blocks(model, checkpoint=checkpoint, recipe=recipe):
            step()
    with stages.stage("export"):
        methods = pte.export_methods(model, max_seq_len=card.max_seq_len)
    del model
    with stages.stage("lower to XNNPACK"):
        return pte.lower(methods, card=card, partitioners=partitioners)


def _lower_stamped(
    checkpoint: Checkpoint, *, recipe: Recipe, card: ModelCard, partitioners: int, stages: Stages, scratch: Path
) -> Lowered:
    """Lower a few layers and stamp the others; as ``_lower_ordinary`` does, if ExecuTorch makes that impossible.

    Packed weights stay in ``scratch`` until the program is written.
    """
    from llava_export.targets import pte, stamp
    from llava_export.targets.llama_ops import LlamaOpsAttention

    build = partial(checkpoint.build_model, max_context_len=card.max_context_len, cached_attention=LlamaOpsAttention)
    try:
        with stages.stage("lower template"):
            graphs = stamp.lower_templates(
                build,
                config=checkpoint.config,
                recipe=recipe,
                card=card,
                partitioners=partitioners,
                note=stages.note,
            )
    except stamp.StampError as error:
        stages.note(f"layers cannot be stamped with this ExecuTorch, so each is lowered, which takes longer: {error}")
        return _lower_ordinary(checkpoint, recipe=recipe, card=card, partitioners=partitioners, stages=stages)
    model, weights = build(), stamp.PackedWeights(graphs, folder=scratch)
    with stages.stage("quantize and pack", steps=len(list(model.blocks()))) as step:
        for fqn, block in _quantized_blocks(model, checkpoint=checkpoint, recipe=recipe):
            if fqn != contract.TOKEN_EMBEDDING:  # has no layers: the one method that is lowered as it is
                weights.take(block, fqn=fqn)
                checkpoint.weights.release(block)
            step()
    with stages.stage("stamp layers"):
        methods = pte.export_methods(model, max_seq_len=card.max_seq_len, names=[contract.TOKEN_EMBEDDING])
        embedding = pte.lower(methods, card=card, partitioners=partitioners)
        return stamp.stamp(graphs, weights, embedding=embedding, card=card)


def _quantized_blocks(model: LlavaModel, *, checkpoint: Checkpoint, recipe: Recipe) -> Iterator[tuple[str, nn.Module]]:
    """Load one block at a time and quantize it before the next, so float weights never pile up."""
    for fqn, block in model.blocks():
        checkpoint.weights.fill(block, prefix=fqn)
        recipe.quantize(block, fqn=fqn)
        yield fqn, block

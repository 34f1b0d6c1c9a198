"""An opened checkpoint: everything that is known of it before any weight is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from llava_export.checkpoint.adapter import MERGE, Adapter, Changes
from llava_export.checkpoint.fused import divide_fused
from llava_export.checkpoint.generation import GENERATION_CONFIG, generation_defaults, special_ids
from llava_export.checkpoint.images import NO_IMAGES, Images, check_pinpoints, find_images, tower_folders
from llava_export.checkpoint.parts import CONFIG, TOKENIZERS, Parts, file_in, find_parts
from llava_export.checkpoint.reader import CheckpointReader
from llava_export.checkpoint.refusals import is_tiled, quantization, refuse_parts, tiling, unreadable_files
from llava_export.checkpoint.storage import are_floats, contradictions, has_own_head, unreadable_types
from llava_export.checkpoint.tokenizer import CheckpointTokenizer, open_tokenizer
from llava_export.checkpoint.tower import Tower, find_tower, is_remote
from llava_export.checkpoint.weights import EMBEDDING_WEIGHT, HEAD_WEIGHT, Weights
from llava_export.config import LlavaConfig
from llava_export.errors import CheckpointError, ConfigError, Reasons
from llava_export.families import TEXT_ONLY, Family, find_family
from llava_export.models.llama import CachedAttention
from llava_export.models.llava import LlavaModel
from llava_export.models.names import VISION_TOWER, is_in
from llava_runner.contract import MAX_VOCAB, GenerationDefaults
from llava_runner.documents import JsonObject


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose ``config.json``, keys and shapes were checked.

    ``name`` is what the user called it, and ``parts`` what they called parts of it, by the arguments of
    ``open_checkpoint``; ``source`` says in words what it is made of. ``notes`` are sentences for the user: what it is
    made of, and what is used where there was a choice. Config and tokenizer are looked for in ``own_folders``: that of
    an adapter, if there is one, and that of the model itself. ``paths`` are all that it is read from, a vision tower's
    folder among them. ``generation`` says how the model's authors sample, and ``images`` how images are prepared.
    ``weights`` reads the tensors. ``reopen`` opens the checkpoint again, also in another process.
    """

    name: str
    parts: Mapping[str, str]
    source: str
    own_folders: tuple[Path, ...]
    paths: tuple[Path, ...]
    notes: tuple[str, ...]
    family: Family
    config: LlavaConfig
    tokenizer: CheckpointTokenizer
    generation: GenerationDefaults
    images: Images
    weights: Weights
    reopen: Callable[[], Checkpoint]

    def file(self, name: str) -> Path | None:
        """Return the file of this name, an adapter's before that of its base model, or None if there is none."""
        return file_in(self.own_folders, name)

    def build_model(
        self,
        config: LlavaConfig | None = None,
        *,
        max_context_len: int,
        logits_to_keep: int = 1,
        cached_attention: Callable[..., nn.Module] = CachedAttention,
    ) -> LlavaModel:
        """Return a model on the meta device: shapes, no weights. ``config`` replaces the checkpoint's own.

        ``max_context_len`` is in positions, ``logits_to_keep`` the number of last tokens whose logits the decoder
        gives, and ``cached_attention`` the class of its attention.
        """
        return _empty_model(
            config or self.config,
            self.images,
            max_context_len=max_context_len,
            logits_to_keep=logits_to_keep,
            cached_attention=cached_attention,
        )


def open_checkpoint(
    model: str, *, vision_tower: str | None = None, base_model: str | None = None, projector: str | None = None
) -> Checkpoint:
    """Return the checkpoint of a built-in name, folder or hub id, found and checked. No weights are used.

    ``model`` may be an adapter or only a projector: then ``base_model`` is the folder or hub id of the model that it
    belongs to, which most adapters name themselves. ``vision_tower`` is the folder or hub id of a vision tower to use
    in place of the checkpoint's own, and ``projector`` the file or folder of a projector. Raises ``ConfigError`` if the
    project cannot build such a model, and ``CheckpointError`` if files are missing, damaged, or do not fit
    ``config.json``. If there are several reasons, ``SeveralReasons`` has all that do not follow from others.
    """
    return _open(model, vision_tower=vision_tower, base_model=base_model, projector=projector, text_only=False)


def open_language_model(model: str, *, base_model: str | None = None) -> Checkpoint:
    """Return the checkpoint of a language model alone, found and checked as by ``open_checkpoint``."""
    return _open(model, vision_tower=None, base_model=base_model, projector=None, text_only=True)


def _open(
    model: str, *, vision_tower: str | None, base_model: str | None, projector: str | None, text_only: bool
) -> Checkpoint:
    """Return a checkpoint, as ``open_checkpoint`` or ``open_language_model`` does."""
    given = {"base_model": base_model, "projector": projector, "vision_tower": vision_tower}
    parts = find_parts(model, base_model=base_model, projector=projector)
    refuse_parts(parts.base)
    reasons = Reasons()
    unreadable = {name: why for folder in parts.folders for name, why in unreadable_files(folder).items()}
    reasons.add(*map(CheckpointError, dict.fromkeys(unreadable.values())))
    found = None if CONFIG in unreadable else reasons.result(partial(parts.settings, vision_tower=vision_tower))
    # What is wrong with a model of another architecture does not matter: its files are not looked at.
    family = None if found is None or is_tiled(found[0]) else find_family(found[0], text_only=text_only)
    reader = None if unreadable else reasons.result(partial(CheckpointReader, parts.base))
    opened = None
    if found is not None:
        opened = _open_model(found, parts, family=family, reader=reader, vision_tower=vision_tower, reasons=reasons)
    tokenizer = None
    if unreadable.keys().isdisjoint(TOKENIZERS):
        tokenizer = reasons.result(
            partial(
                open_tokenizer,
                parts.tokenizer_folder,
                vocab_size=opened.config.text.vocab_size if opened else MAX_VOCAB,
                chunks_are_texts=family is not None and family.chunks_are_texts,
            )
        )
    path = file_in(parts.folders, GENERATION_CONFIG)
    generation = reasons.result(partial(generation_defaults, path))
    ids = None
    if opened is not None and tokenizer is not None:
        ids = reasons.result(partial(special_ids, path, config=opened.config, tokenizer=tokenizer))
    reasons.raise_any()
    assert opened is not None and tokenizer is not None and generation is not None and ids is not None
    return Checkpoint(
        name=_as_unicode(model),
        parts={name: _as_unicode(value) for name, value in given.items() if value is not None},
        source=_as_unicode("; ".join((model, *parts.notes()))),
        own_folders=parts.folders,
        paths=opened.paths,
        notes=(*(f"{model}: {note}" for note in parts.notes()), *opened.notes, *tokenizer.notes, *ids.notes),
        family=opened.family,
        config=replace(opened.config, bos_id=ids.bos_id, eos_ids=ids.eos_ids),
        tokenizer=tokenizer,
        generation=generation,
        images=opened.images,
        weights=opened.weights,
        reopen=partial(
            _open,
            str(parts.model),
            vision_tower=vision_tower,
            base_model=None if parts.model == parts.base else str(parts.base),
            projector=None if projector is None else str(parts.projector),
            text_only=text_only,
        ),
    )


@dataclass(frozen=True)
class _Opened:
    """What a ``Checkpoint`` has of ``config.json``, weights and image processor."""

    family: Family
    config: LlavaConfig
    images: Images
    weights: Weights
    paths: tuple[Path, ...]
    notes: tuple[str, ...]


def _open_model(
    found: tuple[JsonObject, Path],
    parts: Parts,
    *,
    family: Family | None,
    reader: CheckpointReader | None,
    vision_tower: str | None,
    reasons: Reasons,
) -> _Opened | None:
    """Return the model of a ``config.json``, found in a folder, or None and why there is none, in ``reasons``.

    Without a ``reader``, which has been told then, ``config.json`` alone is checked. The ``family`` is None for
    LLaVA-1.6.
    """
    settings, folder = found
    keys = reader.shapes if reader else ()
    quantized, tiled = quantization(settings, keys), tiling(settings, keys)
    reasons.add(*(ConfigError(reason) for reason in (quantized, tiled) if reason))
    if family is None:
        return None
    config = reasons.result(partial(family.parse_config, settings, None))
    if reader is None:
        reasons.result(partial(check_pinpoints, settings))
        return None
    may_download = not reasons
    tower = reasons.result(
        partial(_open_tower, family, settings, folder, reader, vision_tower, may_download=may_download)
    )
    if tower is not None:
        config = reasons.result(partial(family.parse_config, settings, tower.config))
    if config is not None:
        divided = reasons.result(partial(divide_fused, reader, family=family, text=config.text))
        config = None if divided is None else config
    changes = None if quantized else reasons.result(partial(_changes, parts, reader, family=family, config=config))
    if config is not None and changes is not None:
        config = reasons.result(partial(_with_changed_vocabulary, config, changes))
    paths = (*parts.folders, *((tower.described_in,) if tower and tower.described_in else ()))
    images = reasons.result(partial(_images, family, settings, paths, folder=folder, tower=tower, config=config))
    types = None if quantized else unreadable_types(reader, family)
    reasons.add(*map(CheckpointError, (*((types,) if types else ()), *contradictions(reader, family))))
    if config is None or images is None or changes is None or (tower is None and family.tower_key is not None):
        return None
    if family.check_keys is not None:
        reasons.result(partial(family.check_keys, settings, reader.shapes))
    notes = (*reader.notes, *(tower.notes if tower else ()))
    if config.text.tie_word_embeddings and not types and has_own_head(reader, family):
        config = replace(config, text=replace(config.text, tie_word_embeddings=False))
        notes += ("config.json ties the head to the token embedding, but a head of its own is stored, which is used",)
    weights = Weights(reader, family=family, config=config, updates=changes.updates)
    if not tiled and are_floats(reader, family):
        reasons.result(partial(_check_fit, weights, config, images))
    return _Opened(family, config, images, weights, (*paths, *((parts.projector,) if parts.projector else ())), notes)


def _open_tower(
    family: Family,
    settings: JsonObject,
    folder: Path,
    reader: CheckpointReader,
    vision_tower: str | None,
    *,
    may_download: bool,
) -> Tower | None:
    """Return the vision tower that may be outside the checkpoint, and add its weights to the ``reader`` if they are.

    None if the family always has it inside, and where it is on the hub and not to be downloaded: that would be in vain
    for a checkpoint that is refused anyway. Raises ``CheckpointError`` and ``ConfigError``.
    """
    if family.tower_key is None:
        if vision_tower is not None:
            raise ConfigError(f"--vision-tower: checkpoints of {family.name} in this layout have theirs inside")
        return None
    inside = {key: fqn for key in reader.shapes if is_in(fqn := family.rename(key) or "", VISION_TOWER)}
    name, shapes = settings.get(family.tower_key), {fqn: reader.shapes[key] for key, fqn in inside.items()}
    if not may_download and is_remote(name, given=vision_tower, checkpoint=folder, inside=shapes):
        return None
    tower = find_tower(name, given=vision_tower, checkpoint=folder, settings=settings, inside=shapes)
    if tower.folder is not None:
        reader.add(tower.folder, in_place_of=inside)
    return tower


def _images(
    family: Family,
    settings: JsonObject,
    paths: tuple[Path, ...],
    *,
    folder: Path,
    tower: Tower | None,
    config: LlavaConfig | None,
) -> Images | None:
    """Return how images are prepared, as ``find_images`` does."""
    if family is TEXT_ONLY:
        return NO_IMAGES
    check_pinpoints(settings)
    if family.tower_key is not None and tower is not None:
        paths = tuple(tower_folders(settings.text(family.tower_key), found=tower.described_in, checkpoint=folder))
    find = partial(find_images, settings, paths, default=family.image_aspect_ratio)
    vision = config.vision if config else None
    return find(image_size=vision.image_size, tower_type=vision.type) if vision else find(image_size=None)


def _empty_model(
    config: LlavaConfig,
    images: Images,
    *,
    max_context_len: int,
    logits_to_keep: int = 1,
    cached_attention: Callable[..., nn.Module] = CachedAttention,
) -> LlavaModel:
    """Return a model on the meta device."""
    with torch.device("meta"):
        model = LlavaModel(
            config,
            image_mean=images.mean,
            image_std=images.std,
            max_context_len=max_context_len,
            logits_to_keep=logits_to_keep,
            cached_attention=cached_attention,
        )
    return model.eval().requires_grad_(False)


def _check_fit(weights: Weights, config: LlavaConfig, images: Images) -> None:
    """Raise ``CheckpointError`` unless the weights are those of the config."""
    weights.check_depth()
    weights.check(_empty_model(config, images, max_context_len=1))


def _as_unicode(name: str) -> str:
    """Return a name as text. That of a folder may be no Unicode."""
    return name.encode("utf-8", "backslashreplace").decode()


def _changes(parts: Parts, reader: CheckpointReader, *, family: Family, config: LlavaConfig | None) -> Changes:
    """Return what adapter and projector change, and make ``reader`` read the weights that they replace."""
    changes = Changes(config.text if config else None)
    if parts.adapter is not None:
        changes.apply_adapter(Adapter.open(parts.adapter), to=reader, family=family)
    if parts.projector is not None:
        changes.apply_projector(parts.projector, to=reader, family=family)
    return changes


def _with_changed_vocabulary(config: LlavaConfig, changes: Changes) -> LlavaConfig:
    """Return a config with as many tokens as the embedding has rows, if an adapter brings its own.

    Raises ``ConfigError`` if an adapter changes an embedding that is also the head. ``peft`` trains one without the
    other, so that they are no longer the same.
    """
    ends = {EMBEDDING_WEIGHT, HEAD_WEIGHT}
    if config.text.tie_word_embeddings and ends & (changes.updates.keys() | changes.replaced.keys()):
        raise ConfigError(
            "the adapter changes the token embedding or the head, which are one weight in its base model "
            f"(tie_word_embeddings): {MERGE}"
        )
    shape = changes.replaced.get(EMBEDDING_WEIGHT) or changes.replaced.get(HEAD_WEIGHT)
    return replace(config, text=replace(config.text, vocab_size=shape[0])) if shape else config

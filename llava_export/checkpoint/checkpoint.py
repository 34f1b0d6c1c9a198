"""An opened checkpoint: everything that is known of it before any weight is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from llava_export.checkpoint.adapter import MERGE, Adapter, Changes
from llava_export.checkpoint.generation import GENERATION_CONFIG, generation_defaults, special_ids
from llava_export.checkpoint.images import Images, check_pinpoints, find_images, tower_folders
from llava_export.checkpoint.parts import Parts, file_in, find_parts
from llava_export.checkpoint.reader import CheckpointReader
from llava_export.checkpoint.tokenizer import CheckpointTokenizer, open_tokenizer
from llava_export.checkpoint.tower import find_tower
from llava_export.checkpoint.weights import EMBEDDING_WEIGHT, HEAD_WEIGHT, Weights
from llava_export.config import LlavaConfig
from llava_export.errors import ConfigError
from llava_export.families import Family, find_family
from llava_export.models.llama import CachedAttention
from llava_export.models.llava import LlavaModel
from llava_export.models.names import VISION_TOWER, is_in
from llava_runner.contract import GenerationDefaults


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose ``config.json``, keys and shapes were checked.

    ``name`` is what the user called it, and ``parts`` what they called parts of it, by the arguments of
    ``open_checkpoint``; ``source`` says in words what it is made of. ``notes`` are sentences for the user: what it is
    made of, and what was not taken as the files say it. Config and tokenizer are looked for in ``own_folders``: that of
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
        cached_attention: Callable[..., nn.Module] = CachedAttention,
    ) -> LlavaModel:
        """Return a model on the meta device: shapes, no weights. ``config`` replaces the checkpoint's own.

        ``max_context_len`` is in positions, and ``cached_attention`` the class of the decoder's attention.
        """
        with torch.device("meta"):
            model = LlavaModel(
                config or self.config,
                image_mean=self.images.mean,
                image_std=self.images.std,
                max_context_len=max_context_len,
                cached_attention=cached_attention,
            )
        return model.eval().requires_grad_(False)


def open_checkpoint(
    model: str, *, vision_tower: str | None = None, base_model: str | None = None, projector: str | None = None
) -> Checkpoint:
    """Return the checkpoint of a built-in name, folder or hub id, found and checked. No weights are read.

    ``model`` may be an adapter or only a projector: then ``base_model`` is the folder or hub id of the model that it
    belongs to, which most adapters name themselves. ``vision_tower`` is the folder or hub id of a vision tower to use
    in place of the checkpoint's own, and ``projector`` the file or folder of a projector. Raises ``ConfigError`` if the
    project cannot build such a model, and ``CheckpointError`` if files are missing, damaged, or do not fit
    ``config.json``.
    """
    given = {"base_model": base_model, "projector": projector, "vision_tower": vision_tower}
    parts = find_parts(model, base_model=base_model, projector=projector)
    settings, config_folder = parts.settings(vision_tower=vision_tower)
    family = find_family(settings)
    check_pinpoints(settings)
    reader = CheckpointReader(parts.base)
    paths = [*parts.folders]
    tower = None
    if family.tower_key is not None:
        is_inside = any(is_in(family.rename(key) or "", VISION_TOWER) for key in reader.shapes)
        name = settings.get(family.tower_key)
        tower = find_tower(name, given=vision_tower, checkpoint=config_folder, is_inside=is_inside)
        if tower.folder is not None:
            reader.add(tower.folder)
            paths.append(tower.folder)
    elif vision_tower is not None:
        raise ConfigError(f"--vision-tower: checkpoints of {family.name} in this layout have theirs inside")
    changes = _changes(parts, reader, family=family)
    config = family.parse_config(settings, tower.config if tower else None)
    config = _with_changed_vocabulary(config, changes)
    if family.check_keys is not None:
        family.check_keys(settings, reader.shapes)
    vocab_size = config.text.vocab_size
    tokenizer = open_tokenizer(parts.tokenizer_folder, vocab_size=vocab_size, chunks_are_texts=family.chunks_are_texts)
    generation = file_in(parts.folders, GENERATION_CONFIG)
    ids = special_ids(
        generation, bos_id=config.bos_id, eos_ids=config.eos_ids, tokenizer=tokenizer, vocab_size=vocab_size
    )
    config = replace(config, bos_id=ids.bos_id, eos_ids=ids.eos_ids)
    image_folders = paths
    if family.tower_key is not None and tower is not None:
        image_folders = tower_folders(settings.text(family.tower_key), found=tower.folder, checkpoint=config_folder)
    images = find_images(
        settings, image_folders, default=family.image_aspect_ratio, image_size=config.vision.image_size
    )
    weights = Weights(reader, family=family, config=config, updates=changes.updates)
    checkpoint = Checkpoint(
        name=_as_unicode(model),
        parts={name: _as_unicode(value) for name, value in given.items() if value is not None},
        source=_as_unicode("; ".join((model, *parts.notes()))),
        own_folders=parts.folders,
        paths=(*paths, parts.projector) if parts.projector else tuple(paths),
        notes=(*(f"{model}: {note}" for note in parts.notes()), *ids.notes),
        family=family,
        config=config,
        tokenizer=tokenizer,
        generation=generation_defaults(generation),
        images=images,
        weights=weights,
        reopen=partial(
            open_checkpoint,
            str(parts.model),
            vision_tower=vision_tower,
            base_model=None if parts.model == parts.base else str(parts.base),
            projector=None if projector is None else str(parts.projector),
        ),
    )
    weights.check_depth()
    weights.check(checkpoint.build_model(max_context_len=1))
    return checkpoint


def _as_unicode(name: str) -> str:
    """Return a name as text. That of a folder may be no Unicode."""
    return name.encode("utf-8", "backslashreplace").decode()


def _changes(parts: Parts, reader: CheckpointReader, *, family: Family) -> Changes:
    """Return what adapter and projector change, and make ``reader`` read the weights that they replace."""
    changes = Changes()
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

"""An opened checkpoint: everything that is known of it before any weight is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from llava_export.checkpoint.generation import generation_defaults, special_ids
from llava_export.checkpoint.images import Images, check_pinpoints, find_images, tower_folders
from llava_export.checkpoint.locate import locate
from llava_export.checkpoint.reader import CheckpointReader
from llava_export.checkpoint.tokenizer import CheckpointTokenizer, open_tokenizer
from llava_export.checkpoint.tower import find_tower
from llava_export.checkpoint.weights import Weights
from llava_export.config import LlavaConfig
from llava_export.errors import CheckpointError, ConfigError
from llava_export.families import Family, find_family
from llava_export.models.llama import CachedAttention
from llava_export.models.llava import LlavaModel
from llava_export.models.names import VISION_TOWER, is_in
from llava_runner.contract import GenerationDefaults
from llava_runner.documents import read_object


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose ``config.json``, keys and shapes were checked.

    ``name`` is what the user called it, and ``folder`` where it was found; ``folders`` are all that it is read from, a
    vision tower's among them. ``vision_tower`` is the folder or hub id that the user gave in place of the checkpoint's
    own vision tower, or None. ``generation`` says how the model's authors sample. ``notes`` says, in sentences for
    people, what was not taken as the files say it. ``images`` says how images are prepared. ``weights`` reads the
    tensors.
    """

    name: str
    vision_tower: str | None
    folders: tuple[Path, ...]
    family: Family
    config: LlavaConfig
    tokenizer: CheckpointTokenizer
    generation: GenerationDefaults
    notes: tuple[str, ...]
    images: Images
    weights: Weights

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint itself."""
        return self.folders[0]

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


def open_checkpoint(model: str, *, vision_tower: str | None = None) -> Checkpoint:
    """Return the checkpoint of a built-in name, folder or hub id, found and checked. No weights are read.

    ``vision_tower`` is the folder or hub id of a vision tower to use in place of the checkpoint's own. Raises
    ``ConfigError`` if the project cannot build such a model, and ``CheckpointError`` if files are missing, damaged, or
    do not fit ``config.json``.
    """
    folder = locate(model)
    folders = [folder]
    settings = read_object(folder / "config.json", error=CheckpointError).raising(ConfigError)
    family = find_family(settings)
    check_pinpoints(settings)
    reader = CheckpointReader(folder)
    tower = None
    if family.tower_key is not None:
        is_inside = any(is_in(family.rename(key) or "", VISION_TOWER) for key in reader.shapes)
        tower = find_tower(settings.get(family.tower_key), given=vision_tower, checkpoint=folder, is_inside=is_inside)
        if tower.folder is not None:
            reader.add(tower.folder)
            folders.append(tower.folder)
    elif vision_tower is not None:
        raise ConfigError(f"--vision-tower: checkpoints of {family.name} in this layout have theirs inside")
    config = family.parse_config(settings, tower.config if tower else None)
    if family.check_keys is not None:
        family.check_keys(settings, reader.shapes)
    vocab_size = config.text.vocab_size
    tokenizer = open_tokenizer(folder, vocab_size=vocab_size, chunks_are_texts=family.chunks_are_texts)
    ids = special_ids(folder, bos_id=config.bos_id, eos_ids=config.eos_ids, tokenizer=tokenizer, vocab_size=vocab_size)
    config = replace(config, bos_id=ids.bos_id, eos_ids=ids.eos_ids)
    image_folders = folders
    if family.tower_key is not None and tower is not None:
        image_folders = tower_folders(settings.text(family.tower_key), found=tower.folder, checkpoint=folder)
    images = find_images(
        settings, image_folders, default=family.image_aspect_ratio, image_size=config.vision.image_size
    )
    weights = Weights(reader, family=family, config=config)
    name = model.encode("utf-8", "backslashreplace").decode()  # the name of a folder may be no Unicode
    checkpoint = Checkpoint(
        name=name,
        vision_tower=vision_tower,
        folders=tuple(folders),
        family=family,
        config=config,
        tokenizer=tokenizer,
        generation=generation_defaults(folder),
        notes=ids.notes,
        images=images,
        weights=weights,
    )
    weights.check_depth()
    weights.check(checkpoint.build_model(max_context_len=1))
    return checkpoint

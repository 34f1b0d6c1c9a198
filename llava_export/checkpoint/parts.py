"""Finds the parts of a model: a whole checkpoint, or an adapter or projector and the model that it belongs to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llava_export.checkpoint.adapter import ADAPTER_CONFIG
from llava_export.checkpoint.locate import local_folder, locate
from llava_export.checkpoint.refusals import read_settings
from llava_export.checkpoint.weight_files import has_weights
from llava_export.errors import CheckpointError, ConfigError
from llava_export.families import FAMILIES, Family
from llava_export.families.language_models import LANGUAGE_MODELS
from llava_runner.documents import JsonObject, read_object

CONFIG = "config.json"
TOKENIZERS = ("tokenizer.model", "tokenizer.json")
PROJECTORS = ("mm_projector.bin", "mm_projector.safetensors")  # what LLaVA's pretraining writes
PROJECTOR_TYPE = "mlp2x_gelu"  # that LLaVA's training code names in the config


@dataclass(frozen=True)
class Parts:
    """The parts of a model.

    ``model`` is the folder that the user named, and ``base`` one with weights, mostly the same; ``base_name`` is what
    it is called. ``adapter`` is the folder of an adapter, and ``projector`` a file with a projector; both may be None.
    ``folders`` are those in which config and tokenizer are looked for, the base last.
    """

    model: Path
    base: Path
    base_name: str
    adapter: Path | None
    projector: Path | None
    folders: tuple[Path, ...]

    @property
    def tokenizer_folder(self) -> Path:
        """The folder with the tokenizer. The files of a tokenizer belong together, so they are not looked for alone."""
        has_one = (folder for folder in self.folders if any((folder / name).is_file() for name in TOKENIZERS))
        return next(has_one, self.folders[-1])

    def settings(self, *, vision_tower: str | None) -> tuple[JsonObject, Path]:
        """Return the ``config.json`` that describes the model, and its folder.

        The one beside an adapter or projector is taken, if it is in the layout of the base's weights. Raises
        ``CheckpointError`` if the base has none, and ``ConfigError`` if it does not say which vision tower there is.
        """
        base = read_settings(self.base)
        family = _family(base)
        for folder in self.folders[:-1]:
            if (folder / CONFIG).is_file():
                settings = read_settings(folder)
                if (found := _family(settings)) is not None and family in (None, found):
                    return settings, folder
        language_model = LANGUAGE_MODELS.get(str(base.get("model_type")))
        if family is None and self.projector is not None and language_model is not None:
            if vision_tower is None:
                raise ConfigError(
                    f"{self.base} is a language model without a vision tower, and there is no {CONFIG} beside "
                    f"{self.projector} that names one: give it with --vision-tower"
                )
            made = {
                **base,
                "model_type": language_model.llava_types[0],
                "mm_projector_type": PROJECTOR_TYPE,
                "mm_vision_tower": vision_tower,
            }
            return JsonObject(made, what=str(self.base / CONFIG), error=ConfigError), self.base
        return base, self.base

    def notes(self) -> list[str]:
        """Return what is put together, if there is more than one part."""
        notes = []
        if self.adapter is not None:
            notes.append(f"a LoRA merged into {self.base_name}")
        if self.projector is not None:
            is_all = self.projector.parent == self.model != self.base
            notes.append(f"a projector put into {self.base_name}" if is_all else f"with the projector {self.projector}")
        return notes


def file_in(folders: Iterable[Path], name: str) -> Path | None:
    """Return the file of this name in the first folder that has one, or None if none has."""
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def find_parts(model: str, *, base_model: str | None = None, projector: str | None = None) -> Parts:
    """Return the parts of a model. ``model`` is a built-in name, folder or hub id: of a checkpoint or a part of one.

    ``base_model`` is what an adapter or a projector belongs to, and ``projector`` a file or folder with a projector in
    place of the model's own. Raises ``CheckpointError`` for what is not found or does not go together.
    """
    folder = locate(model, files=(CONFIG, ADAPTER_CONFIG, *PROJECTORS))
    is_adapter, own_projector = (folder / ADAPTER_CONFIG).is_file(), _projector_in(folder)
    if has_weights(folder):
        if is_adapter:
            raise CheckpointError(f"{folder} has both an adapter and the weights of a whole model; keep one of them")
        own_projector = None
    beside: tuple[Path, ...] = ()
    if not is_adapter and own_projector is None:
        if base_model is not None:
            raise CheckpointError(f"--base-model {base_model}: {model} is neither an adapter nor a projector alone")
        base, base_name = folder, model
    else:
        base, base_name = _base_of(folder, base_model=base_model, is_adapter=is_adapter)
        beside = (folder,)
    if projector is not None:
        own_projector = _projector_file(projector)
        beside = tuple(dict.fromkeys((*beside, own_projector.parent)))
    return Parts(folder, base, base_name, folder if is_adapter else None, own_projector, (*beside, base))


def _base_of(folder: Path, *, base_model: str | None, is_adapter: bool) -> tuple[Path, str]:
    """Return the folder and name of the model that an adapter or projector belongs to. Raises ``CheckpointError``."""
    if base_model is not None:
        base, name = locate(base_model, flag="--base-model"), base_model
    elif not is_adapter:
        raise CheckpointError(f"{folder} has only a projector: name the language model it belongs to with --base-model")
    else:
        name = read_object(folder / ADAPTER_CONFIG, error=CheckpointError).text("base_model_name_or_path", "")
        if not name:
            raise CheckpointError(
                f"{folder} is an adapter that does not name its base model: give it with --base-model"
            )
        beside = local_folder(str(folder / name))
        try:
            base = locate(name if beside is None else str(beside.resolve()), flag="--base-model")
        except CheckpointError as error:
            raise CheckpointError(
                f"{folder} is an adapter of {name}, which was not found: give its folder with --base-model"
            ) from error
    if not has_weights(base):
        what = "itself an adapter" if (base / ADAPTER_CONFIG).is_file() else "no whole model: it has no weights"
        raise CheckpointError(f"{base}, the base model of {folder}, is {what}; --base-model takes a whole model")
    return base, name


def _projector_file(name: str) -> Path:
    """Return the file of a projector, given as file or folder. Raises ``CheckpointError``."""
    path = local_folder(name)
    if path is not None and path.is_dir():
        file = _projector_in(path)
        if file is None:
            raise CheckpointError(f"--projector {name} has no {' and no '.join(PROJECTORS)}")
        return file
    if path is None or path.suffix not in (".bin", ".safetensors"):
        raise CheckpointError(f"--projector {name} is no folder and no .bin or .safetensors file")
    return path


def _projector_in(folder: Path) -> Path | None:
    """Return the file of a projector in a folder, or None."""
    return next((folder / name for name in PROJECTORS if (folder / name).is_file()), None)


def _family(settings: JsonObject) -> Family | None:
    """Return the family of a ``config.json``, or None if it is none of this project's."""
    return next((family for family in FAMILIES if family.matches(settings)), None)

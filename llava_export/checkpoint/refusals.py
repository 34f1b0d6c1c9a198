"""Says why a checkpoint is refused where its files, config and keys show what it is, before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from llava_export.checkpoint.weight_files import find_weight_files, has_weights
from llava_export.errors import CheckpointError, ConfigError
from llava_runner.documents import JsonObject, read_object, shown

# A file of Git LFS that was not fetched: a text of about 130 bytes that names the content.
LFS_START = b"version https://git-lfs"
LFS_MAX_BYTES = 1024
MAX_METHOD = 40  # characters of the name of a way to quantize
MAX_NAMED = 4  # files in an error, before it counts the rest
# The files of a checkpoint that are read. Others may be pointers, or links to nothing.
DOCUMENTS = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.model",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
WEIGHTS = re.compile(r"(pytorch_)?model.*\.(safetensors|bin)(\.index\.json)?")
# Keys of tensors that quantized checkpoints have in place of a weight, or beside it.
QUANTIZED_KEYS = re.compile(
    r"(\.|^)(qweight|qzeros|g_idx|SCB|weight_format|weight_scale(_inv)?|weight_packed|weight_zero_point|_packed_params.*)$"
    r"|\.weight\.((nested_)?absmax|(nested_)?quant_map|quant_state\..*|SCB)$"
)
QUANTIZED_CONFIGS = ("quantization_config", "compression_config", "quantization")  # the last one is MLX's
# LLaVA-1.6 by other names in config.json.
TILED_TYPES = ("llava_next", "llava_next_video", "llava_onevision")


def read_settings(folder: Path) -> JsonObject:
    """Return a checkpoint's ``config.json``. Raises ``CheckpointError`` if it is damaged or empty."""
    path = folder / "config.json"
    if not path.stat().st_size or not (settings := read_object(path, error=CheckpointError)):
        raise CheckpointError(f"{path} is empty; copy the config.json of the model that the weights are of")
    return settings.raising(ConfigError)


def unreadable_files(folder: Path) -> dict[str, str]:
    """Return why files of a checkpoint have no content, by name: pointers of Git LFS, and links to nothing."""
    reasons: dict[str, str] = {}
    paths = [folder / name for name in DOCUMENTS] + _weight_paths(folder)
    for is_bad, what, remedy in (
        (_is_lfs_pointer, "pointers of Git LFS", "run git lfs pull there"),
        (
            _is_dangling,
            "links to nothing",
            "a download was cut off or cleared away; download the model once more",
        ),
    ):
        names = [path.name for path in paths if is_bad(path)]
        reasons |= dict.fromkeys(names, f"{folder} has {what} in place of {_named(names)}: {remedy}")
    return reasons


def _weight_paths(folder: Path) -> list[Path]:
    """Return the files of weights that are read, or all that may be if one of those is missing."""
    try:
        return find_weight_files(folder).paths
    except CheckpointError:
        return [path for path in sorted(folder.iterdir()) if WEIGHTS.fullmatch(path.name)]


def refuse_parts(folder: Path) -> None:
    """Raise ``CheckpointError`` if a folder has no weights of a whole model, but of something else that is known."""
    if has_weights(folder):
        return
    if what := known_part(folder):
        raise CheckpointError(f"{folder} {what}")


def without_config(folder: Path) -> str:
    """Return what a folder without a ``config.json`` is, and what to do."""
    if not has_weights(folder) and (what := known_part(folder)):
        return what
    if "config.json" in (reasons := unreadable_files(folder)):
        return f"has no config.json: {reasons['config.json']}"
    return "has no config.json; is it the folder of a checkpoint?"


def known_part(folder: Path) -> str | None:
    """Return what a folder without a whole checkpoint has in its place, and what to do; None if it is not known."""
    names = {path.name for path in folder.iterdir()}
    return next((what for has, what in PARTS if has(names)), None)


def _has(*needed: str) -> Callable[[set[str]], bool]:
    """Return a function that says whether one of ``needed`` is among names of files."""
    return lambda names: not names.isdisjoint(needed)


XTUNER_PARTS = ("llm", "llm_adapter", "visual_encoder", "visual_encoder_adapter", "projector")
XTUNER = (
    "is in xtuner's own layout; merge adapters with xtuner convert merge, and convert the result into the layout of "
    "llava-hf with xtuner's convert_xtuner_weights_to_hf.py"
)
# What a folder may be, by the names in it: the first that fits.
PARTS: tuple[tuple[Callable[[set[str]], bool], str], ...] = (
    (lambda names: len(names & set(XTUNER_PARTS)) > 1 or "xtuner_config.py" in names, XTUNER),
    (
        _has("adapter_model.safetensors", "adapter_model.bin", "non_lora_trainables.bin"),
        "has the weights of an adapter (LoRA) without its adapter_config.json",
    ),
    (
        _has("projector.bin", "projector.safetensors"),
        "has a projector alone; give the model that it belongs to, and its file with --projector",
    ),
    (
        lambda names: any(name.lower().endswith(".gguf") for name in names),
        "has GGUF files, which are exported already; give the checkpoint that they were made from",
    ),
    (
        _has("consolidated.00.pth", "consolidated.safetensors", "params.json"),
        "is in the layout of Meta or Mistral; convert it with transformers, so that it has a config.json",
    ),
    (
        lambda names: any(name.startswith("checkpoint-") for name in names),
        "has checkpoints of a training run in folders (checkpoint-...); give one of these",
    ),
)


def is_tiled(settings: Mapping[str, Any]) -> bool:
    """Return whether ``model_type`` is one of LLaVA-1.6 and its kin."""
    return settings.get("model_type") in TILED_TYPES


def quantization(settings: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """Return that a checkpoint is quantized, or None if it is not."""
    evidence = [
        f"{name} says {_method(section[name])}"
        for section in (settings, settings.get("text_config"))
        for name in QUANTIZED_CONFIGS
        if isinstance(section, Mapping) and section.get(name)
    ]
    remedy = "export the float model that it was made from"
    found = [key for key in keys if QUANTIZED_KEYS.search(key)]
    if found:
        more = f" and {len(found) - 1} more such" if len(found) > 1 else ""
        evidence.append(f"it has the weight {found[0]}{more}")
    elif evidence:
        remedy += ", or delete that entry if the weights are float after all"
    return f"the model is quantized already ({', '.join(dict.fromkeys(evidence))}): {remedy}" if evidence else None


def _method(config: Any) -> str:
    """Return what a ``quantization_config`` says: the method, and the bits where they are known."""
    if not isinstance(config, Mapping):
        return shown(config)
    is_bitsandbytes = any(str(name).startswith(("load_in_", "bnb_", "llm_int8")) for name in config)
    method = config.get("quant_method") or ("bitsandbytes" if is_bitsandbytes else None)
    bits = config.get("bits") or next((n for n in (4, 8) if config.get(f"load_in_{n}bit") is True), None)
    said = [str(method)[:MAX_METHOD]] if method else []
    return ", ".join(said + ([f"{shown(bits)} bits"] if bits else [])) or "no method"


def tiling(settings: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """Return that a checkpoint cuts images into tiles as LLaVA-1.6 does, or None if it does not."""
    evidence = [f"model_type {settings['model_type']}"] if is_tiled(settings) else []
    merge = settings.get("mm_patch_merge_type")
    if isinstance(merge, str) and merge.startswith("spatial"):
        evidence.append(f"mm_patch_merge_type {shown(merge)}")
    if newline := [key for key in keys if key.rpartition(".")[2] == "image_newline"]:
        evidence.append(f"the weight {newline[0]}")
    if not evidence:
        return None
    return (
        f"the model is LLaVA-1.6 or one of its kin, which cut an image into tiles ({', '.join(evidence)}); LLaVA-1.5 "
        "and MobileVLM are supported, which see it once"
    )


def _is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is a pointer of Git LFS in place of its content."""
    if not path.is_file() or path.stat().st_size > LFS_MAX_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_START)) == LFS_START


def _is_dangling(path: Path) -> bool:
    """Return whether a file is a link to nothing."""
    return path.is_symlink() and not path.exists()


def _named(names: list[str]) -> str:
    """Return the first names as text, and how many more there are."""
    more = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")

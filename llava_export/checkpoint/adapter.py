"""Reads adapters that ``peft`` wrote: what they change in the weights of the model that they were trained on.

The folder of an adapter has ``adapter_config.json`` and ``adapter_model.safetensors`` or ``.bin``. LLaVA's own training
code also writes ``non_lora_trainables.bin``: the weights that it trained without LoRA.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llava_export.checkpoint.fused import parts_of
from llava_export.checkpoint.lora import LoraUpdate
from llava_export.checkpoint.reader import FLOAT_DTYPES, CheckpointReader, open_shard
from llava_export.checkpoint.shards import LoadedShard, Shard
from llava_export.config import TextConfig
from llava_export.errors import CheckpointError, first_of
from llava_export.families import FAMILIES, Family
from llava_export.models.names import PROJECTOR, is_in
from llava_runner.documents import JsonObject, read_object, shown

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
OTHER_WEIGHTS = ("non_lora_trainables.bin", "non_lora_trainables.safetensors")
# Where the model that was trained stands in peft's.
PREFIXES = ("base_model.model.", "base_model.", "")
# A matrix or vector of LoRA, with the name of the adapter where it was not removed.
LORA_KEY = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(\.(?!weight$|bias$)\w+)?(\.weight)?"
)
# Within the key of a whole weight that was saved: the wrappers of peft.
WRAPPERS = re.compile(r"\.base_layer(?=\.)|\.modules_to_save(\.default)?(?=\.)")
# Options that change more than a product of two matrices that is added. Newer ones are noticed by their form.
UNSUPPORTED = (
    "alora_invocation_tokens", "layer_replication", "lora_bias", "target_parameters", "trainable_token_indices"
)  # fmt: skip
SUPPORTED = ("use_rslora", "use_dora")
OF_TRAINING = ("eva_config", "corda_config", "lora_ga_config", "loftq_config", "runtime_config", "megatron_config")
OPTION = re.compile(r"use_\w+|\w+_config")
# The ways to begin a training that leave the model's own weights as they are.
UNCHANGED_BY_INIT = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
# Patterns of modules are compared only if they cannot take long: short, with few parts that are repeated.
MAX_NAME_LENGTH = 300
MAX_REPEATS = 5
REPEATED = re.compile(r"[*+{]")
REPEATED_GROUP = re.compile(r"\)[*+{]")
MERGE = "merge the adapter with peft's merge_and_unload, save the result, and export that"


@dataclass(frozen=True)
class Adapter:
    """An opened adapter: its config, which can be merged, and its files."""

    folder: Path
    config: JsonObject
    weights: Path
    others: Path | None

    @classmethod
    def open(cls, folder: Path) -> Adapter:
        """Read the config of an adapter. Raises ``CheckpointError`` for one that is not LoRA, or of an unknown kind."""
        config = read_object(folder / ADAPTER_CONFIG, error=CheckpointError)
        _check_kind(config)
        weights = _first_file(folder, ADAPTER_WEIGHTS)
        if weights is None:
            raise CheckpointError(f"{folder} has {ADAPTER_CONFIG}, but neither {' nor '.join(ADAPTER_WEIGHTS)}")
        return cls(folder, config, weights, _first_file(folder, OTHER_WEIGHTS))

    def scale(self, module: str, *, rank: int) -> float:
        """Return what the product of a module's matrices is multiplied with. Raises ``CheckpointError``."""
        said = _by_pattern(self.config, "rank_pattern", module)
        said = self.config.integer("r", least=1) if said is None else said
        if said != rank:
            raise CheckpointError(
                f"{self.config.where()} gives {module} the rank {said:g}, and its matrices have the rank {rank}"
            )
        alpha = _by_pattern(self.config, "alpha_pattern", module)
        alpha = self.config.number("lora_alpha", 8.0) if alpha is None else alpha
        return alpha / (math.sqrt(rank) if self.config.flag("use_rslora", False) else rank)


@dataclass
class Changes:
    """What is changed in a checkpoint, by the model's names.

    ``text`` has the decoder's sizes; None if they are not known: then an adapter of fused linears is not understood.
    ``updates`` are changes of weights, and ``replaced`` has the shapes of those that are read from another file.
    """

    text: TextConfig | None = None
    updates: dict[str, LoraUpdate] = field(default_factory=dict)
    replaced: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def apply_adapter(self, adapter: Adapter, *, to: CheckpointReader, family: Family) -> None:
        """Add an adapter's changes. Raises ``CheckpointError``, which names all that does not fit the checkpoint."""
        shard = _open_floats(adapter.weights)
        matches = {key: LORA_KEY.fullmatch(key) for key in shard.shapes}
        parts: dict[str, dict[str, str]] = {}
        for key, match in matches.items():
            if match:
                of_module = parts.setdefault(match["module"], {})
                if match["part"] in of_module:
                    raise CheckpointError(f"{adapter.weights} has {of_module[match['part']]} twice, as {key} too")
                of_module[match["part"]] = key
        whole = {adapter.weights: [key for key, match in matches.items() if not match]}
        if not shard.shapes and adapter.others is None:
            raise CheckpointError(f"{adapter.weights} has no weights")
        if adapter.others is not None:
            whole[adapter.others] = list(_open_floats(adapter.others).shapes)
        names = _Names(to, family)
        unknown = [
            key for path, keys in whole.items() for key in names.replace(path, keys=keys, replaced=self.replaced)
        ]
        misfits = []
        for module, keys in parts.items():
            weights = names.weights(f"{module}.weight", text=self.text)
            if not weights:
                unknown += keys.values()
                continue
            if twice := sorted(weights.keys() & self.updates.keys()):
                raise CheckpointError(
                    f"{adapter.weights} has the matrices of {twice[0]} twice, as those of {module} too"
                )
            update = _update(shard, keys, adapter=adapter, module=module)
            shape = to.shapes[names.keys[next(iter(weights))]]
            if is_fused := len(weights) > 1:
                shape = (sum(weights.values()), *shape[1:])
            if shapes := update.misfit(shape):
                misfits.append(f"{module} has {shapes}")
            else:
                self.updates |= update.of_parts(weights) if is_fused else dict.fromkeys(weights, update)
        problems = [f"{len(unknown)} of its keys match no parameter ({first_of(unknown)})"] if unknown else []
        problems += [f"matrices do not fit: {first_of(misfits)}"] if misfits else []
        if problems:
            raise CheckpointError(f"the adapter {adapter.folder} does not fit {to.folder}: {'; '.join(problems)}")

    def apply_projector(self, path: Path, *, to: CheckpointReader, family: Family) -> None:
        """Take a projector from a file of its own, in place of what an adapter changes. Raises ``CheckpointError``."""
        keys, replaced = list(_open_floats(path).shapes), dict[str, tuple[int, ...]]()
        unknown = _Names(to, family).replace(path, keys=keys, replaced=replaced)
        self.updates = {fqn: update for fqn, update in self.updates.items() if fqn not in replaced}
        self.replaced |= replaced
        if unknown:
            raise CheckpointError(
                f"{len(unknown)} keys of {path} are no part of a projector that fits {to.folder} ({first_of(unknown)})"
            )


class _Names:
    """The model's names for the keys of other files, and the checkpoint's keys for the same weights.

    Other files may have the layout of another family: a name of the model means the same in all of them.
    """

    def __init__(self, reader: CheckpointReader, family: Family) -> None:
        self._reader = reader
        self._families = (family, *(other for other in FAMILIES if other is not family))
        self.keys = {fqn: key for key in reader.shapes if (fqn := family.rename(key)) is not None}

    def known(self, key: str) -> str | None:
        """Return the name of a weight that the checkpoint has, or None."""
        return next((fqn for fqn, _ in self._names(key) if fqn in self.keys), None)

    def weights(self, key: str, *, text: TextConfig | None) -> dict[str, int]:
        """Return the name of a weight that the checkpoint has; or the parts of a fused one, with their rows."""
        if (fqn := self.known(key)) is not None:
            return {fqn: 0}
        fused = (parts_of(name, text) for name, _ in self._names(key)) if text is not None else ()
        return next((parts for parts in fused if parts and parts.keys() <= self.keys.keys()), {})

    def replace(self, path: Path, *, keys: Iterable[str], replaced: dict[str, tuple[int, ...]]) -> list[str]:
        """Read tensors from another file. Return the keys that name no weight of the model."""
        found: dict[str, str] = {}
        unknown = []
        for key in keys:
            fqn = self._weight(WRAPPERS.sub("", key))
            if fqn is None:
                unknown.append(key)
            elif fqn and fqn in found:
                raise CheckpointError(f"{path} has one weight twice: as {found[fqn]} and as {key}")
            elif fqn:
                found[fqn] = key
        self._reader.replace(path, {key: self.keys[fqn] for fqn, key in found.items()})
        replaced |= {fqn: self._reader.shapes[self.keys[fqn]] for fqn in found}
        return unknown

    def _weight(self, key: str) -> str | None:
        """Return the name of a whole weight, None if the model has none of the kind, or "" if no model uses it.

        The checkpoint may lack a projector's: a language model has none.
        """
        fqn = self.known(key)
        if fqn is not None:
            return fqn
        for fqn, own in self._names(key):
            if own and is_in(fqn, PROJECTOR):
                self.keys[fqn] = own
                return fqn
            if any(family.is_unused(fqn) for family in self._families):
                return ""
        return None

    def _names(self, key: str) -> Iterable[tuple[str, str | None]]:
        """Yield what a key may mean: names of the model, each with the key in the checkpoint's own layout, if any."""
        for prefix in PREFIXES:
            if not key.startswith(prefix):
                continue
            for bare in (key.removeprefix(prefix), f"model.{key.removeprefix(prefix)}"):
                for family in self._families:
                    if (fqn := family.rename(bare)) is not None:
                        yield fqn, bare if family is self._families[0] else None


def _update(shard: Shard | LoadedShard, keys: Mapping[str, str], *, adapter: Adapter, module: str) -> LoraUpdate:
    """Return what is changed in a module's weight. ``keys`` are the keys of its parts. Raises ``CheckpointError``."""
    is_embedding = any(part.startswith("lora_embedding") for part in keys)
    a, b = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A", "lora_B")
    magnitude = keys.get("lora_magnitude_vector")
    is_dora = adapter.config.flag("use_dora", False)
    wanted = {a, b} | ({"lora_magnitude_vector"} if is_dora else set())
    if keys.keys() != wanted:
        missing, odd = sorted(wanted - keys.keys()), sorted(keys.keys() - wanted)
        problems = [f"{', '.join(it)} {what}" for it, what in ((missing, "is missing"), (odd, "is odd")) if it]
        raise CheckpointError(f"{module} in {adapter.weights} has {', '.join(sorted(keys))}: {'; '.join(problems)}")
    if is_embedding and is_dora:
        raise CheckpointError(
            f"{module} in {adapter.weights} has DoRA of an embedding, which is not supported: {MERGE}"
        )
    shape = shard.shapes[keys[a]]
    if len(shape) < 2 or 0 in shape:
        raise CheckpointError(f"{keys[a]} in {adapter.weights} is {list(shape)}: it was not saved as a whole")
    name = next(module.removeprefix(prefix) for prefix in PREFIXES if module.startswith(prefix))
    scale = adapter.scale(name, rank=shape[0])
    return LoraUpdate(shard, keys[a], keys[b], scale, magnitude=magnitude, is_embedding=is_embedding)


def _check_kind(config: JsonObject) -> None:
    """Raise ``CheckpointError`` unless the config is of an adapter that can be merged here."""
    kind = config.text("peft_type", "LORA")
    if kind != "LORA":
        raise CheckpointError(f"{config.where()} has peft_type {shown(kind)}; only LORA can be merged here: {MERGE}")
    options = [
        name
        for name, value in config.items()
        if value and name not in SUPPORTED + OF_TRAINING and (name in UNSUPPORTED or OPTION.fullmatch(name))
    ]
    if options:
        raise CheckpointError(f"{config.where()} has {', '.join(sorted(options))}, which is not supported: {MERGE}")
    init = config.get("init_lora_weights")
    if not any(init is known or init == known for known in UNCHANGED_BY_INIT):
        raise CheckpointError(
            f"{config.where()} has init_lora_weights {shown(init)}, with which training begins from changed weights of "
            f"the base model: {MERGE}"
        )


def _by_pattern(config: JsonObject, name: str, module: str) -> int | float | None:
    """Return the number that a ``rank_pattern`` or ``alpha_pattern`` gives a module, or None."""
    patterns = config.section(name, {})
    for pattern in patterns:
        # Others could take for ever to compare.
        if max(len(pattern), len(module)) > MAX_NAME_LENGTH or len(REPEATED.findall(pattern)) > MAX_REPEATS:
            raise CheckpointError(f"{patterns.where()}: {shown(pattern)} is too long or repeats too much")
        if REPEATED_GROUP.search(pattern):
            raise CheckpointError(f"{patterns.where()}: {shown(pattern)} repeats a group, which is not supported")
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise CheckpointError(f"{patterns.where()}: {shown(pattern)} is no pattern: {error}") from error
        if matches:
            return patterns.number(pattern)
    return None


def _open_floats(path: Path) -> Shard | LoadedShard:
    """Open a file of weights. Raises ``CheckpointError`` if one of them is not of a float type."""
    shard = open_shard(path)
    for key, dtype in shard.dtypes.items():
        if dtype not in FLOAT_DTYPES.values():
            raise CheckpointError(f"{key} in {path} is {dtype}; only float16, bfloat16 and float32 can be read")
    return shard


def _first_file(folder: Path, names: Iterable[str]) -> Path | None:
    """Return the first file of these names in a folder, or None."""
    return next((folder / name for name in names if (folder / name).is_file()), None)

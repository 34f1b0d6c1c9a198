"""Every parser of the Python part that reads what others wrote, with inputs that it takes."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from llava_export.builtin import CHECKPOINTS
from llava_export.checkpoint import locate
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.images import find_images
from llava_export.checkpoint.pieces import sentencepiece_model
from llava_export.checkpoint.prompt import find_prompt
from llava_export.checkpoint.reader import CheckpointReader
from llava_export.checkpoint.tokenizer import open_tokenizer
from llava_export.errors import CheckpointError, ConfigError
from llava_export.pte.golden import GoldenRecord
from llava_export.pte.package.tokenizer import write_tokenizer
from llava_export.pte.read.describe import card_of, linear_names, to_dict
from llava_export.pte.read.program import read_pte
from llava_export.pte.verify import changed_files, read_manifest
from llava_runner.contract import MAX_VOCAB, FileRecord, Manifest, ModelCard, signatures
from llava_runner.documents import JsonObject
from llava_runner.tokenizer import TextStream, schema
from llava_runner.tokenizer_file import load_tokenizer
from tests.fuzz import adapters, byte_level, datasets, gguf_files, samples, token_ids
from tests.fuzz.card import CARD
from tests.fuzz.mutations import mutated_bytes, mutated_document, mutated_json

SEEDS = Path(__file__).parent / "seeds"
TINY, MOBILE = CHECKPOINTS["tiny-llava"], CHECKPOINTS["tiny-mobilevlm"]
TOKENIZER_SETTINGS = {
    **json.loads((TINY / "tokenizer_config.json").read_text()),
    "added_tokens_decoder": {"560": {"content": "[A]", "lstrip": True, "rstrip": False, "special": False}},
}
Mutate = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """A parser: ``read`` takes the path of an input in a folder of its own, which ``prepare`` has filled.

    ``name`` is the file's name there. ``seeds`` are inputs that the parser takes, and ``mutate`` damages one.
    """

    name: str
    seeds: Sequence[bytes]
    read: Callable[[Path], Any]
    mutate: Mutate = mutated_document
    prepare: Callable[[Path], None] = lambda folder: None


def cut_off_network() -> None:
    """Make every download of a checkpoint fail, in this process and those that it forks."""

    def fail(model: str, *, flag: str) -> Path:
        raise CheckpointError(f"{model} cannot be downloaded")

    locate._download = fail


def links_to(checkpoint: Path, *left_out: str) -> Callable[[Path], None]:
    """Return a function that fills a folder with links to a checkpoint's files, without some."""

    def prepare(folder: Path) -> None:
        for file in checkpoint.iterdir():
            if file.name not in left_out:
                (folder / file.name).symlink_to(file)

    return prepare


def read_all(path: Path) -> None:
    """Open a checkpoint's weights, and read every tensor whose type is known."""
    reader = CheckpointReader(path.parent)
    for key in reader.shapes:
        reader.dtype(key)
        reader.prefetch(key)
        reader.read(key).aminmax()


def use_tokenizer(path: Path) -> None:
    """Open a tokenizer, and use it."""
    tokenizer = load_tokenizer(path)
    stream = TextStream(tokenizer)
    for token_id in tokenizer.encode(" Hello <s>wörld \n🙂"):
        stream.push(token_id)
    for token_id in range(min(tokenizer.vocab_size, 50)):
        tokenizer.decode_piece(token_id)
    stream.flush()


def package_tokenizer(path: Path) -> None:
    """Make both files of a package's tokenizer."""
    out = path.parent / "out"
    out.mkdir(exist_ok=True)
    write_tokenizer(open_tokenizer(path.parent, vocab_size=MAX_VOCAB, chunks_are_texts=False), out)


def inspect(path: Path) -> None:
    """Read all that is in a program."""
    found = read_pte(path)
    card = card_of(found)
    json.dumps(to_dict(path, found, card, linear_names(found, card)))


def verify_files(path: Path) -> None:
    """Read a manifest, and compare the files of its package."""
    program = path.with_suffix(".pte")
    changed_files(program, read_manifest(program))


def tensors() -> dict[str, torch.Tensor]:
    """Return tensors as checkpoints have them."""
    base = torch.arange(24.0).reshape(4, 6)
    return {"a.weight": base.half(), "b.bias": base[0].bfloat16(), "c": base, "d": base.t(), "e": torch.ones(())}


def torch_bytes(value: Any, **options: Any) -> bytes:
    """Return what ``torch.save`` writes."""
    content = io.BytesIO()
    torch.save(value, content, **options)
    return content.getvalue()


def torch_files() -> list[bytes]:
    """Return files of ``torch.save``, with tensors of kinds that no checkpoint has, too."""
    odd = {
        "sparse": torch.eye(3).to_sparse(), "meta": torch.empty(3, device="meta"), 7: torch.ones(2),
        "rows": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "complex": torch.ones(2, dtype=torch.complex64).conj(), "large": torch.zeros(1).expand(10**6, 10**6),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }  # fmt: skip
    return [torch_bytes(tensors()), *(torch_bytes({"a": torch.ones(2), key: odd[key]}) for key in odd)]


def mutated_zip(content: bytes, generator: random.Random) -> bytes:
    """Return a zip archive damaged in one of its records, in its entries, or in its bytes."""
    if generator.random() < 0.3:
        return mutated_bytes(content, generator)
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(written, "w") as other:
        chosen = generator.choice([*archive.namelist(), "archive/data.pkl"])
        for name in archive.namelist():
            record = archive.read(name)
            if name == chosen:
                if generator.random() < 0.05:
                    continue
                record = b"big" if name.endswith("byteorder") else mutated_bytes(record, generator)
            other.writestr(name, record, generator.choice((0, 0, 0, 0, 0, 0, 0, 0, zipfile.ZIP_DEFLATED)))
    return written.getvalue()


def mutated_safetensors(content: bytes, generator: random.Random) -> bytes:
    """Return a safetensors file damaged in its header, as JSON or as bytes, or elsewhere."""
    if generator.random() < 0.3:
        return mutated_bytes(content, generator)
    length = int.from_bytes(content[:8], "little")
    header = mutated_document(content[8 : 8 + length], generator)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def mutated_model(content: bytes, generator: random.Random) -> bytes:
    """Return a SentencePiece model with odd pieces or settings, or damaged bytes."""
    if generator.random() < 0.4:
        return mutated_bytes(content, generator)
    model = schema.ModelProto.FromString(content)
    for _ in range(generator.randrange(1, 4)):
        piece = generator.choice(model.pieces)
        kind = generator.randrange(7)
        if kind == 0:
            piece.type = generator.randrange(1, 7)
        elif kind == 1:
            piece.score = generator.choice((0.0, -0.0, 1.0, -1e30, 1e38, float("nan"), float("inf"), 0.5))
        elif kind == 2:
            piece.piece = generator.choice(("", " ", "\u2581", "x" * 3000, "<unk>", "<0x41>", "<0xZZ>", "é", "\x00"))
        elif kind == 3:
            setattr(model.trainer_spec, generator.choice(("unk_id", "bos_id", "eos_id", "pad_id", "vocab_size")), -1)
        elif kind == 4:
            flags = ("add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces")
            setattr(model.normalizer_spec, generator.choice(flags), generator.random() < 0.5)
        elif kind == 5:
            model.trainer_spec.model_type = generator.randrange(1, 5)
            model.normalizer_spec.precompiled_charsmap = generator.randbytes(generator.choice((0, 3, 8, 500)))
        else:
            model.pieces.add(piece=f"<added{generator.randrange(9)}>", score=generator.choice((0, -5)), type=4)
    return model.SerializeToString()


def small_tokenizer() -> dict[str, Any]:
    """Return a ``tokenizer.json`` of Llama's kind, with a vocabulary of a few letters."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a", "b", "ab", "\u2581a", "é"]
    special = ({"id": i, "content": texts[i], "special": True, "normalized": False} for i in range(3))
    return {
        "added_tokens": list(special),
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend"}, {"type": "Replace"}]},
        "pre_tokenizer": None,
        "model": {
            "type": "BPE", "byte_fallback": True, "unk_token": "<unk>",
            "vocab": {text: i for i, text in enumerate(texts)},
            "merges": ["a b", ["\u2581", "a"]],
        },
    }  # fmt: skip


def golden_record() -> bytes:
    """Return a golden record of the model that ``CARD`` describes."""
    ids = {"ids_before": torch.tensor([1, 2]), "ids_after": torch.tensor([3]), "tokens": torch.tensor([5, 6])}
    rows = {"features": torch.ones(4, 8).half(), "logits": torch.ones(2, 20)}
    image = torch.zeros(3, 5, 6, dtype=torch.uint8)
    return GoldenRecord(image=image, prompt="<image>", agreed="", **ids, **rows).to_bytes()


def manifest() -> bytes:
    """Return a manifest of a package with two files."""
    files = {name: FileRecord(3, hashlib.sha256(b"abc").hexdigest()) for name in ("llava.pte", "llava.golden")}
    return Manifest("llava.pte", signatures(CARD), CARD, {"python": "3.11"}, files, "0" * 64).to_json().encode()


def small_package(folder: Path) -> None:
    """Write the files that ``manifest`` names."""
    for name in ("llava.pte", "llava.golden"):
        (folder / name).write_bytes(b"abc")


def targets(scratch: Path) -> dict[str, Target]:
    """Return all targets by name. ``scratch`` is an empty folder for files that making the inputs takes."""
    model = (TINY / "tokenizer.model").read_bytes()
    shutil.copy(TINY / "tokenizer.model", scratch)
    package_tokenizer(scratch / "tokenizer.model")
    binary = (scratch / "out" / "tokenizer.bin").read_bytes()
    index = {"metadata": {}, "weight_map": {key: "model.safetensors" for key in ("a", "b")}}
    statistics = {"size": 56, "crop_size": 56, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    legacy = torch_bytes(tensors(), _use_new_zipfile_serialization=False)
    config, mobile = (folder / "config.json" for folder in (TINY, MOBILE))
    own = {"model_type": "llava", "text_config": {}, "vision_config": {}}

    documents = {
        "tokenizer.json": (TINY / "tokenizer.json").read_bytes(),
        "tokenizer_config.json": json.dumps(TOKENIZER_SETTINGS).encode(),
        "added_tokens.json": json.dumps({"[A]": 560, "[B]": 561}).encode(),
        "generation_config.json": json.dumps({"eos_token_id": [2, 3], "do_sample": True, "top_p": 0.5}).encode(),
        "chat_template.json": json.dumps({"chat_template": (TINY / "chat_template.jinja").read_text()}).encode(),
    }

    def open_model(path: Path) -> None:
        find_prompt(open_checkpoint(str(path.parent)))

    def one_shard(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(save({"a": torch.ones(2), "b": torch.ones(3)}))

    def read_tokenizer(path: Path) -> None:
        sentencepiece_model(path.parent)

    def read_golden(path: Path) -> None:
        GoldenRecord.load(path).check(CARD)

    def read_card(path: Path) -> None:
        signatures(ModelCard.from_json(path.read_bytes().decode("utf-8", "replace")))

    def read_statistics(path: Path) -> None:
        find_images(JsonObject({}, what="", error=ConfigError), [path.parent], default="pad", image_size=56)

    def read_index(path: Path) -> None:
        CheckpointReader(path.parent)

    return {
        "config": Target(
            "config.json",
            [config.read_bytes(), json.dumps(own).encode()],
            open_model,
            prepare=links_to(TINY, config.name),
        ),
        "original config": Target(
            "config.json", [mobile.read_bytes()], open_model, prepare=links_to(MOBILE, mobile.name)
        ),
        **{
            f"checkpoint's {name}": Target(
                name, [content], open_model, prepare=links_to(TINY, name, "chat_template.jinja")
            )
            for name, content in documents.items()
        },
        "adapter's config": Target(
            adapters.CONFIG_NAME, [adapters.CONFIG], adapters.merge, prepare=adapters.add_weights
        ),
        "adapter": Target(
            adapters.WEIGHTS_NAME, [adapters.WEIGHTS], adapters.merge, mutated_safetensors, prepare=adapters.add_config
        ),
        "image processor": Target("preprocessor_config.json", [json.dumps(statistics).encode()], read_statistics),
        "index": Target("model.safetensors.index.json", [json.dumps(index).encode()], read_index, prepare=one_shard),
        "safetensors": Target(
            "model.safetensors",
            [save({key: it.contiguous() for key, it in tensors().items()})],
            read_all,
            mutated_safetensors,
        ),
        "torch file": Target("pytorch_model.bin", torch_files(), read_all, mutated_zip),
        "old torch file": Target("pytorch_model.bin", [legacy, pickle.dumps({"a": 1})], read_all, mutated_bytes),
        "tokenizer.json": Target("tokenizer.json", [json.dumps(small_tokenizer()).encode()], read_tokenizer),
        "byte-level tokenizer.json": Target("tokenizer.json", [byte_level.SEED], byte_level.read),
        "runner's tokenizer.json": Target("tokenizer.json", [byte_level.SEED], use_tokenizer),
        "tokenizer.model": Target("tokenizer.model", [model], package_tokenizer, mutated_model),
        "runner's tokenizer.model": Target("tokenizer.model", [model], use_tokenizer, mutated_model),
        "tokenizer.bin": Target("tokenizer.bin", [binary], use_tokenizer, mutated_bytes),
        "token ids": Target("corpus.npy", token_ids.IDS, token_ids.read, mutated_bytes),
        "samples": Target("samples.jsonl", samples.LINES, samples.read, prepare=samples.prepare),
        "data set": Target(datasets.NAME, datasets.SEEDS, datasets.read, prepare=datasets.draw),
        "results": Target("results.jsonl", datasets.RESULTS, datasets.read_records, datasets.mutated_line),
        "manifest": Target("llava.json", [manifest()], verify_files, prepare=small_package),
        "model card": Target("card.json", [json.dumps(asdict(CARD)).encode()], read_card, mutated_json),
        "golden record": Target("llava.golden", [golden_record()], read_golden, mutated_safetensors),
        "program": Target(
            "llava.pte", [p.read_bytes() for p in sorted(SEEDS.glob("*.program"))], inspect, mutated_bytes
        ),
        "GGUF": Target("x.gguf", [gguf_files.small(scratch)], gguf_files.read, mutated_bytes),
    }

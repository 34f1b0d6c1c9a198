"""Compares llama.cpp on our GGUF files with the float model: features of images, and answers about scenes.

llama-cpp-python 0.3.36 computes other features than the model. Its llama.cpp appends the class token after the patches,
but then drops the first row as if the class token were there. So each patch gets the position embedding of the patch
before it, the first patch is lost, and the class token takes the place of the last patch. The float model is therefore
asked twice: as it is, and with the class token put there.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from llava_export.benchmark.llama_cpp import LlamaCpp
from llava_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from llava_export.cli.terminal import new_console, plain_table, silence_libraries
from llava_export.models.llava import VisionEncoder
from llava_export.reference import FloatModel
from llava_runner.arguments import ArgumentParser, run_command
from llava_runner.chat_tokenizer import ChatTokenizer
from llava_runner.errors import UserError
from llava_runner.image import prepare_image
from llava_runner.model import greedy
from llava_runner.prompt import chunk_text, prompt_chunks
from llava_runner.tokenizer import TextStream
from training import questions

MAX_NEW_TOKENS = 40
CONTEXT = 1024
FLOAT, CLASS_TOKEN_LAST = "float", "float, class token last"
DESCRIPTION = """Compare llama.cpp on our GGUF files with the float model.

The table has the cosine of the image features, and how many questions about
scenes each of them answers right. llama-cpp-python must be installed.

llama.cpp puts the class token after the patches, but reads the features as if
it were before them. The float model is asked a second time with that change.
"""
EPILOG = """example:
  llava gguf --model tiny-llava --output-dir gguf
  python -m benchmarks.ask_llama_cpp gguf --model tiny-llava --scenes 50
"""


def main() -> NoReturn:
    """Run the command and exit."""
    parser = ArgumentParser(prog="python -m benchmarks.ask_llama_cpp", description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="folder with one ggml-model-*.gguf and one mmproj-model-*.gguf")
    add("--model", required=True, help="the checkpoint that the files were made from")
    add(
        "--scenes",
        type=int,
        default=50,
        metavar="N",
        help="how many to ask about; 0 compares the features of random pixels alone (default: %(default)s)",
    )
    run_command(parser, run, None)


@torch.no_grad()
def run(arguments: argparse.Namespace) -> None:
    """Ask llama.cpp and the float model, and print the table. Raises a ``UserError`` for the user's mistakes."""
    silence_libraries()
    text, mmproj = (only_file(arguments.folder, f"{kind}-model-*.gguf") for kind in ("ggml", "mmproj"))
    llama = LlamaCpp(text, mmproj, n_ctx=CONTEXT)
    checkpoint = open_checkpoint(arguments.model)
    model = checkpoint.build_model(max_context_len=CONTEXT)
    part = "" if arguments.scenes else "vision_encoder"
    checkpoint.weights.fill(model.get_submodule(part), prefix=part)
    side = checkpoint.images.size

    cosines: dict[str, list[float]] = {FLOAT: [], CLASS_TOKEN_LAST: []}

    def compare(image: np.ndarray) -> dict[str, Tensor]:
        """Record the cosines with llama.cpp's features of an image, and return the float model's."""
        found, features = image_features(llama, image), float_features(model.vision_encoder, image)
        for name, expected in features.items():
            cosines[name].append(float(torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0)))
        return features

    compare(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
    right = dict.fromkeys(("llama.cpp", *cosines), 0)
    tokenizer = checkpoint.tokenizer.chat_tokenizer(bos_id=checkpoint.config.bos_id)
    for i in range(arguments.scenes):
        drawn, question, expected_answer = questions.question_for(questions.HELD_OUT_SEED + i)
        mean = checkpoint.images.mean
        fitted = prepare_image(drawn, image_size=side, image_mean=mean, image_aspect_ratio="pad")
        image = squared(fitted, side=side, mean=mean)
        chunks = prompt_chunks(question, template=checkpoint.family.prompt.template, num_images=1)
        before, after = tokenizer.encode_turn(chunks)
        first, last = map(chunk_text, chunks)
        right["llama.cpp"] += llama_answer(llama, first, image, last) == expected_answer
        for name, rows in compare(image).items():
            said = float_answer(FloatModel(model), before, rows, after, tokenizer=tokenizer, checkpoint=checkpoint)
            right[name] += said == expected_answer

    console = new_console()
    console.print(f"llama-cpp-python {version('llama-cpp-python')}, {text.name}, {mmproj.name}")
    columns = ("cosine of features with llama.cpp's", "right answers")
    table = plain_table("", *columns, right=columns)
    for name, count in right.items():
        cosine = f"{np.mean(cosines[name]):.5f}" if name in cosines else ""
        table.add_row(name, cosine, f"{count} / {arguments.scenes}" if arguments.scenes else "")
    console.print(table)


def only_file(folder: Path, pattern: str) -> Path:
    """Return the one file of a folder that has such a name. Raises ``UserError`` if there is none or more."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise UserError(f"{folder} has {len(found)} files like {pattern}: it must have one")
    return found[0]


def image_features(llama: LlamaCpp, image: np.ndarray) -> Tensor:
    """Return llama.cpp's features ``float32 [num_image_tokens, hidden_size]`` of an image ``uint8 [side, side, 3]``."""
    chunk, features = llama.encode(image)
    shape = (llama.mtmd.mtmd_input_chunk_get_n_tokens(chunk), llama.llama.n_embd())
    return torch.tensor(np.ctypeslib.as_array(features, shape))


def float_features(encoder: VisionEncoder, image: np.ndarray) -> dict[str, Tensor]:
    """Return both kinds of the float model's features ``[1, num_image_tokens, hidden_size]`` by name."""
    pixels = encoder.pixel_values(torch.from_numpy(image.copy()).permute(2, 0, 1))
    return {
        FLOAT: encoder.projector(encoder.vision_tower(pixels)),
        CLASS_TOKEN_LAST: with_class_token_last(encoder, pixels),
    }


def with_class_token_last(encoder: VisionEncoder, pixel_values: Tensor) -> Tensor:
    """Return the features as this llama.cpp computes them, with the class token after the patches."""
    tower = encoder.vision_tower
    embeddings = tower.embeddings
    patches = embeddings.patch_embedding(pixel_values).permute(0, 2, 3, 1).flatten(1, 2)
    rows = torch.cat((patches, embeddings.class_embedding.view(1, 1, -1)), dim=1)
    hidden_states = [tower.get_submodule("pre_layrnorm")(rows + embeddings.position_embedding.weight)]
    for layer in tower.layers:
        hidden_states.append(layer(hidden_states[-1]))
    return encoder.projector(tower.features(hidden_states))


def llama_answer(llama: LlamaCpp, before: str, image: np.ndarray, after: str) -> str:
    """Return llama.cpp's answer to a prompt with the image between both texts, decoded greedily."""
    logits = llama.read(before + llama.mtmd.mtmd_default_marker().decode() + after, image)
    ids: list[int] = []
    while len(ids) < MAX_NEW_TOKENS and (token := int(logits.argmax())) != llama.llama.token_eos():
        ids.append(token)
        logits = llama.decode([token])
    return llama.llama.detokenize(ids).decode(errors="replace").strip()


def float_answer(
    model: FloatModel,
    before: list[int],
    features: Tensor,
    after: list[int],
    *,
    tokenizer: ChatTokenizer,
    checkpoint: Checkpoint,
) -> str:
    """Return the float model's answer to a prompt with the features between its tokens, decoded greedily."""
    config = checkpoint.config
    rows = torch.cat([model.embed(before), features, model.embed(after)], dim=1)
    stream = TextStream(tokenizer)
    answer = ""
    for token, _ in greedy(model, rows, max_tokens=MAX_NEW_TOKENS, eos_ids=config.eos_ids):
        if token not in config.eos_ids:
            answer += stream.push(token)
    return (answer + stream.flush()).strip()


def squared(fitted_3HW: np.ndarray, *, side: int, mean: tuple[float, ...]) -> np.ndarray:
    """Return an image ``uint8 [3, H, W]`` in the middle of a square of the mean color, ``uint8 [side, side, 3]``."""
    _, height, width = fitted_3HW.shape
    square = np.full((side, side, 3), [int(value * 255) for value in mean], dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = fitted_3HW.transpose(1, 2, 0)
    return square


if __name__ == "__main__":
    main()

"""What llama.cpp sees and says with our GGUF files, beside the float model: image features, and answers about scenes.

    python -m benchmarks.ask_llama_cpp /tmp/gguf --model tiny-llava --scenes 50

Needs llama-cpp-python. Version 0.3.36 of it, as the llama.cpp inside, puts the class token behind the patches but skips
the first row as if it were before them: so each patch gets its predecessor's position, the first patch is lost, and the
class token takes the last one's place. The float model is asked a second time with just that done to it.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from llava_export.benchmark.llama_cpp import LlamaCpp
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.cli.terminal import silence_libraries
from llava_export.models.llava import LlavaModel, VisionEncoder
from llava_runner.contract import PromptTemplate
from llava_runner.image import prepare_image
from llava_runner.prompt import prompt_chunks
from llava_runner.tokenizer import TextStream, Tokenizer
from training import questions

MAX_NEW_TOKENS = 40
CONTEXT = 1024


def image_features(llama: LlamaCpp, image: np.ndarray) -> Tensor:
    """``uint8 [side, side, 3]``, padded and resized already -> ``float32 [num_image_tokens, hidden_size]``."""
    chunk, features = llama.encode(image)
    shape = (llama.mtmd.mtmd_input_chunk_get_n_tokens(chunk), llama.llama.n_embd())
    return torch.tensor(np.ctypeslib.as_array(features, shape))


def llama_answer(llama: LlamaCpp, before: str, image: np.ndarray, after: str) -> str:
    """Greedy, by llama.cpp."""
    logits = llama.read(before + llama.mtmd.mtmd_default_marker().decode() + after, image)
    ids: list[int] = []
    while len(ids) < MAX_NEW_TOKENS and (token := int(logits.argmax())) != llama.llama.token_eos():
        ids.append(token)
        logits = llama.decode([token])
    return llama.llama.detokenize(ids).decode(errors="replace").strip()


def with_class_token_last(encoder: VisionEncoder, pixel_values: Tensor) -> Tensor:
    """The encoder's features as this llama.cpp computes them."""
    tower = encoder.vision_tower
    embeddings = tower.embeddings
    patches = embeddings.patch_embedding(pixel_values).permute(0, 2, 3, 1).flatten(1, 2)
    rows = torch.cat((patches, embeddings.class_embedding.view(1, 1, -1)), dim=1)
    hidden_states = [tower.pre_layrnorm(rows + embeddings.position_embedding.weight)]
    for layer in tower.layers:
        hidden_states.append(layer(hidden_states[-1]))
    return encoder.projector(tower.features(hidden_states))


def float_answer(
    model: LlavaModel, features: Tensor, question: str, *, tokenizer: Tokenizer, prompt: PromptTemplate, eos: int
) -> str:
    """Greedy, by the eager model."""
    before, after = prompt_chunks(question, template=prompt, has_image=True)
    ids = [torch.tensor([[1, *tokenizer.encode(before)]]), torch.tensor([tokenizer.encode(after)])]
    rows = torch.cat([model.token_embedding(ids[0]), features, model.token_embedding(ids[1])], dim=1)
    position, answer = 0, []
    while len(answer) < MAX_NEW_TOKENS:
        token = int(model.text_decoder(rows, torch.tensor([position])).argmax())
        if token == eos:
            break
        answer.append(token)
        position += rows.shape[1]
        rows = model.token_embedding(torch.tensor([[token]]))
    stream = TextStream(tokenizer)
    return ("".join(map(stream.push, answer)) + stream.flush()).strip()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with one ggml-model-*.gguf and one mmproj-model-*.gguf")
    parser.add_argument("--model", required=True, help="the checkpoint they were made of")
    parser.add_argument("--scenes", type=int, default=50, help="to ask about; 0 for random pixels' features alone")
    arguments = parser.parse_args()
    silence_libraries()
    (text,), (mmproj,) = (sorted(arguments.folder.glob(f"{name}-model-*.gguf")) for name in ("ggml", "mmproj"))
    llama = LlamaCpp(text, mmproj, n_ctx=CONTEXT)
    checkpoint = open_checkpoint(arguments.model)
    model = checkpoint.build_model(max_context_len=CONTEXT)
    part = "" if arguments.scenes else "vision_encoder"
    checkpoint.weights.fill(model.get_submodule(part), prefix=part)
    side = checkpoint.config.vision.image_size
    console = Console(highlight=False)
    console.print(f"llama-cpp-python {version('llama-cpp-python')}, {text.name}, {mmproj.name}")

    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (side, side, 3), dtype=np.uint8)]
    scenes = [questions.question_for(questions.HELD_OUT_SEED + i) for i in range(arguments.scenes)]
    for picture, _, _ in scenes:
        fitted = prepare_image(picture, image_size=side, image_mean=checkpoint.image_mean, image_aspect_ratio="pad")
        images.append(squared(fitted, side=side, mean=checkpoint.image_mean))
    tokenizer = Tokenizer.open(checkpoint.folder / "tokenizer.model") if scenes else None
    cosines: dict[str, list[float]] = {"float": [], "float, class token last": []}
    right = dict.fromkeys(("llama.cpp", *cosines), 0)
    for i, image in enumerate(images):
        pixels = model.vision_encoder.pixel_values(torch.from_numpy(image.copy()).permute(2, 0, 1))
        features = {
            "float": model.vision_encoder.projector(model.vision_encoder.vision_tower(pixels)),
            "float, class token last": with_class_token_last(model.vision_encoder, pixels),
        }
        found = image_features(llama, image)
        for name, expected in features.items():
            cosines[name].append(float(torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0)))
        if i:
            assert tokenizer is not None
            _, question, expected_answer = scenes[i - 1]
            prompt = checkpoint.family.prompt
            before, after = prompt_chunks(question, template=prompt, has_image=True)
            right["llama.cpp"] += llama_answer(llama, before, image, after) == expected_answer
            for name, rows in features.items():
                eos = checkpoint.config.eos_ids[0]
                said = float_answer(model, rows, question, tokenizer=tokenizer, prompt=prompt, eos=eos)
                right[name] += said == expected_answer
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "cosine of features with llama.cpp's", "right answers"):
        table.add_column(column, justify="right" if column else "left")
    asked = f" / {len(scenes)}" if scenes else ""
    table.add_row("llama.cpp", "", f"{right['llama.cpp']}{asked}" if scenes else "")
    for name, values in cosines.items():
        table.add_row(name, f"{np.mean(values):.5f}", f"{right[name]}{asked}" if scenes else "")
    console.print(table)


def squared(fitted_3HW: np.ndarray, *, side: int, mean: tuple[float, ...]) -> np.ndarray:
    """Centered on the mean color: ``uint8 [side, side, 3]``."""
    _, height, width = fitted_3HW.shape
    square = np.full((side, side, 3), [int(value * 255) for value in mean], dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = fitted_3HW.transpose(1, 2, 0)
    return square


if __name__ == "__main__":
    main()

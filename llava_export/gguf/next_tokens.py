"""What llama.cpp says after a prompt, compared with the float model: needs llama-cpp-python (extra ``llama``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import kl_div, log_softmax

from llava_export.checkpoint.checkpoint import Checkpoint
from llava_export.errors import ExportError
from llava_export.reference import FloatReference

# Largest divergence of llama.cpp's next token from the float model's, in nats. The flat logits of untrained models move
# the most with 4 bits.
LARGEST_KL = {"f16": 1e-3, "q8_0": 0.01, "q4_0": 0.5, "q4_k_s": 0.5, "q4_k_m": 0.5, "q5_k_m": 0.2}
PROMPTS = (  # few: for each one the float model is read once from disk
    "What is in the image?", "USER: Hello. ASSISTANT:", "A chat between a curious user and", "One, two, three,",
)  # fmt: skip


@dataclass(frozen=True)
class NextToken:
    """llama.cpp's choice of the token after a prompt, compared with the float model's.

    ``kl`` is the Kullback-Leibler divergence of the distributions, in nats.
    """

    prompt: str
    top1: bool
    kl: float


def next_tokens(path: Path, checkpoint: Checkpoint, *, prompts: Sequence[str]) -> Iterator[NextToken]:
    """Yield both models' next token after each prompt, compared. The float model is run block by block.

    Raises ``ExportError`` if llama-cpp-python cannot open the file.
    """
    from jinja2 import TemplateError
    from llama_cpp import Llama

    try:
        llama = Llama(str(path), n_ctx=512, logits_all=True, verbose=False)
    except (TemplateError, ValueError) as error:
        raise ExportError(f"llama-cpp-python cannot open it: {error}") from error
    try:
        for prompt in prompts:
            ids = llama.tokenize(prompt.encode(), add_bos=True, special=False)
            model = checkpoint.build_model(max_context_len=len(ids))
            reference = FloatReference(model, weights=checkpoint.weights)
            expected = log_softmax(reference.decode(reference.embed(ids), position=0), -1)
            llama.reset()
            llama.eval(ids)
            found = log_softmax(torch.tensor(llama.scores[len(ids) - 1]), -1)
            kl = float(kl_div(found, expected, log_target=True, reduction="sum"))
            yield NextToken(prompt, bool(found.argmax() == expected.argmax()), kl)
    finally:
        llama.close()

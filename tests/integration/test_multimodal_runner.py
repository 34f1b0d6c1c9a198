"""ExecuTorch's own runner reads our packages, and gives the same answers as ours."""

from __future__ import annotations

import pytest
import torch

from llava_export.builtin import CHECKPOINTS
from llava_runner.session import Session
from tests.integration.conftest import CALIBRATED

QUESTIONS = ("What is in the image?", "How many shapes are there?")
NEW_TOKENS = 24


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in CHECKPOINTS), ("tiny-mobilevlm", CALIBRATED)], ids=str
)
@pytest.mark.parametrize("question", QUESTIONS)
def test_executorchs_runner_gives_the_same_answer_as_ours(question, name, options, package_of, capfd):
    from executorch.extension.llm.runner import GenerationConfig, MultimodalRunner, make_image_input, make_text_input

    package = package_of(name, **options)
    image = torch.load(package.folder / "image.pt")
    assert image.dtype == torch.uint8 and image.shape[0] == 3
    session = Session.load(package.folder)
    template = session.card.prompt
    after = f"{template.image_separator}{question}{template.assistant}"
    ours = "".join(session.generate(image, question, max_new_tokens=NEW_TOKENS))

    runner = MultimodalRunner(str(package.program), str(package.folder / "tokenizer.model"), None)
    pieces: list[str] = []
    inputs = [make_text_input(template.system + template.user), make_image_input(image), make_text_input(after)]
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, temperature=0.0, echo=False, num_bos=1)
    runner.generate(inputs, config, pieces.append, None)
    theirs = "".join(pieces).removesuffix("</s>")
    assert ours.strip() and ours.strip() == theirs.strip()

"""A fine-tune is exported as what it is: its prompt, tokens, ends and images, in every runner and file."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest
from gguf import GGUFReader, TokenType

from llava_export.builtin import SAMPLE_IMAGE
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.prompt import find_prompt
from llava_export.cli import verify
from llava_export.gguf.export import export_gguf
from llava_export.gguf.verify import check
from llava_export.pte.golden import GoldenRecord
from llava_export.stages import Stages
from llava_runner.session import Session
from tests.fine_tunes import SEGMENT, STOP
from tests.integration.conftest import Package
from tests.marks import needs_llama_cpp

ANSWER = "[BOX] the"


@pytest.fixture(scope="module")
def rigged(package_of) -> Package:
    return package_of("rigged")


@pytest.fixture(scope="module")
def gguf_folder(rigged, tmp_path_factory) -> Path:
    checkpoint, folder = open_checkpoint(rigged.model), tmp_path_factory.mktemp("gguf")
    export_gguf(
        checkpoint,
        quantization="f16",
        mmproj_type="f16",
        prompt=find_prompt(checkpoint),
        output_dir=folder,
        stages=Stages(),
    )
    return folder


def test_the_card_has_what_the_checkpoint_says(rigged):
    card = Session.load(rigged.folder).card
    assert card.prompt.assistant == "<|end|>\n<|assistant|>\n" and card.prompt_source == "chat_template.jinja"
    assert (card.image_aspect_ratio, card.image_resize, card.image_size) == ("crop", 64, 56)
    assert card.eos_ids == (2, STOP, 516) and card.generation.max_new_tokens == 9


def test_both_runners_show_an_added_token_and_stop_at_the_second_end(rigged, llava_main):
    session = Session.load(rigged.folder)
    assert session.ask(SAMPLE_IMAGE, "What is it?") == ANSWER
    assert session.last.ids[-1] == STOP and session.last.stop_reason == "eos"
    assert "".join(session.chat("[BOX]? <|end|> is text")) == ANSWER
    flags = [f"--model_path={rigged.program}", f"--tokenizer_path={rigged.folder / 'tokenizer.bin'}"]
    command = [llava_main, *flags, f"--image_path={SAMPLE_IMAGE}", "--prompt=What is it?", "--interactive"]
    done = subprocess.run(command, input="[BOX]? <|end|> is text\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{ANSWER}\n> {ANSWER}\n> \n"


def test_executorchs_runner_shows_it_too(rigged, capfd):
    from executorch.extension.llm.runner import GenerationConfig, MultimodalRunner, make_text_input

    prompt = Session.load(rigged.folder).card.prompt
    runner = MultimodalRunner(str(rigged.program), str(rigged.folder / "tokenizer.model"), None)
    pieces: list[str] = []
    text = make_text_input(f"{prompt.system}{prompt.user}What is it?{prompt.assistant}")
    runner.generate([text], GenerationConfig(max_new_tokens=8, temperature=0.0, echo=False, num_bos=1), pieces.append)
    assert "".join(pieces).strip().startswith(ANSWER)


def test_transformers_reads_and_answers_the_same(rigged, capsys):
    golden = GoldenRecord.load(rigged.folder / "llava.golden")
    assert golden.agreed.startswith("transformers ") and golden.agreed.endswith("LlavaProcessor")
    assert golden.prompt == "<|user|>\n<image>\nWhat is in the image?<|end|>\n<|assistant|>\n"
    flags = [str(rigged.folder), "--against", rigged.model]
    assert verify.run(verify.build_parser().parse_args(flags)) == 0
    printed = capsys.readouterr().out
    assert "the model and processor of transformers" in printed and "PASS" in printed


def test_gguf_files_have_its_tokens_and_ends(rigged, gguf_folder):
    fields = GGUFReader(gguf_folder / "ggml-model-f16.gguf").fields
    tokens, types = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    assert (tokens[SEGMENT], types[SEGMENT]) == ("[BOX]", TokenType.USER_DEFINED)
    assert (tokens[516], types[516]) == ("<|end|>", TokenType.CONTROL)
    assert types[530] == types[575] == TokenType.UNUSED
    ends = [fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("eos", "eot", "eom")]
    assert ends == [2, STOP, 516]
    template = jinja2.Template(fields["tokenizer.chat_template"].contents())
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert template.render(messages=messages, add_generation_prompt=False) == (
        "<|user|>\nHi<|end|>\n<|assistant|>\nHo<|end|>\n"
    )
    assert not [failure for comparison in check(gguf_folder) for failure in comparison.failures]


@needs_llama_cpp
def test_llama_cpp_shows_the_token_and_stops(gguf_folder):
    from llama_cpp import Llama

    llama: Any = Llama(str(gguf_folder / "ggml-model-f16.gguf"), n_ctx=256, verbose=False)
    messages = [{"role": "user", "content": "What is it?"}]
    said = llama.create_chat_completion(messages, max_tokens=9, temperature=0)["choices"][0]
    llama.close()
    assert said["message"]["content"].strip() == ANSWER and said["finish_reason"] == "stop"


def test_gguf_files_without_its_tokens_fail(rigged, gguf_folder, tmp_path, monkeypatch):
    """The files are compared with a checkpoint that has another token there."""
    import llava_export.gguf.verify_tokens as module

    original = module.token_types

    def renamed(tokenizer, *, vocab_size):
        tokens = original(tokenizer, vocab_size=vocab_size)
        tokens[SEGMENT] = (f"[PAD{SEGMENT}]", -1000.0, TokenType.UNUSED)
        return tokens

    monkeypatch.setattr(module, "token_types", renamed)
    failures = [failure for comparison in check(gguf_folder) for failure in comparison.failures]
    assert any(f"token {SEGMENT} is '[BOX]', user_defined" in failure for failure in failures)

"""Checkpoints with a byte-level BPE, from the checkpoint to answers and to GGUF files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoTokenizer

from llava_export.builtin import SAMPLE_IMAGE
from llava_export.checkpoint.checkpoint import open_checkpoint
from llava_export.checkpoint.prompt import find_prompt
from llava_export.doctor.checkpoint import examine_checkpoint
from llava_export.doctor.findings import Severity
from llava_export.doctor.package import examine_package
from llava_export.errors import CheckpointError
from llava_export.gguf.export import export_gguf
from llava_export.gguf.verify import check
from llava_export.pte.agreement import agreement_here
from llava_export.pte.export import model_card
from llava_export.pte.golden import GoldenRecord, golden_question
from llava_export.pte.options import Options
from llava_export.pte.plan import plan
from llava_export.pte.verify import compare, judge, read_manifest
from llava_export.split import TEXT, split
from llava_export.stages import Stages
from llava_runner import contract
from llava_runner.session import Session
from llava_runner.tokenizer_file import load_tokenizer
from tests.byte_level import BYTE_LEVEL_CHECKPOINTS, KINDS, PROMPTS, TEXTS, random_strings, tokenizer_json
from tests.commands import llava_here
from tests.integration.conftest import Package
from tests.integration.parity import assert_same_answers

QUESTION = "Что на картинке? 图里有什么？ 🙂 12345"


@pytest.fixture(scope="module")
def exported(package_of) -> Package:
    """Return a package of a checkpoint with a byte-level BPE."""
    return package_of("byte_level_smollm2")


def test_a_package_has_the_checkpoints_own_file(exported):
    names = {path.name for path in exported.folder.iterdir()}
    assert contract.TOKENIZER_JSON in names and not names & {contract.TOKENIZER_BIN, contract.TOKENIZER_MODEL}
    own = (Path(exported.model) / "tokenizer.json").read_bytes()
    assert (exported.folder / "tokenizer.json").read_bytes() == own
    manifest = read_manifest(exported.program)
    assert contract.TOKENIZER_JSON in manifest.files
    card = manifest.card
    assert card.tokenizer.prepend_scheme == "never" and not card.tokenizer.adds_bos
    document = json.loads(own)
    ids = [*document["model"]["vocab"].values(), *(token["id"] for token in document["added_tokens"])]
    assert card.tokenizer_vocab_size == max(ids) + 1 and card.vocab_size == 1280


def test_transformers_read_the_golden_question_alike(exported):
    golden = GoldenRecord.load(contract.golden_path(exported.program))
    assert golden.agreed.startswith("transformers ") and "LlavaProcessor" in golden.agreed


@pytest.mark.parametrize("name", BYTE_LEVEL_CHECKPOINTS)
def test_transformers_agree_with_the_question_of_any_checkpoint(name, checkpoint_of):
    """Also of one without a processor, by its tokenizer alone."""
    planned = plan(str(checkpoint_of(name)), Options())
    question = golden_question(planned.checkpoint, card=model_card(planned), chat_template=planned.prompt.jinja)
    reader = "LlavaProcessor" if name in ("byte_level_llama3", "byte_level_smollm2") else "TokenizersBackend"
    assert agreement_here(planned.checkpoint, question).endswith(reader)
    wrong = replace(question, ids_after=[*question.ids_after, 5])
    with pytest.raises(CheckpointError, match="makes other tokens of the question: after the image"):
        agreement_here(planned.checkpoint, wrong)


def test_the_program_is_near_the_float_model(exported):
    manifest = read_manifest(exported.program)
    assert judge(compare(exported.program, manifest), manifest) == []


def test_a_session_answers_and_goes_on(exported):
    with Session.load(exported.folder) as session:
        first = "".join(session.generate(SAMPLE_IMAGE, QUESTION, max_new_tokens=12))
        ids = session.last.ids
        text = load_tokenizer(exported.folder / "tokenizer.json")
        shown = b"".join(text.decode_piece(i) for i in ids if not text.is_added(i)).decode(errors="replace")
        assert first == shown == session.last.text and len(ids) > 3
        assert "".join(session.chat("и ещё?", max_new_tokens=4)) == session.last.text


@pytest.mark.parametrize("is_listed", [True, False])
def test_both_runners_give_the_same_answer(is_listed, package_of, llava_main, tmp_path):
    """Also where a checkpoint names a token beside its tokenizer.json alone, so that only the card has it."""
    folder = Path(shutil.copytree(package_of("byte_level_smollm2", "fp32", golden=False).folder, tmp_path / "package"))
    if not is_listed:
        document = json.loads((folder / "tokenizer.json").read_text())
        assert document["added_tokens"].pop()["content"] == "<image>"
        (folder / "tokenizer.json").write_text(json.dumps(document))
    assert_same_answers([llava_main], folder / "llava.pte", scenes=2, folder=tmp_path, max_new_tokens=6)


def is_text(content: bytes) -> bool:
    """Return whether bytes are whole characters."""
    return "\ufffd" not in content.decode(errors="replace")


def test_executorchs_runner_gives_the_same_answer_as_ours(exported, capfd):
    from executorch.extension.llm.runner import GenerationConfig, MultimodalRunner, make_image_input, make_text_input

    image = torch.load(exported.folder / "image.pt")
    with Session.load(exported.folder) as session:
        template = session.card.prompt
        tokenizer = load_tokenizer(exported.folder / "tokenizer.json")
        for i in range(200):
            question = TEXTS[i % len(TEXTS)][: 5 + i]
            ours = "".join(session.generate(image, question, max_new_tokens=2))
            # Theirs gives each token to Python as text, which one of a random model may not be.
            if ours.strip() and all(is_text(tokenizer.decode_piece(token)) for token in session.last.ids):
                break
        else:
            pytest.fail("no answer is of whole characters")
    runner = MultimodalRunner(str(exported.program), str(exported.folder / "tokenizer.json"), None)
    pieces: list[str] = []
    after = f"{template.image_separator}{question}{template.assistant}"
    inputs = [make_text_input(template.system + template.user), make_image_input(image), make_text_input(after)]
    runner.generate(inputs, GenerationConfig(max_new_tokens=2, temperature=0.0, echo=False), pieces.append, None)
    assert "".join(pieces) == ours


@pytest.mark.parametrize("name", KINDS)
def test_executorchs_tokenizer_gives_the_same_tokens_as_ours(name, tmp_path):
    from pytorch_tokenizers import get_tokenizer

    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer_json(name))
    theirs, ours = get_tokenizer(str(path)), load_tokenizer(path)
    for text in (*TEXTS, *random_strings(300)):
        ids = ours.encode(text)
        if not any(token in text for token in ("<|", "<image>")):
            found = theirs.encode(text, bos=False, eos=False)
            # It follows the post-processor, whatever it is asked for.
            assert found[int(KINDS[name].begins) :] == ids, repr(text)


def test_the_doctor_knows_the_file(exported, tmp_path):
    report = examine_package(exported.folder)
    assert [finding for finding in report.findings if finding.severity == Severity.BROKEN] == []
    assert any(fact.source == "tokenizer.json" for fact in report.facts)
    report = examine_checkpoint(exported.model, parts={})
    assert [finding for finding in report.findings if finding.severity == Severity.BROKEN] == []
    assert any(fact.source == "tokenizer.json" for fact in report.facts)


def test_a_tokenizer_of_another_model_is_found(exported, tmp_path):
    folder = Path(shutil.copytree(exported.folder, tmp_path / "package"))
    document = json.loads((folder / "tokenizer.json").read_text())
    document["model"]["merges"] = document["model"]["merges"][:200]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "llava.json").unlink()
    said = [finding.what for finding in examine_package(folder).findings if finding.severity == Severity.BROKEN]
    assert any("makes other tokens of the golden question" in text for text in said), said
    document["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    said = [finding.what for finding in examine_package(folder).findings if finding.severity == Severity.BROKEN]
    assert any("normalizer Lowercase" in text for text in said), said
    done = llava_here("run", "--model-path", folder, "--prompt", "Hi")
    assert done.returncode == 2 and "normalizer Lowercase" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", BYTE_LEVEL_CHECKPOINTS)
def test_gguf_files_pass(name, checkpoint_of, tmp_path):
    folder, kind = checkpoint_of(name), BYTE_LEVEL_CHECKPOINTS[name]
    checkpoint = open_checkpoint(str(folder))
    export_gguf(
        checkpoint, quantization="f16", mmproj_type="f16", prompt=find_prompt(checkpoint), output_dir=tmp_path,
        overwrite=False, stages=Stages(),
    )  # fmt: skip
    assert [failure for comparison in check(tmp_path) for failure in comparison.failures] == []
    (path,) = tmp_path.glob("ggml-model-*")
    fields = {key: field.contents() for key, field in GGUFReader(path).fields.items() if "tokenizer" in key}
    names = {"llama3": "llama-bpe", "gpt2": "gpt-2", "smollm2": "smollm"}
    assert fields["tokenizer.ggml.model"] == "gpt2" and fields["tokenizer.ggml.pre"] == names.get(kind, kind)
    merges = json.loads(tokenizer_json(kind))["model"]["merges"]
    assert fields["tokenizer.ggml.merges"] == [" ".join(merge) for merge in merges]
    assert fields["tokenizer.ggml.add_bos_token"] == KINDS[kind].begins
    assert "tokenizer.ggml.scores" not in fields
    template = fields["tokenizer.chat_template"]
    assert ("<|begin_of_text|>" in template) is False
    if kind in PROMPTS:
        assert ("<|im_start|>user" in template) == (kind != "llama3")


def test_gguf_files_of_a_foreign_pre_tokenizer_are_refused_by_name(checkpoint_of, tmp_path):
    folder = Path(shutil.copytree(checkpoint_of("byte_level_gpt2"), tmp_path / "model"))
    document = json.loads((folder / "tokenizer.json").read_text())
    step = {"type": "Split", "pattern": {"Regex": "[a-z]{1,3}"}, "behavior": "Isolated", "invert": False}
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [step, document["pre_tokenizer"]]}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    done = llava_here("gguf", "--model", folder, "--output-dir", tmp_path / "out")
    assert done.returncode == 2 and "llama.cpp has no name" in done.stderr and "[a-z]{1,3}" in done.stderr
    assert not list((tmp_path / "out").glob("*.gguf"))
    assert llava_here("export", "--model", folder, "--dry-run").returncode == 0


def test_the_split_language_model_has_the_file(checkpoint_of, tmp_path):
    folder = checkpoint_of("byte_level_llama3")
    split(open_checkpoint(str(folder)), tmp_path)
    assert (tmp_path / TEXT / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert not (tmp_path / TEXT / "tokenizer.model").exists()
    first, second = (AutoTokenizer.from_pretrained(path) for path in (folder, tmp_path / TEXT))
    assert (second.bos_token, second.eos_token) == ("<|begin_of_text|>", "<|eot_id|>")
    assert second.get_vocab() == first.get_vocab()
    for text in (*TEXTS, "<|eot_id|>"):
        assert second(text)["input_ids"] == first(text)["input_ids"]

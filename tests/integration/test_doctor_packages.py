"""``llava doctor`` names what is wrong with a package, and what helps."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save

from llava_export.cli import doctor
from llava_export.pte.golden import GoldenRecord
from llava_export.pte.verify import read_manifest
from llava_runner.contract import MODEL_CARD, TEXT_DECODER, ModelCard
from llava_runner.errors import PackageError
from llava_runner.tokenizer import schema
from tests.checkpoints import TINY_LLAVA
from tests.doctor import examine
from tests.integration.test_verify import rewrite_manifest
from tests.runner.fake_program import make_card
from tests.runner.tiny_program import build_pte

COPY = "Copy it again from where it was exported, or export the model again."
TOKENIZER = "Copy the tokenizer that was exported with the program"
Break = Callable[[Path], Any]


def replaced(name: str, old: bytes, new: bytes) -> Break:
    """Return a function that replaces bytes in a file, with a manifest that was made afterwards."""

    def apply(package: Path) -> None:
        path = package / name
        content = path.read_bytes()
        assert old in content and len(old) == len(new)
        path.write_bytes(content.replace(old, new))
        rewrite_manifest(package / "llava.pte")

    return apply


def cut(name: str, *, at: int) -> Break:
    """Return a function that cuts the end off a file."""
    return lambda package: (package / name).write_bytes((package / name).read_bytes()[:at])


def flip(package: Path) -> None:
    """Change a bit of a weight."""
    content = bytearray((package / "llava.pte").read_bytes())
    content[-5000] ^= 1
    (package / "llava.pte").write_bytes(content)


def with_card(**changes: Any) -> Break:
    """Return a function that changes the model card in a package's manifest alone."""

    def apply(package: Path) -> None:
        card = read_manifest(package / "llava.pte").card
        rewrite_manifest(package / "llava.pte", card=dataclasses.replace(card, **changes))

    return apply


def edit_manifest(package: Path, **changes: Any) -> None:
    """Change values in a package's manifest, whether it can be read then or not."""
    path = package / "llava.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def with_golden(change: Callable[[GoldenRecord], GoldenRecord]) -> Break:
    """Return a function that changes the golden record, with a manifest that was made afterwards."""

    def apply(package: Path) -> None:
        path = package / "llava.golden"
        path.write_bytes(change(GoldenRecord.load(path)).to_bytes())
        rewrite_manifest(package / "llava.pte")

    return apply


def swap_pieces(package: Path) -> None:
    """Put a tokenizer of the same size in place, in which two pieces have each other's ids."""
    model = schema.ModelProto.FromString((package / "tokenizer.model").read_bytes())
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    first, second = model.pieces[ids["W"]], model.pieces[ids["?"]]
    first.piece, second.piece = second.piece, first.piece
    (package / "tokenizer.model").write_bytes(model.SerializeToString())
    rewrite_manifest(package / "llava.pte")


def without(*names: str) -> Break:
    """Return a function that removes files."""

    def apply(package: Path) -> None:
        for name in names:
            (package / name).unlink()

    return apply


def mix_tokenizers(package: Path) -> None:
    """Leave two tokenizers that differ, and nothing that says which of them is right."""
    swap_pieces(package)
    without("llava.golden", "llava.json")(package)


BROKEN: dict[str, tuple[Break, str, str]] = {
    "a program cut short": (
        cut("llava.pte", at=700_000),
        "llava.pte is truncated: 700000 of",
        "Copy or export it again",
    ),
    "no program at all": (without("llava.pte"), "has no program", COPY),
    "two programs": (
        lambda package: shutil.copy(package / "llava.pte", package / "other.pte"),
        "has 2 programs: llava.pte, other.pte",
        "or name the file itself",
    ),
    "something else": (
        lambda package: (package / "llava.pte").write_text("<html>404</html>" * 99),
        "is not an ExecuTorch program (.pte)",
        COPY,
    ),
    "a changed weight": (flip, "llava.pte is not the file that was exported: its SHA-256 differs", COPY),
    "an operator that is missing": (
        replaced("llava.pte", b"llama::custom_sdpa", b"llama::custom_qdpa"),
        "text_decoder needs operators that the runtime here lacks: llama::custom_qdpa.out",
        "Install the executorch of requirements.txt",
    ),
    "a backend that is missing": (
        replaced("llava.pte", b"XnnpackBackend", b"MyPhoneBackend"),
        "needs the backend MyPhoneBackend, which the runtime here lacks",
        "Install an executorch that has it",
    ),
    "a card of another version": (
        replaced("llava.pte", b'"schema": 3}', b'"schema": 2}'),
        "the model card has schema 2; this version reads schema 3",
        "Export the model again",
    ),
    "a tokenizer of another size": (
        lambda package: shutil.copy(TINY_LLAVA / "tokenizer.model", package),
        "tokenizer.model does not fit the program: the tokenizer has 512 tokens and the model was trained with 514",
        TOKENIZER,
    ),
    "a tokenizer of another order": (
        swap_pieces,
        "tokenizer.model does not fit the program: it makes other tokens of the golden question",
        TOKENIZER,
    ),
    "tokenizers of two models": (
        mix_tokenizers,
        "tokenizer.model and tokenizer.bin make different tokens of a question",
        TOKENIZER,
    ),
    "a tokenizer cut short": (
        cut("tokenizer.bin", at=99),
        "tokenizer.bin is truncated, or another file: it has 99 of",
        COPY,
    ),
    "a manifest of another version": (
        lambda package: edit_manifest(package, schema=2),
        "llava.json cannot be read: the manifest has schema 2; this version reads schema 3",
        "Export the model again",
    ),
    "a manifest that is no JSON": (cut("llava.json", at=500), "llava.json cannot be read: the manifest", COPY),
}
DOUBTFUL: dict[str, tuple[Break, str, str]] = {
    "another ExecuTorch": (
        replaced("llava.pte", b'"executorch_version": "1.5.1"', b'"executorch_version": "1.2.3"'),
        "it was exported for ExecuTorch 1.2.3, and 1.5.1 is installed here",
        "Install executorch==1.2.3, or export the model again with 1.5.1",
    ),
    "no manifest": (without("llava.json"), "llava.json is missing", COPY),
    "a manifest of another program": (
        lambda package: [path.rename(package / f"x{path.suffix}") for path in package.glob("llava.*")],
        "x.json is the manifest of llava.pte, not of x.pte",
        "Call the program llava.pte again",
    ),
    "a manifest of another model": (
        with_card(source="somebody/else"),
        "the manifest describes another model than the program's own card does",
        COPY,
    ),
    "no golden record": (without("llava.golden"), "llava.golden is missing from the package", COPY),
    "a golden record of another prompt": (
        with_golden(lambda golden: dataclasses.replace(golden, prompt="[INST] <image>\nWhy? [/INST]")),
        r"the golden record asks '[INST] <image>\nWhy? [/INST]', which the program's prompt does not make",
        "It belongs to another export",
    ),
    "a golden record of another model": (
        with_golden(lambda golden: dataclasses.replace(golden, features=golden.features[:3])),
        "llava verify cannot use llava.golden: the golden record is of another model",
        "Copy it again, or export the model again",
    ),
    "no tokenizer": (
        without("tokenizer.model", "tokenizer.bin"),
        "there is no tokenizer.model, no tokenizer.bin, no tokenizer.json",
        "--tokenizer-path",
    ),
    "an export that was killed": (
        lambda package: (package / ".llava.partial").mkdir(),
        ".llava.partial was left by an export that was killed",
        "Export again, or remove .llava.partial",
    ),
}


@pytest.mark.parametrize(("name", "code"), [*dict.fromkeys(BROKEN, 2).items(), *dict.fromkeys(DOUBTFUL, 1).items()])
def test_what_is_wrong_is_named_with_its_remedy(name, code, package, capsys):
    spoil, cause, remedy = {**BROKEN, **DOUBTFUL}[name]
    spoil(package)
    found, printed = examine(package, capsys=capsys)
    assert found == code and printed.startswith(
        f"{package} package for ExecuTorch: {('doubtful', 'cannot be used')[code - 1]}"
    )
    finding = next(
        it for it in printed.replace("broken: ", "\n").replace("doubtful: ", "\n").splitlines() if cause in it
    )
    assert remedy in finding


def test_a_package_as_it_was_exported_is_healthy(package, capsys):
    code, printed = examine(package, capsys=capsys)
    assert code == 0 and printed.startswith(f"{package} package for ExecuTorch: healthy what used from")
    assert "doubtful: " not in printed and "broken: " not in printed and "note: " not in printed
    for fact in ("8 tokens of answer; read alike by transformers", "514 tokens, 5 of them added", "USER: <image>"):
        assert fact in printed
    assert examine(package / "llava.pte", capsys=capsys)[0] == 0


def test_another_version_of_this_project_is_a_note(package, capsys):
    edit_manifest(package, versions={"llava_export": "0.1.7"})
    code, printed = examine(package, capsys=capsys)
    assert code == 0 and "note: it was exported by llava_export 0.1.7, and " in printed


@pytest.mark.parametrize(("free", "code"), [(200 << 20, 2), (262 << 20, 1)])
def test_a_device_with_too_little_memory_is_named(free, code, package, capsys, monkeypatch):
    monkeypatch.setattr("llava_export.doctor.program.available_memory", lambda: free)
    found, printed = examine(package, capsys=capsys)
    assert found == code and f"of memory, and {free >> 20}.0 MiB are free" in printed
    assert "export with a smaller --max-context-len or recipe" in printed


def test_what_nothing_else_has_read_is_a_note(package, capsys):
    with_golden(lambda golden: dataclasses.replace(golden, agreed=""))(package)
    code, printed = examine(package, capsys=capsys)
    assert code == 0 and "note: no other library has read the golden question" in printed and "--against" in printed


def test_methods_that_delegate_nothing_are_named(tmp_path, capsys):
    (tmp_path / "plain.pte").write_bytes(build_pte(card_of_family()))
    code, printed = examine(tmp_path, capsys=capsys)
    assert code == 1 and "there is no plain.golden" in printed
    for method in ("vision_encoder", "text_decoder"):
        assert f"doubtful: {method} delegates nothing: plain operators compute all of it" in printed
    assert "token_embedding delegates nothing: plain" not in printed


@pytest.mark.parametrize("leave_out", [TEXT_DECODER, MODEL_CARD])
def test_a_program_of_another_kind_is_named(leave_out, tmp_path, capsys):
    (tmp_path / "other.pte").write_bytes(build_pte(make_card(vocab_size=40), leave_out=leave_out))
    code, printed = examine(tmp_path, capsys=capsys)
    assert code == 2 and f"it is a program of another kind: it has no method {leave_out}" in printed
    assert "llava inspect" in printed


def card_of_family() -> ModelCard:
    """Return a card for the ExecuTorch that is installed."""
    from importlib.metadata import version

    return dataclasses.replace(make_card(vocab_size=40), executorch_version=version("executorch"))


def test_what_cannot_be_loaded_is_named(package, capsys, monkeypatch):
    def refuse(path: Path) -> None:
        raise PackageError(f"{path} cannot be loaded: Error 18")

    monkeypatch.setattr("llava_export.doctor.package.Program.open", refuse)
    code, printed = examine(package, capsys=capsys)
    assert code == 2 and "llava.pte cannot be loaded: Error 18" in printed and "that is installed here" in printed


def test_a_damaged_golden_record_leaves_the_rest_to_be_told(package, capsys):
    path = package / "llava.golden"
    path.write_bytes(save(load(path.read_bytes())))  # without its texts
    code, printed = examine(package, capsys=capsys)
    assert code == 1 and printed.count("llava.golden") == 1 and "llava.golden is truncated, or another" in printed
    assert "514 tokens" in printed


def test_json_and_flags(package, capsys, tmp_path):
    doctor.run(doctor.build_parser().parse_args([str(package), "--json", str(tmp_path / "report.json")]))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["exit_code"] == 0 and report["findings"] == [] and len(report["facts"]) > 10
    for flags in (["--weights"], ["--base-model", "x"], ["--prompt-template", "phi3"]):
        with pytest.raises(PackageError, match=f"{flags[0]} is for checkpoints"):
            doctor.run(doctor.build_parser().parse_args([str(package), *flags]))

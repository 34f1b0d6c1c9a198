"""The exporter's command line: a mistake is one line with exit code 2, and leaves no half-written files."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer

from llava_export.builtin import SAMPLE_IMAGE
from llava_export.cli import export


@dataclass(frozen=True)
class Ended:
    """The end of a command: its exit code, and what it printed to stderr."""

    code: str | int | None
    error: str


@dataclass(frozen=True)
class Cli:
    """The exporter's command line, which writes to the folder ``output``."""

    output: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: object) -> Ended:
        """Run the command in this process, until it exits."""
        self.monkeypatch.setattr(sys, "argv", ["export", "--output-dir", str(self.output), *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            export.main()
        return Ended(stop.value.code, self.capsys.readouterr().err)


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path) -> Cli:
    """A command line that exports to a folder of its own."""
    return Cli(tmp_path / "output", monkeypatch, capsys)


def assert_one_line(ended: Ended, message: str) -> None:
    """Check that a command ended with one line of error that has ``message``."""
    assert ended.code == 2
    assert ended.error.startswith("error: ") and ended.error.count("\n") == 1
    assert message in ended.error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "{tmp}/nowhere"], "is no folder, no hub id and no built-in model"),
        (["--model", "{tmp}"], "has no config.json"),
        (["--model", "{plain}/config.json"], "is a file"),
        (["--group-size", "256"], "--group-size 32 or 64 or 128 fits"),
        (["--group-size", "100"], "not a multiple of 32"),
        (["--pte-name", "llava.bin"], "ends in .pte"),
        (["--pte-name", "a/llava.pte"], "see --output-dir"),
        (["--max-seq-len", "0"], "--max-seq-len: 0 must be at least 1"),
        (["--max-context-len", "5000"], "beyond the 2048 positions"),
        (["--max-seq-len", "900", "--max-context-len", "800"], "--max-seq-len 900"),
        (["--max-seq-len", "10"], "cannot hold an image, which takes 16"),
        (["--max-context-len", "30", "--max-seq-len", "20"], "too short: one image, a question and a short answer"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(flags, message, cli, checkpoint_of, tmp_path):
    plain = checkpoint_of("plain")
    flags = [flag.format(tmp=tmp_path, plain=plain) for flag in flags]
    assert_one_line(cli("--model", plain, *flags), message)
    assert not cli.output.exists() or list(cli.output.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("language_model", [], "model_type 'llama'; supported: llava-1.5 "),
        ("language_model", [], "llava export --text-only takes a language model alone"),
        ("plain", ["--text-only"], "model_type 'llava', a whole llava-1.5; --text-only takes a language model alone"),
        ("language_model", ["--text-only", "--vision", "fp32"], "--vision is for models that see images"),
        ("language_model", ["--text-only", "--projector", "a.bin"], "--projector is for models that see images"),
        ("language_model", ["--text-only", "--budget", "9kB"], "and so does --embedding-bits 4"),
        ("language_model", ["--text-only", "--max-seq-len", "9", "--max-context-len", "9"], "too short: a question"),
        (
            "language_model",
            ["--text-only", "--algorithm", "awq", "--calibration-data", "{images}"],
            "has images, which a language model cannot see",
        ),
    ],
    ids=str,
)
def test_a_language_model_alone_takes_text_only(name, flags, message, cli, checkpoint_of):
    flags = [flag.format(images=SAMPLE_IMAGE.parent) for flag in flags]
    assert_one_line(cli("--model", checkpoint_of(name), *flags), message)
    assert not cli.output.exists() or list(cli.output.iterdir()) == []


def test_a_config_of_another_architecture(cli, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    types = "llava/llava_llama/llava_mistral/llava_qwen/llava_qwen2/llava_phi3/share4v"
    supported = f"llava-1.5 (model_type {types}), mobilevlm (model_type mobilevlm)"
    assert_one_line(cli("--model", tmp_path), f"model_type 'bert'; supported: {supported}")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bos_token_id", 10**9, "bos_token_id 1000000000 is not in the vocabulary"),
        ("eos_token_id", [], "eos_token_id in"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps in"),
    ],
)
def test_a_dry_run_finds_the_mistakes_of_a_config(field, value, message, cli, checkpoint_of, tmp_path):
    folder = shutil.copytree(checkpoint_of("plain"), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    assert_one_line(cli("--model", folder, "--dry-run"), message)


def test_a_checkpoint_without_tokenizer(cli, checkpoint_of, tmp_path):
    folder = shutil.copytree(checkpoint_of("plain"), tmp_path / "copy")
    (folder / "tokenizer.model").unlink()
    for flags in ([], ["--dry-run"]):
        assert_one_line(cli("--model", folder, *flags), "no tokenizer.model and no tokenizer.json")
        assert not cli.output.exists()


def test_a_tokenizer_of_another_vocabulary(cli, checkpoint_of, tmp_path):
    folder = shutil.copytree(checkpoint_of("plain"), tmp_path / "copy")
    text = "\n".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    assert_one_line(cli("--model", folder), "the tokenizer has 900 pieces and the model's vocabulary 576")
    assert not cli.output.exists()


def test_an_output_folder_that_cannot_be_written(cli, checkpoint_of, tmp_path):
    (tmp_path / "file").write_text("")
    plain = checkpoint_of("plain")
    assert_one_line(cli("--model", plain, "--output-dir", tmp_path / "file"), "is a file")
    assert_one_line(cli("--model", plain, "--output-dir", tmp_path / "file" / "below"), "Not a directory")
    assert_one_line(cli("--model", plain, "--output-dir", "/proc/nowhere"), "/proc/nowhere")


def test_a_full_disk(cli, checkpoint_of, monkeypatch):
    from llava_export.pte import export as pte_export

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "tokenizer.bin")

    monkeypatch.setattr(pte_export, "write_tokenizer", fail)
    assert_one_line(cli("--model", checkpoint_of("plain")), "tokenizer.bin: No space left on device")
    assert list(cli.output.iterdir()) == []


def test_a_file_size_limit_of_the_system(checkpoint_of, tmp_path):
    """Check the same with a real limit: the kernel does not let the first artifact grow."""
    command = [sys.executable, "-m", "llava_export.export", "--model", checkpoint_of("plain")]
    done = subprocess.run(
        [*command, "--output-dir", tmp_path / "out"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "File too large" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("what", ["memory", "disk"])
def test_a_machine_that_is_too_small(what, cli, checkpoint_of, monkeypatch):
    from llava_export.pte import preflight

    monkeypatch.setattr(preflight, "available_memory" if what == "memory" else "free_disk", lambda *_: 100_000)
    ended = cli("--model", checkpoint_of("plain"))
    assert_one_line(ended, f"of {what}")
    assert "0.1 MiB are free" in ended.error and "--force" in ended.error
    assert not cli.output.exists()


def test_forced_onto_a_machine_that_is_too_small(cli, checkpoint_of, monkeypatch, capsys):
    from llava_export.pte import export as pte_export
    from llava_export.pte import preflight

    def stop(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "tokenizer.bin")

    monkeypatch.setattr(preflight, "available_memory", lambda: 100_000)
    monkeypatch.setattr(pte_export, "write_tokenizer", stop)
    arguments = ["--model", str(checkpoint_of("plain")), "--output-dir", str(cli.output), "--force"]
    monkeypatch.setattr(sys, "argv", ["export", *arguments])
    with pytest.raises(SystemExit):
        export.main()
    printed = capsys.readouterr()
    assert "note: the export needs" in printed.out.replace("\n", " ")
    assert "No space left" in printed.err


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=str)
def test_a_budget_that_cannot_be_met(more, cli, checkpoint_of):
    ended = cli("--model", checkpoint_of("plain"), "--budget", "900kB", *more)
    assert_one_line(ended, "a program of 900,000 bytes is not possible: the least is --budget ")
    assert not cli.output.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--budget", "3.6XB"], "'3.6XB' is no number of bytes"),
        (["--budget", "-1"], "-1"),
        (["--budget", "0"], "less than a byte"),
        (["--budget", "1e9"], "is no number of bytes"),
        (["--budget", "GB"], "is no number of bytes"),
        (["--budget", "1GB", "--recipe", "8da8w"], "recipe 8da8w has no linears of 4 bits"),
        (["--budget", "1GB", "--calibration-data", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--sensitivity-plot", "plot.png"], "--sensitivity-plot draws what --budget measures"),
        (["--budget", "1GB", "--sensitivity-plot", "plot.txt"], "must end in .png"),
    ],
    ids=str,
)
def test_budgets_that_are_none(flags, message, cli, checkpoint_of, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    ended = cli("--model", checkpoint_of("plain"), *flags)
    assert ended.code == 2 and message in ended.error and "Traceback" not in ended.error
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_nothing(checkpoint_of, tmp_path):
    command = [sys.executable, "-m", "llava_export.export", "--dry-run", "--output-dir", tmp_path / "out"]
    done = subprocess.run([*command, "--model", checkpoint_of("plain")], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    for shown in (
        "memory of the export",
        "the program",
        "context 768",
        "images, from its family:\n  padded to a square",
    ):
        assert shown in done.stdout
    assert not (tmp_path / "out").exists()


def test_bugs_keep_their_traceback(cli, checkpoint_of, monkeypatch):
    from llava_export.pte import export as pte_export

    def fail(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(pte_export, "write_tokenizer", fail)
    monkeypatch.setattr(
        sys, "argv", ["export", "--output-dir", str(cli.output), "--model", str(checkpoint_of("plain"))]
    )
    with pytest.raises(ZeroDivisionError):
        export.main()
    assert list(cli.output.iterdir()) == []


def test_what_others_made_is_not_overwritten(cli, checkpoint_of):
    """Before anything is computed."""
    cli.output.mkdir()
    (cli.output / "llava.json").write_text("precious")
    ended = cli("--model", checkpoint_of("plain"))
    assert_one_line(ended, "llava.json is there, and no earlier export made it as it is now; --overwrite")
    assert [path.name for path in cli.output.iterdir()] == ["llava.json"]
    assert (cli.output / "llava.json").read_text() == "precious"


@pytest.mark.parametrize("flags", [["--pte-name", "config.pte"], ["--pte-name", "config.pte", "--overwrite"]], ids=str)
def test_the_checkpoint_is_not_overwritten(flags, cli, checkpoint_of, tmp_path):
    """The manifest of config.pte would be config.json."""
    copy = shutil.copytree(checkpoint_of("plain"), tmp_path / "copy")
    before = (copy / "config.json").read_bytes()
    ended = cli("--model", copy, "--output-dir", copy, *flags)
    assert_one_line(ended, "config.json belongs to the checkpoint; choose another --output-dir")
    assert (copy / "config.json").read_bytes() == before

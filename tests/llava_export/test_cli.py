"""All subcommands of ``llava``: help that fits a terminal, one spelling of what several have, mistakes in one line."""

from __future__ import annotations

import io
from importlib import import_module

import pytest
from rich.console import Console

from llava_export.cli import COMMANDS
from llava_export.cli.verify import print_comparisons, print_file_comparison
from llava_export.gguf.comparison import FileComparison, KindErrors
from llava_export.pte.verify import Comparison
from llava_runner.command import main, usage
from llava_runner.contract import FileRecord, Manifest, ModelCard
from tests.runner.fake_program import make_card

NAMES = [command.name for command in COMMANDS]


def parser_of(name: str):
    """Return the parser of a subcommand."""
    (command,) = (command for command in COMMANDS if command.name == name)
    return import_module(command.module).build_parser(f"llava {name}")


def flags_of(name: str) -> dict[str, str]:
    """Return the long flags of a subcommand, each with where argparse stores its value."""
    actions = parser_of(name)._actions
    return {flag: action.dest for action in actions for flag in action.option_strings if flag.startswith("--")}


@pytest.mark.parametrize("name", NAMES)
def test_help_fits_80_columns(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = parser_of(name).format_help()
    assert text.startswith(f"usage: llava {name} ")
    assert [line for line in text.splitlines() if len(line) > 80] == []


def test_the_page_of_commands_fits_80_columns_and_names_each():
    lines = usage(COMMANDS).splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) <= 30
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_flags_are_spelled_with_hyphens(name):
    flags = flags_of(name)
    assert {"--help", "--version"} <= flags.keys()
    assert not any("_" in flag for flag in flags)


def test_the_same_thing_has_the_same_flag():
    """No command has a second name for what another one has under the first."""
    synonyms = {"--checkpoint": "--model", "--out": "--output-dir", "--output": "--output-dir", "--picture": "--image"}
    for name in NAMES:
        of_a_file = {"--output"} if name == "evaluate" else set()
        assert not flags_of(name).keys() & synonyms.keys() - of_a_file
    for flag, commands in {
        "--model": ("export", "gguf", "split", "benchmark", "verify"),
        "--vision-tower": ("export", "gguf", "split", "doctor", "evaluate"),
        "--output-dir": ("export", "gguf", "split"),
        "--image": ("run", "verify", "benchmark"),
        "--against": ("verify", "evaluate"),
        "--threads": ("run", "benchmark", "evaluate"),
        "--json": ("inspect", "benchmark", "doctor", "evaluate"),
        "--force": ("export", "gguf"),
    }.items():
        for name in commands:
            assert flag in flags_of(name), (name, flag)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["exprot"],
            f"'exprot' is not a command; choose from {', '.join(NAMES)}",
        ),
        (["export", "--pte-name", "dir/x.pte"], "--pte-name: 'dir/x.pte' must be a file name that ends in .pte"),
        (["export", "--max_context_len=-3"], "--max-context-len: -3 must be at least 1"),
        (["export", "--max-context-len", "many"], "--max-context-len: 'many' is not a whole number"),
        (["export", "--mod", "tiny-llava"], "there is no option --mod"),
        (["gguf", "--output-dir", __file__], f"--output-dir: {__file__} is a file"),
        (["gguf", "--quantization", "q3_k"], "--quantization: 'q3_k' is unknown; choose from"),
        (["inspect", "x.pte", "--json", "/nowhere/x.json"], "--json: the folder of /nowhere/x.json does not exist"),
        (["benchmark", "x", "--gguf", "nothing.gguf"], "--gguf: nothing.gguf does not exist"),
        (["evaluate", "x.pte"], "--dataset or --text is missing: what the model is evaluated on"),
        (["evaluate", "--dataset", "."], "PACKAGE is missing: what is asked about the data set"),
        (["evaluate", "x.pte", "--dataset", ".", "--text", "x"], "name either --dataset or --text"),
        (
            ["evaluate", "x.pte", "--dataset", ".", "--windows", "9", "--model", "x"],
            "--windows, --model: for --text a",
        ),
        (["evaluate", "x.pte", "--dataset", ".", "--recipe", "fp32"], "--recipe: for --text alone"),
        (
            ["evaluate", "x.pte", "--text", "x", "--limit", "9", "--engine", "ray"],
            "--limit, --engine: for --dataset a",
        ),
        (["evaluate", "x.pte", "--dataset", ".", "--json", "x"], "x would belong to the data set; write to another"),
        (["evaluate", "x.pte", "--dataset", "LICENSE", "--output", "./LICENSE"], "LICENSE belongs to what is read;"),
        (["evaluate", "x.pte", "--dataset", "nowhere"], "nowhere does not exist"),
        (["evaluate", "x.pte", "--dataset", ".", "--layout", "coco"], "--layout: 'coco' is unknown; choose from auto,"),
        (["evaluate", "x.pte", "--dataset", ".", "--output", "/nowhere/x"], "--output: the folder of /nowhere/x does"),
        (["evaluate", "x.pte", "--dataset", ".", "--html", "x.html"], "--html goes with --compare, which is missing"),
        (["evaluate", "x.pte", "--dataset", ".", "--workers", "2"], "--workers goes with --engine ray, which is"),
        (["evaluate", "x.pte", "--dataset", ".", "--projector", "x"], "--projector goes with --against, which is"),
        (["evaluate", "x.pte", "--dataset", ".", "--output", "x", "--json", "./x"], "--output, --json and --html must"),
        (["doctor", ""], "PATH: the path is empty"),
        (["doctor", "nowhere.gguf"], "nowhere.gguf has GGUF files: llava verify"),
        (["verify", "nowhere.pte"], "nowhere.pte does not exist"),
        (["verify", "nowhere.pte", "--model", "tiny-llava"], "--model is for GGUF files, and nowhere.pte has none"),
        (["verify", "nowhere.pte", "--prompt", "Why?"], "--prompt is the question about --image, which is missing"),
        (["run", "x.pte"], "--prompt is missing"),
        (["split", "--output-dir", "."], "--model is missing"),
    ],
    ids=str,
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    printed = capsys.readouterr()
    assert stop.value.code == 2 and printed.out == ""
    assert printed.err.startswith(f"error: {message}") and printed.err.count("\n") == 1


@pytest.mark.parametrize("width", [40, 80])
def test_verification_fits_a_narrow_terminal_with_its_numbers_whole(width):
    rows = [Comparison("image features", 0.99998, 0.2575), Comparison("token 12", 0.99, 123.4567, True, 1.0, 0.12345)]
    file = FileComparison("language model", kinds=[KindErrors("Q4_K", 1234, 1.234e-2, 5.678e-2, 0.1)])
    text = io.StringIO()
    console = Console(file=text, width=width)
    print_comparisons(console, rows, manifest_of(make_card(vocab_size=20)))
    print_file_comparison(console, file)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width and "\N{HORIZONTAL ELLIPSIS}" not in text.getvalue()
    for number in ("0.99998", "0.12345", "5.68e-02"):
        assert number in text.getvalue()


def manifest_of(card: ModelCard) -> Manifest:
    """Return the manifest of a package that has nothing but a program."""
    return Manifest("llava.pte", {}, card, {}, {"llava.pte": FileRecord(1, "0" * 64)}, "0" * 64)

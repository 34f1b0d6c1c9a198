import argparse
from pathlib import Path
from unittest.mock import Mock

import pytest

from llava_runner import bench, cli
from llava_runner.arguments import (
    ArgumentParser,
    positive_int,
    real_number,
    run_command,
    seed,
    thread_count,
    whole_number,
)
from llava_runner.errors import PromptError


@pytest.fixture
def parser():
    parser = ArgumentParser(prog="tool")
    parser.add_argument("--image-path", metavar="PATH", help="an image")
    parser.add_argument("--max-new-tokens", type=positive_int, default=5)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("words", nargs="*")
    return parser


def fails(parser, capsys, *arguments):
    """Return the one line that the parser prints before it exits with code 2."""
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(arguments)
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    return err.strip()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--image-path", "a_b.png", "--max-new-tokens", "7"],
        ["--image_path", "a_b.png", "--max_new_tokens", "7"],
        ["--image_path=a_b.png", "--max-new_tokens=7"],
    ],
)
def test_hyphens_and_underscores_are_the_same(parser, arguments):
    given = parser.parse_args(arguments)
    assert (given.image_path, given.max_new_tokens, given.words) == ("a_b.png", 7, [])


@pytest.mark.parametrize("value", ["--max_new_tokens", "-1", "-x", "--", "", "a=b", "--help"])
def test_what_follows_a_flag_is_its_value(parser, value):
    for arguments in (["--image_path", value], [f"--image_path={value}"], ["--image-path", "x", "--image-path", value]):
        given = parser.parse_args([*arguments, "word"])
        assert (given.image_path, given.words) == (value, ["word"])


def test_behind_two_hyphens_nothing_is_a_flag(parser):
    assert parser.parse_args(["--fast", "--", "--image_path", "-h"]).words == ["--image_path", "-h"]


@pytest.mark.parametrize(
    ("arguments", "fast"),
    [
        ([], False),
        (["--fast"], True),
        (["--fast=true"], True),
        (["--fast=false"], False),
        (["--fast", "--fast=false"], False),
        (["--fast=false", "--fast"], True),
        (["--fast", "false"], True),
    ],
)
def test_a_flag_without_a_value_can_be_switched_off(parser, arguments, fast):
    assert parser.parse_args(arguments).fast is fast


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--max-new-tokens=x", "--help", "--nothing"]])
def test_help_comes_before_mistakes(parser, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(arguments)
    assert stop.value.code == 0 and capsys.readouterr().out.startswith("usage: tool ")


def test_arguments_of_the_process_are_the_default(parser, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tool", "--image_path=x", "word"])
    assert parser.parse_args().image_path == "x"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_new=7"], "there is no option --max-new"),
        (["--nothing", "--help"], "there is no option --nothing"),
        (["-x"], "there is no option -x"),
        (["-hx"], "there is no option -hx"),
        (["--image_path"], "--image-path needs a value"),
        (["--fast=perhaps"], "--fast: 'perhaps' is neither true nor false"),
        (["--fast="], "--fast: '' is neither true nor false"),
        (["--version=3"], "--version takes no value"),
        (["--max_new_tokens=seven"], "--max-new-tokens: 'seven' is not a whole number"),
        (["--max_new_tokens="], "--max-new-tokens: '' is not a whole number"),
        (["--max-new-tokens", "-1"], "--max-new-tokens: -1 must be at least 1"),
    ],
    ids=str,
)
def test_mistakes_name_the_flag(parser, capsys, arguments, message):
    assert fails(parser, capsys, *arguments) == f"error: {message}; tool --help lists the options"


def test_what_is_missing_or_too_much(capsys):
    parser = ArgumentParser(prog="tool")
    parser.add_argument("--image", "--image-path", required=True)
    parser.add_argument("--how", choices=("pad", "crop"))
    assert fails(parser, capsys) == "error: --image is missing; tool --help lists the options"
    assert fails(parser, capsys, "--image=x", "y", "z") == (
        "error: 'y' is one argument too many; tool --help lists the options"
    )
    assert fails(parser, capsys, "--image=x", "--how", "stretch") == (
        "error: --how: 'stretch' is unknown; choose from pad, crop; tool --help lists the options"
    )


NO_NUMBERS = ["", " 5", "5 ", "1_0", "0x10", "five", "5five", "--5", "+-5", "٥", "nan", "inf", "-infinity", "5\n"]


@pytest.mark.parametrize("text", NO_NUMBERS)
@pytest.mark.parametrize("read", [whole_number, positive_int, thread_count, seed, real_number])
def test_texts_that_are_no_numbers(read, text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a"):
        read(text)


@pytest.mark.parametrize("text", ["1e3", "5.0", "."])
def test_texts_that_are_no_whole_numbers(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number"):
        whole_number(text)


def test_numbers():
    assert [whole_number(text) for text in ("5", "+5", "-5", "007", "-2147483647", "0" * 9999 + "3")] == [
        5,
        5,
        -5,
        7,
        -2147483647,
        3,
    ]
    assert [real_number(text) for text in ("5", "-.5", "1e3", "1.", "+2.5E-1", "1e-999")] == [5, -0.5, 1000, 1, 0.25, 0]
    assert [seed(text) for text in ("0", "18446744073709551615")] == [0, 2**64 - 1]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (whole_number, "2147483648", "2147483648 is out of range"),
        (whole_number, "-" + "9" * 9999, "is out of range"),
        (real_number, "1e999", "1e999 is out of range"),
        (real_number, "9" * 999, "is out of range"),
        (seed, "18446744073709551616", "must be from 0 to 2\\^64 - 1"),
        (seed, "-1", "-1 must be from 0 to 2\\^64 - 1"),
        (thread_count, "0", "0 must be from 1 to 1024"),
        (thread_count, "1025", "1025 must be from 1 to 1024"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_numbers_out_of_range(read, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        read(text)


def test_version(parser, capsys):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--version"])
    assert stop.value.code == 0
    names = [part.split()[0] for part in capsys.readouterr().out.strip().split(", ")]
    assert "executorch" in names and set(names) <= {"llava-export", "llava-runner", "executorch"}


def test_the_code_of_a_command_is_its_exit_code(parser):
    for code in (None, 0, 1):
        with pytest.raises(SystemExit) as stop:
            run_command(parser, Mock(return_value=code), ["word"])
        assert stop.value.code == code


def test_mistakes_of_users_and_of_ours(parser, capsys):
    mistakes = {
        PromptError("the prompt\nis empty"): "the prompt is empty",
        FileNotFoundError(2, "No such file", "nowhere.txt"): "nowhere.txt: No such file",
    }
    for error, message in mistakes.items():
        with pytest.raises(SystemExit) as stop:
            run_command(parser, Mock(side_effect=error), [])
        assert stop.value.code == 2
        assert capsys.readouterr().err == f"error: {message}\n"
    with pytest.raises(ZeroDivisionError):
        run_command(parser, Mock(side_effect=ZeroDivisionError), [])


@pytest.mark.parametrize("command", [cli, bench])
def test_both_commands_know_image_and_threads_by_both_names(command):
    needed = ["--model-path=p", "--prompt=x"] if command is cli else ["--model-path=p"]
    for names in (("--image", "--threads"), ("--image-path", "--cpu-threads"), ("--image_path", "--cpu_threads")):
        given = command.build_parser().parse_args([*needed, f"{names[0]}=a_b.png", f"{names[1]}=3"])
        image = Path("a_b.png")
        assert (given.image, given.threads) == ([image] if command is cli else image, 3)


@pytest.mark.parametrize("command", [cli, bench])
def test_help_fits_into_80_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = command.build_parser().format_help()
    assert max(map(len, text.splitlines())) <= 80
    assert "--threads" in text


@pytest.mark.parametrize("text", ["", "0,", "0;600", "0,x", "0, 600", ",0"])
def test_depths_that_are_no_list(capsys, text):
    error = fails(bench.build_parser(), capsys, "--model-path=p", f"--depth={text}")
    assert error.startswith(f"error: --depth: '{text}' is not a list of whole numbers like 0,600; ")


def test_depths():
    assert bench.build_parser().parse_args(["--model-path=p"]).depth == (0, 600)
    assert bench.build_parser().parse_args(["--model-path=p", "--depth=5,10,20"]).depth == (5, 10, 20)

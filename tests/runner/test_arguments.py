from pathlib import Path
from unittest.mock import Mock

import pytest

from llava_runner import bench, cli
from llava_runner.arguments import ArgumentParser, positive_int, run_command, with_hyphens
from llava_runner.errors import PromptError


@pytest.fixture
def parser():
    parser = ArgumentParser(prog="tool")
    parser.add_argument("--image-path", metavar="PATH", help="an image")
    parser.add_argument("--max-new-tokens", type=positive_int, default=5)
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


def test_only_names_of_flags_change():
    assert with_hyphens(["a_b", "--c_d=e_f", "-g_h", "--i_j", "k_l", "--", "--m_n"]) == [
        "a_b",
        "--c-d=e_f",
        "-g_h",
        "--i-j",
        "k_l",
        "--",
        "--m_n",
    ]


def test_arguments_of_the_process_are_the_default(parser, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tool", "--image_path=x", "word"])
    assert parser.parse_args().image_path == "x"


def test_flags_are_not_abbreviated(parser, capsys):
    expected = "error: unrecognized arguments: --max-new=7; tool --help lists the options"
    assert fails(parser, capsys, "--max_new=7") == expected


@pytest.mark.parametrize(
    ("value", "message"), [("seven", "'seven' is not a whole number"), ("0", "0 must be at least 1"), ("", "''")]
)
def test_mistakes_name_the_flag(parser, capsys, value, message):
    assert fails(parser, capsys, f"--max_new_tokens={value}").startswith(f"error: --max-new-tokens: {message}")


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
        assert (given.image, given.threads) == (Path("a_b.png"), 3)


@pytest.mark.parametrize("command", [cli, bench])
def test_help_fits_into_80_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = command.build_parser().format_help()
    assert max(map(len, text.splitlines())) <= 80
    assert "--threads" in text


@pytest.mark.parametrize("text", ["", "0,", "0;600", "0,x"])
def test_depths_that_are_no_list(capsys, text):
    error = fails(bench.build_parser(), capsys, "--model-path=p", f"--depth={text}")
    assert error.startswith(f"error: --depth: {text!r} is not a list of whole numbers like 0,600; ")


def test_depths():
    assert bench.build_parser().parse_args(["--model-path=p"]).depth == (0, 600)
    assert bench.build_parser().parse_args(["--model-path=p", "--depth=5,10,20"]).depth == (5, 10, 20)

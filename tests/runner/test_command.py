import subprocess
import sys

import pytest

from llava_runner import command

NAMES = ["export", "gguf", "verify", "evaluate", "doctor", "run", "serve", "inspect", "benchmark", "split"]


@pytest.fixture
def llava(capsys):
    """Return a function that runs ``llava`` here and returns exit code, stdout and stderr."""

    def llava(*arguments):
        with pytest.raises(SystemExit) as stop:
            command.main(list(arguments))
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return llava


def listed(page):
    """Return the names of the commands on the help page."""
    _, _, rest = page.partition("commands:\n")
    return [line.split()[0] for line in rest.partition("\n\n")[0].splitlines()]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_the_commands(llava, arguments):
    code, page, err = llava(*arguments)
    assert (code, err) == (0, "")
    assert page.startswith("usage: llava COMMAND")
    assert listed(page) == NAMES
    assert max(map(len, page.splitlines())) <= 80


def test_no_arguments_of_the_process(llava, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["llava"])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert not stop.value.code
    assert listed(capsys.readouterr().out) == NAMES


def test_version(llava):
    code, out, _ = llava("--version")
    assert code == 0
    assert "executorch " in out and out.count("\n") == 1


@pytest.mark.parametrize("name", ["ask", "--model", ""])
def test_unknown_command(llava, name):
    expected = f"error: {name!r} is not a command; choose from {', '.join(NAMES)}\n"
    assert llava(name) == (2, "", expected)


def test_every_command_has_help_by_its_name(llava):
    for name in NAMES:
        code, page, _ = llava(name, "--help")
        assert code == 0
        assert page.startswith(f"usage: llava {name} ")


def test_mistakes_in_a_commands_arguments_name_it(llava):
    code, out, err = llava("run", "package")
    assert (code, out) == (2, "")
    assert err == "error: --prompt is missing; --interactive takes questions from stdin instead\n"


@pytest.mark.parametrize("package", [["nowhere"], ["--model-path", "nowhere"], ["--model_path=nowhere"]])
def test_run_takes_the_package_by_position_or_by_flag(llava, package):
    assert llava("run", *package, "--prompt", "Hi") == (2, "", "error: nowhere does not exist\n")


@pytest.mark.parametrize("package", [[], ["nowhere", "--model-path", "nowhere"]])
def test_run_takes_one_package(llava, package):
    expected = "error: name one package: llava run PACKAGE, or --model-path PATH\n"
    assert llava("run", *package, "--prompt", "Hi") == (2, "", expected)


def without_exporter(*arguments):
    """Run ``llava`` as where only the runner is installed: no entry points of others, no ``llava_export``."""
    code = """
import importlib.metadata, sys
importlib.metadata.entry_points = lambda **selection: ()
sys.modules["llava_export"] = None
from llava_runner.command import main
main(sys.argv[1:])
"""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


def test_the_runner_alone_has_two_commands():
    done = without_exporter()
    assert done.returncode == 0
    assert listed(done.stdout) == ["run", "serve"]
    assert "come with llava-export" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_runner_alone_runs_and_refuses():
    assert without_exporter("run", "--help").stdout.startswith("usage: llava run ")
    done = without_exporter("export")
    assert (done.returncode, done.stderr) == (
        2,
        "error: 'export' is not a command; choose from run, serve; the others come with llava-export\n",
    )

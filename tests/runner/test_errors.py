"""How commands end: what the exit code says, and that nothing is lost or left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

START = "import os, signal, sys, time\nfrom llava_runner.errors import UserError, exit_cleanly\n"


def shell(script: str, tail: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, with a redirection or pipe behind it. The exit code is Python's."""
    command = f'set -o pipefail; "{sys.executable}" -c "$SCRIPT" {tail}'
    environment = {
        "SCRIPT": START + script,
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(Path(__file__).parents[2] / "runner"),
    }
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("script", "code", "error"),
    [
        ("exit_cleanly(lambda: None)", 0, ""),
        ("exit_cleanly(lambda: 1)", 1, ""),
        ("def main(): raise UserError('two\\nlines')\nexit_cleanly(main)", 2, "error: two lines\n"),
        (
            "class Two(UserError):\n  lines = ('a\\nb', '- c')\ndef main(): raise Two\nexit_cleanly(main)",
            2,
            "error: a b\n- c\n",
        ),
        ("exit_cleanly(lambda: open('/nowhere/x\\ny'))", 2, "error: /nowhere/x y: No such file or directory\n"),
        ("def main(): raise KeyboardInterrupt\nexit_cleanly(main)", 130, ""),
    ],
    ids=str,
)
def test_the_exit_code_says_how_it_ended(script, code, error):
    done = shell(script)
    assert (done.returncode, done.stderr) == (code, error)


def test_our_own_bugs_keep_their_traceback():
    done = shell("exit_cleanly(lambda: 1 / 0)")
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_reader_that_goes_away_ends_it_silently(size):
    done = shell(f"time.sleep(0.2)\nexit_cleanly(lambda: print('x' * {size}))", "| true")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_output_that_cannot_be_written_is_an_error(size):
    done = shell(f"exit_cleanly(lambda: print('x' * {size}))", "> /dev/full")
    assert (done.returncode, done.stderr) == (2, "error: [Errno 28] No space left on device\n")


def test_closed_descriptors_do_no_harm():
    assert shell("exit_cleanly(lambda: print('x'))", ">&- 2>&- <&-").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_whoever_is_asked_to_end_cleans_up(number, tmp_path):
    """``finally`` runs, to its end, even if the signal comes twice."""
    script = f"""
signal.signal({int(number)}, signal.SIG_DFL)  # it may be ignored where the tests run
def main():
    try:
        open({str(tmp_path / "begun")!r}, "w").close()
        time.sleep(60)
    finally:
        os.kill(os.getpid(), {int(number)})
        open({str(tmp_path / "cleaned")!r}, "w").close()
exit_cleanly(main)
"""
    with subprocess.Popen([sys.executable, "-c", START + script]) as process:
        while not (tmp_path / "begun").exists():
            time.sleep(0.02)
        process.send_signal(number)
    assert process.returncode == 128 + number
    assert (tmp_path / "cleaned").exists()


def test_a_hangup_that_is_ignored_stays_ignored(tmp_path):
    script = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nexit_cleanly(lambda: os.kill(os.getpid(), signal.SIGHUP))"
    assert shell(script).returncode == 0


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["export", "--help"]])
def test_help_into_a_closed_pipe_is_silent(arguments):
    script = f"time.sleep(0.2)\nfrom llava_runner.command import main\nmain({arguments!r})"
    done = shell(script, "| true")
    assert (done.returncode, done.stderr) == (141, "")

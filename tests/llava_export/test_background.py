"""Functions in a process of their own: results, steps, errors, and what happens when the process is killed."""

from __future__ import annotations

import os
import signal
import time

import pytest

from llava_export.errors import CheckpointError
from llava_export.system import in_background


def count(to, *, on_step):
    """Report ``to`` steps. Return their number and the id of this process."""
    for _ in range(to):
        on_step()
    return to, os.getpid()


def complain(*, on_step):
    """Raise an error of the exporter."""
    raise CheckpointError("a shard is damaged")


def die(*, on_step):
    """End this process as the system does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(path, *, on_step):
    """Write the id of this process to a file, and wait."""
    path.write_text(str(os.getpid()))
    time.sleep(600)


def test_result_and_steps_come_back():
    steps = []
    with in_background(count, 3) as wait:
        result, process = wait(lambda: steps.append(1))
    assert result == 3 and len(steps) == 3
    assert process != os.getpid()


def test_an_error_is_raised_where_the_result_is_awaited():
    with in_background(complain) as wait, pytest.raises(CheckpointError, match="a shard is damaged"):
        wait(lambda: None)


def test_a_process_that_is_killed_is_noticed():
    with in_background(die) as wait, pytest.raises(ChildProcessError, match="die was ended from outside"):
        wait(lambda: None)


class Odd(Exception):
    """An exception that cannot be unpickled."""

    def __init__(self, first, second):
        super().__init__(first)


def complain_oddly(*, on_step):
    """Raise an error that cannot be sent to another process."""
    raise Odd(1, 2)


@pytest.mark.parametrize(
    ("function", "kind", "sigint"),
    [
        (die, ChildProcessError, signal.SIG_IGN),  # as under nohup
        (complain, CheckpointError, signal.default_int_handler),
        (complain_oddly, TypeError, signal.default_int_handler),
    ],
)
def test_a_failure_is_noticed_at_once_and_not_only_where_it_is_awaited(function, kind, sigint):
    before = signal.signal(signal.SIGINT, sigint)
    start = time.monotonic()
    try:
        with pytest.raises(kind), in_background(function):
            try:
                while time.monotonic() < start + 100:  # as lowering does, which takes minutes
                    time.sleep(0.01)
            except BaseException as error:
                raise RuntimeError("the compiler was interrupted") from error
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() < start + 60
    time.sleep(0.1)  # no interrupt is left over


def test_an_error_of_the_block_itself_is_kept(tmp_path):
    with pytest.raises(ZeroDivisionError), in_background(sleep, tmp_path / "process"):
        raise ZeroDivisionError


def test_the_process_ends_with_the_block(tmp_path):
    with in_background(sleep, tmp_path / "process"):
        while not (tmp_path / "process").exists() or not (tmp_path / "process").read_text():
            time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "process").read_text()), 0)

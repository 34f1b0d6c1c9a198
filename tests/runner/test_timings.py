import fcntl
import io
import os
import re
import resource
import struct
import termios

import pytest

from llava_runner.timings import Stage, Timings, columns_of, peak_memory

LLAMA_CPP_LINE = re.compile(
    r"llava_print_timings: +(load|image eval|sample|prompt eval|eval|total) time = +[\d.]+ ms"
    r"( / +\d+ (tokens|runs) +\( +[\d.]+ ms per token, +[\d.]+ tokens per second\))?"
)


def test_report_has_the_shape_of_llama_cpp():
    timings = Timings(load=Stage(23574.72), sample=Stage(1.24, 6), prompt=Stage(12460.15, 246), eval=Stage(424.86, 6))
    *lines, memory = timings.report().splitlines()
    assert all(LLAMA_CPP_LINE.fullmatch(line) for line in lines)
    expected = (
        "llava_print_timings: prompt eval time =   12460.15 ms /   246 tokens "
        "(   50.65 ms per token,    19.74 tokens per second)"
    )
    assert expected in lines
    assert lines[-1] == "llava_print_timings:       total time =   36460.97 ms"
    assert re.fullmatch(r"llava_print_timings: +peak memory = +[\d.]+ MiB", memory)


def test_the_report_tells_of_guesses_where_there_were_any():
    timings = Timings(load=Stage(1.0))
    assert "draft" not in timings.report()
    timings.drafted, timings.accepted = 20, 13
    assert timings.report().splitlines()[-1] == "llava_print_timings:            draft =      13    accepted of 20"
    assert timings.report(columns=40).splitlines()[-1] == "draft     13 accepted of 20"


def test_stages_add_up():
    stage = Stage()
    for _ in range(3):
        with stage.measure(2):
            pass
    assert stage.count == 6
    assert stage.per_second > 0
    assert Stage().per_second == 0


def test_peak_memory_is_what_the_system_says():
    maximum_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak_memory() == pytest.approx(maximum_kib * 1024, rel=0.1)


def test_a_narrow_terminal_gets_short_lines():
    timings = Timings(
        load=Stage(123574.72), sample=Stage(0.01, 999), prompt=Stage(412460.15, 768), eval=Stage(424.86, 6)
    )
    *lines, memory = timings.report(columns=79).splitlines()
    assert lines[2:4] == ["sample      0.01 ms   999 99900000.00/s", "prompt 412460.15 ms   768      1.86/s"]
    assert max(map(len, (*lines, memory))) <= 40
    assert timings.report(columns=80).startswith("llava_print_timings: ")
    for number in ("123574.72", "424.86"):
        assert number in timings.report(columns=1) and number in timings.report()


def test_columns_of_a_terminal_a_file_and_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    master, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 61, 0, 0))
    with os.fdopen(master), os.fdopen(terminal, "w") as stream, (tmp_path / "file").open("w") as file:
        assert columns_of(stream) == 61
        assert columns_of(file) is None
        assert columns_of(io.StringIO()) is None
        monkeypatch.setenv("COLUMNS", "40")
        assert columns_of(stream) == columns_of(file) == 40
        for nonsense in ("", "0", "wide", "-5"):
            monkeypatch.setenv("COLUMNS", nonsense)
            assert columns_of(stream) == 61

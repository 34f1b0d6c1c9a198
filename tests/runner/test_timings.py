import re
import resource

import pytest

from llava_runner.timings import Stage, Timings, peak_memory

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

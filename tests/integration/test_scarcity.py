"""The C++ runner where threads or memory are scarce: it goes on with less, or ends with one line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

FEW_THREADS = """
#include <dlfcn.h>
#include <pthread.h>
#include <atomic>
#include <cerrno>
#include <cstdlib>
extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* how, void* (*run)(void*), void* what) {
  static std::atomic<int> left = std::atoi(std::getenv("THREADS_LEFT"));
  if (--left < 0) {
    return EAGAIN;
  }
  using Create = decltype(&pthread_create);
  return reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"))(thread, how, run, what);
}
"""


@pytest.fixture(scope="module")
def few_threads(tmp_path_factory) -> Path:
    """A library that lets a process start only so many threads, as a limit of the system does (``ulimit -u``)."""
    folder = tmp_path_factory.mktemp("few_threads")
    (folder / "few_threads.cpp").write_text(FEW_THREADS)
    subprocess.run(["g++", "-shared", "-fPIC", "few_threads.cpp", "-o", "few_threads.so"], cwd=folder, check=True)
    return folder / "few_threads.so"


@pytest.mark.parametrize("left", [0, 1, 2])
@pytest.mark.parametrize("flag", ["--threads=8", "--temperature=0"])
def test_the_answer_takes_the_threads_that_there_are(left, flag, few_threads, llava_main, tiny_package):
    command = [llava_main, f"--model-path={tiny_package.program}", "--prompt=What?", "--max-new-tokens=5"]
    expected = subprocess.run(command, capture_output=True, text=True)  # and the packed weights are there from now on
    environment = {"LD_PRELOAD": str(few_threads), "THREADS_LEFT": str(left)}
    done = subprocess.run([*command, flag], capture_output=True, text=True, env=environment, timeout=30)
    assert (done.returncode, done.stdout) == (0, expected.stdout), done.stderr
    assert "damaged" not in done.stderr


def test_too_little_memory_ends_in_a_line(llava_main, tiny_package):
    command = f'"{llava_main}" --model-path="{tiny_package.program}" --prompt=What? --max-new-tokens=2'
    codes = set()
    for megabytes in range(24, 72, 4):
        limited = f"ulimit -v {megabytes * 1000}; {command} --packed-cache-path=off"
        done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=30)
        codes.add(done.returncode)
        if done.returncode in (2, 70):
            assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert codes <= {0, 2, 70, 127} and {0, 70} <= codes  # 127: not even its libraries could be loaded


def test_what_is_thrown_in_a_thread_ends_in_a_line(native_build):
    done = subprocess.run([native_build / "build/parts", "throw", "thread"], capture_output=True, text=True)
    message = "error: index 7 of 3; this is a bug of the program, please report it\n"
    assert (done.returncode, done.stderr) == (70, message)

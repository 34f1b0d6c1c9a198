"""Tries a grammar in a process of its own before it is used in the server's.

llguidance bounds nearly all of its work, but not all: a schema that combines thirty patterns takes hours and all
memory, and a long chain of references ends the process. Then only this process ends.
"""

from __future__ import annotations

import contextlib
import re
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from llava_runner.errors import PromptError
from llava_runner.serve.child import child_command

SECONDS = 5  # Python's start included
MEMORY = 1 << 30  # bytes of address space
STACK = 1 << 20  # bytes; threads of the server have 2 MiB or more
STEPS = 32  # bytes of an answer that are tried
LONGEST_MESSAGE = 300
ADVICE = re.compile(r"\. Enable |; consider |; either | <non-verbose/>")
CODE = "from llava_runner.serve.grammar_check import main; main()"


@lru_cache(maxsize=64)
def check_grammar(grammar: str) -> None:
    """Raise ``PromptError`` if llguidance does not take a grammar, or takes too much time or memory for it."""
    try:
        done = subprocess.run(child_command(CODE), input=grammar.encode(), capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise PromptError(f"the JSON schema is too complex: it takes more than {SECONDS} seconds to read") from None
    if done.returncode < 0:
        raise PromptError("the JSON schema is too complex: it is nested too deeply, or takes too much memory to read")
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace"))
    if done.stdout:
        raise PromptError(f"the JSON schema cannot be used: {done.stdout.decode()}")


def limits() -> LLParserLimits:
    """Return how much llguidance may take for a grammar, and for each step."""
    return LLParserLimits(max_items_in_row=10_000, max_lexer_states=50_000, verbose_errors=False)


def one_line(error: str) -> str:
    """Return an error of llguidance as one line of limited length, without the advice to change its settings."""
    if error.startswith("NoExtension"):
        return "nothing that fits it can come next"
    line = " ".join(ADVICE.split(error, maxsplit=1)[0].split())
    return line if len(line) <= LONGEST_MESSAGE else line[:LONGEST_MESSAGE] + "..."


def main() -> None:
    """Read a grammar from stdin, and print why it cannot be used, or nothing. This is what the child process runs."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))  # in case the parent is gone
    with contextlib.suppress(ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    grammar = sys.stdin.buffer.read().decode()
    threading.stack_size(STACK)
    with ThreadPoolExecutor(1) as pool:
        print(one_line(pool.submit(first_error, grammar).result()), end="")


def first_error(grammar: str) -> str:
    """Return llguidance's error when it reads a grammar, or follows it for a few bytes. Empty if there is none."""
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0, limits=limits())
    for _ in range(STEPS):
        allowed = int.from_bytes(matcher.compute_bitmask(), "little") & ((1 << 256) - 1)
        if matcher.is_error() or not allowed:
            break
        matcher.consume_token((allowed & -allowed).bit_length() - 1)
    return matcher.get_error()

"""A function in a process of its own, beside the caller's work: for what Python's threads cannot do at once."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
Step = Callable[[], None]


@contextmanager
def in_background(function: Callable[..., Result], *arguments: Any) -> Iterator[Callable[[Step], Result]]:
    """Start ``function(*arguments, on_step=...)``; what is yielded waits for its result, or raises what it raised.

    It calls the ``Step`` it is given once for each step that the function has reported, or reports from then on. Until
    the caller waits, each has torch use half of the processors, since threads that share one wait for each other at
    every product; then the function has all of them. Function, arguments and result must be picklable. The process
    ends with the block, finished or not.
    """
    processors = torch.get_num_threads()
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    awaited = context.Event()
    process = context.Process(target=_run, args=(sender, awaited, function, arguments), daemon=True)
    process.start()
    sender.close()
    torch.set_num_threads(max(1, processors - processors // 2))

    def wait(on_step: Step) -> Result:
        awaited.set()
        while True:
            try:
                kind, value = receiver.recv()
            except EOFError:
                process.join()
                raise ChildProcessError(f"{function.__name__} was ended from outside ({process.exitcode})") from None
            if kind == "result":
                return value
            if kind == "error":
                raise value
            on_step()

    try:
        yield wait
    finally:
        torch.set_num_threads(processors)
        process.terminate()
        process.join()


def _run(sender: Connection, awaited: Event, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the caller ends this one
    processors = torch.get_num_threads()

    def on_step() -> None:
        sender.send(("step", None))
        torch.set_num_threads(processors if awaited.is_set() else half)

    half = max(1, processors // 2)
    torch.set_num_threads(half)
    try:
        result = function(*arguments, on_step=on_step)
    except Exception as error:
        sender.send(("error", error))
    else:
        sender.send(("result", result))

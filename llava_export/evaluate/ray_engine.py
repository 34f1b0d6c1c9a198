"""Items spread over a Ray cluster: each worker loads the packages, and is given one item after the other.

An item whose worker ends without an answer, because it was killed or its machine was lost, is given to a new worker.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from llava_export.errors import DatasetError
from llava_export.evaluate.asking import Asker, Job, absolute, package_digest
from llava_export.evaluate.items import Item
from llava_export.evaluate.records import Record
from llava_runner.errors import PackageError, UserError

CONNECT_SECONDS = 10
ATTEMPTS = 3  # for an item, with a new worker each


class Worker:
    """A process of the cluster that asks. It loads the packages when the first item comes."""

    def __init__(self, job: Job, digests: Sequence[str]) -> None:
        self._job = job
        self._digests = digests
        self._asker: Asker | None = None

    def ask(self, item: Item) -> Record | UserError:
        """Return the record of an item, or the user's mistake that stands in the way."""
        try:
            if self._asker is None:
                self._check_packages()
                self._asker = Asker(self._job)
            return self._asker.ask(item)
        except UserError as error:
            return error

    def _check_packages(self) -> None:
        """Raise ``PackageError`` if this machine has other packages at the same paths, or none."""
        for program, expected in zip(self._job.programs, self._digests, strict=True):
            if package_digest(program) != expected:
                raise PackageError(f"{program} on {os.uname().nodename} is not the package that was named")


def ask_on_ray(
    job: Job, items: Sequence[Item], *, workers: int | None, address: str | None, on_lost: Callable[[Item], None]
) -> Iterator[Record]:
    """Yield the record of each item as it comes, asked by the workers of a cluster.

    Without an ``address`` a cluster is started on this machine, and ended. ``workers`` is one a machine if it is None.
    ``on_lost`` is told of an item whose worker has ended, and which is given to another. Raises ``DatasetError`` where
    there is no cluster, or where an item ends every worker that it is given to.
    """
    check_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of ours reports to nobody
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # read as it is imported: on_lost tells in fewer words
    import ray

    job = from_any_folder(job)
    digests = [package_digest(program) for program in job.programs]
    with _cluster(workers, address) as (count, threads):
        actor = ray.remote(Worker).options(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")
        job = replace(job, threads=job.threads or threads)
        count = min(count, len(items))
        yield from _spread(lambda: actor.remote(job, digests), deque(items), count=count, on_lost=on_lost)


def from_any_folder(job: Job) -> Job:
    """Return a job with absolute paths: a worker has another current folder."""
    return replace(
        job,
        programs=tuple(path.resolve() for path in job.programs),
        folder=job.folder.resolve(),
        against=absolute(job.against),
        parts={name: absolute(part) for name, part in job.parts.items()},
    )


def check_ray() -> None:
    """Raise ``DatasetError`` if Ray is not installed."""
    if not find_spec("ray"):
        raise DatasetError("Ray is missing: pip install llava-export[ray]")


def _spread(start: Any, waiting: deque[Item], *, count: int, on_lost: Callable[[Item], None]) -> Iterator[Record]:
    """Yield the record of each item as it comes. ``start`` starts a worker; at most ``count`` run at a time."""
    import ray
    from ray.exceptions import RayActorError

    attempts: Counter[str] = Counter()
    idle = [start() for _ in range(count)]
    asked: dict[Any, tuple[Any, Item]] = {}
    while waiting or asked:
        while waiting and idle:
            worker, item = idle.pop(), waiting.popleft()
            asked[worker.ask.remote(item)] = (worker, item)
        (done,), _ = ray.wait(list(asked), num_returns=1)
        worker, item = asked.pop(done)
        try:
            found = ray.get(done)
        except RayActorError as error:
            attempts[item.id] += 1
            if attempts[item.id] == ATTEMPTS:
                reason = str(error).strip().partition("\n")[0]
                raise DatasetError(f"item {item.id} has ended {ATTEMPTS} workers, the last: {reason}") from error
            on_lost(item)
            waiting.appendleft(item)
            idle.append(start())
            continue
        if isinstance(found, UserError):
            raise found
        idle.append(worker)
        yield found


def _check_address(address: str) -> None:
    """Raise ``DatasetError`` if nobody listens at a HOST:PORT. Ray itself would try for a quarter of an hour."""
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port):
        raise DatasetError(f"--address: '{address}' is not HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise DatasetError(f"there is no Ray cluster at {address}: {error}") from error


@contextmanager
def _cluster(workers: int | None, address: str | None) -> Iterator[tuple[int, int]]:
    """Connect to a cluster, or start one here. Yield the number of workers, and of the threads of each."""
    if address is not None:
        _check_address(address)
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address is None:
        options |= {"num_cpus": max(workers or 1, os.cpu_count() or 1), "include_dashboard": False}
    try:
        ray.init(address=address or "local", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise DatasetError(f"there is no Ray cluster at {address}: {error}" if address else str(error)) from error
    try:
        machines = [node for node in ray.nodes() if node["Alive"]]
        count = workers or len(machines)
        room = int(ray.cluster_resources().get("CPU", 0))
        if count > room:
            raise DatasetError(f"--workers {count}: the cluster has {room} CPUs, and a worker takes one at least")
        a_machine = -(-count // len(machines))
        yield count, max(1, room // len(machines) // a_machine)
    finally:
        ray.shutdown()

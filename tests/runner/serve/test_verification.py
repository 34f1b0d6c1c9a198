"""The verdict of ``llava verify`` from the server. What stands in for the command here prints and ends at once."""

from __future__ import annotations

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from llava_runner.command import RUN, SERVE
from llava_runner.contract import golden_path, manifest_path
from llava_runner.serve import verification
from llava_runner.serve.child import child_command
from tests.runner.serve.test_clients import wait_until
from tests.runner.serve.test_refusals import error_of

PATH = "/package/verification"
SLOW = "import os, sys, time; open(sys.argv[1] + '.pid', 'a').write(f'{os.getpid()} '); time.sleep(60)"


@pytest.fixture
def program(tmp_path):
    """Return a program with the files that it is compared with, as far as the server looks at them."""
    program = tmp_path / "llava.pte"
    for path in (program, manifest_path(program), golden_path(program)):
        path.touch()
    return program


@pytest.fixture
def make_command(monkeypatch):
    """Return a function that puts Python code in the place of ``llava verify``. It gets the program's path."""
    return lambda code: monkeypatch.setattr(verification, "CODE", code)


def pids(program) -> list[int]:
    """Return the processes that have run SLOW."""
    path = program.with_suffix(".pte.pid")
    return [int(number) for number in path.read_text().split(" ")[:-1]] if path.exists() else []


def is_alive(pid: int) -> bool:
    """Return whether a process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("ending", "code", "verdict"),
    [("PASS", 0, "PASS"), ("FAIL: not what was exported", 1, "FAIL")],
)
def test_the_verdict_is_that_of_the_command(make_client, make_command, program, ending, code, verdict):
    make_command(f"import os, sys; print(sys.argv[1], os.environ['COLUMNS'], 'ü'); print({ending!r}); sys.exit({code})")
    reply = make_client(program=program).post(PATH, json={})
    assert reply.json() == {"verdict": verdict, "text": f"{program} 80 ü\n{ending}"}
    assert reply.status_code == 200


def test_a_verdict_is_made_once(make_live, make_command, program):
    make_command(SLOW.replace("60", "0.5") + "; print('PASS')")
    live = make_live(program=program)

    def ask(_=None) -> tuple[int, bytes]:
        connection = HTTPConnection(urlsplit(live.url).netloc, timeout=30)
        connection.request("POST", PATH, "{}", {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()

    with ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(ask, range(3)))
    assert [*replies, ask()] == [(200, b'{"verdict":"PASS","text":"PASS"}')] * 4
    assert len(pids(program)) == 1


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; print('error: llava.pte is cut', file=sys.stderr); sys.exit(2)", "error: llava.pte is cut"),
        ("print('PASS'); 1 / 0", "ZeroDivisionError: division by zero"),
        ("print('PASS later')", "it ended with code 0"),
        ("import os; os.kill(os.getpid(), 9)", "it ended with code -9"),
    ],
)
def test_a_command_without_a_verdict_is_told_and_may_come_again(make_client, make_command, program, code, said):
    client = make_client(program=program)
    make_command(code)
    message = error_of(client.post(PATH, json={}), 500)["message"]
    assert message == f"llava verify came to no verdict: {said}. To try again: llava verify {program.parent}"
    make_command("print('PASS')")
    assert client.post(PATH, json={}).json()["verdict"] == "PASS"


def test_a_command_that_takes_too_long_is_ended(make_client, make_command, program):
    make_command(SLOW)
    begin = time.monotonic()
    reply = make_client(program=program, seconds=1).post(PATH, json={})
    assert time.monotonic() - begin < 30  # and SLOW takes 60
    assert "it takes more than 1 seconds" in error_of(reply, 500)["message"]
    (pid,) = pids(program)
    assert not is_alive(pid)


def test_a_server_that_stops_ends_the_command(make_live, make_command, program):
    make_command(SLOW)
    live = make_live(program=program)
    connection = HTTPConnection(urlsplit(live.url).netloc, timeout=30)
    connection.request("POST", PATH, "{}", {"Content-Type": "application/json"})
    wait_until(lambda: pids(program))
    live.server.should_exit = True
    assert connection.getresponse().status == 503
    (pid,) = pids(program)
    assert not is_alive(pid)


def test_the_command_ends_with_a_server_that_is_killed(program):
    """What SIGKILL ends tells nobody. The end of a pipe tells when the command has ended."""
    os.mkfifo(pipe := program.with_suffix(".fifo"))
    busy = "ctypes.PyDLL(None).sleep(60)"  # as a model that computes, it lets no other thread of Python run
    server = f"""
import asyncio, sys
from pathlib import Path
from llava_runner.serve import verification

verification.CODE = "import ctypes; held = open({str(pipe)!r}, 'w'); held.write('begun'); held.flush(); {busy}"
asyncio.run(verification.Verification(Path({str(program)!r}), seconds=60).verdict())
"""
    with subprocess.Popen(child_command(server)) as process, pipe.open() as found:
        assert found.read(5) == "begun"
        process.kill()
        begin = time.monotonic()
        assert found.read() == "" and time.monotonic() - begin < 30


@pytest.mark.parametrize("lacks", ["golden record", "manifest", "llava-export"])
def test_what_cannot_be_verified_here_is_refused_with_the_command(make_client, program, monkeypatch, lacks):
    if lacks == "llava-export":
        monkeypatch.setattr(verification, "installed_commands", lambda: (RUN, SERVE))
    else:
        (golden_path if lacks == "golden record" else manifest_path)(program).unlink()
    error = error_of(make_client(program=program).post(PATH, json={}), 404)
    assert error["code"] == "cannot_verify"
    assert error["message"].endswith(f": llava verify {program.parent}")


def test_a_verification_is_a_request_like_others(make_client, make_command, program):
    """Also with a body that says something: the command gets nothing of it."""
    make_command(SLOW)
    client = make_client(program=program, api_key="secret")
    key = {"Authorization": "Bearer secret"}
    error_of(client.post(PATH, json={}), 401)
    error_of(client.post(PATH, json={}, headers={**key, "Origin": "http://evil.example"}), 403)
    error_of(client.post(PATH, json={}, headers={**key, "Host": "evil.example"}), 403)
    error_of(client.post(PATH, headers=key), 415)
    error_of(client.get(PATH, headers=key), 405)
    assert error_of(client.post(PATH, json={"program": "/etc/passwd"}, headers=key), 400)["param"] == "program"
    assert pids(program) == []

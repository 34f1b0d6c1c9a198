"""The command line of ``llava serve``. ``tests/integration/test_serve.py`` runs it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from llava_runner.errors import PromptError
from llava_runner.serve.cli import build_parser
from llava_runner.serve.server import is_loopback, listen, url_of


def test_where_the_extra_is_not_installed_the_command_says_how():
    code = """
import sys
sys.modules["fastapi"] = None
from llava_runner.command import main
main(["serve", "package"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: llava serve needs fastapi: pip install 'llava-runner[serve]'\n"


def test_only_this_machine_is_answered_unless_told_otherwise():
    assert build_parser().parse_args(["package"]).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "shown", "is_alone"),
    [("127.0.0.1", "127.0.0.1", True), ("0.0.0.0", "localhost", False)],
)
def test_the_address_that_is_printed_leads_to_the_page(host, shown, is_alone):
    with listen(host, 0) as listener:
        assert url_of(listener) == f"http://{shown}:{listener.getsockname()[1]}/"
        assert is_loopback(listener) == is_alone


def test_a_port_in_use_is_told_with_one_address():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        told = f"cannot listen at 127.0.0.1, port {port}: Address already in use"
        with pytest.raises(PromptError, match=f"^{re.escape(told)}$"):
            listen("127.0.0.1", port)

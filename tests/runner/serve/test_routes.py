"""What the server tells besides answers: the page, the package, the model, and counts."""

from __future__ import annotations

import re

import pytest

from llava_runner.arguments import version_line
from llava_runner.contract import manifest_path
from llava_runner.serve.page_files import page_files
from llava_runner.serve.verification import verification_of
from tests.runner.serve.conftest import PACKAGE, data_url, user
from tests.runner.serve.test_refusals import error_of


@pytest.fixture
def page(tmp_path):
    """Return the files of a page, in a folder with others."""
    (tmp_path / "index.html").write_text("<!doctype html><title>llava</title>")
    (tmp_path / "page.js").write_text("export {};")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "folder.js").mkdir()
    return page_files(tmp_path)


def test_the_page_has_its_own_files_alone(make_client, page):
    client = make_client(page=page)
    assert sorted(page) == ["index.html", "page.js"]
    for path in ("/", "/index.html"):
        reply = client.get(path)
        assert (reply.text, reply.headers["content-type"]) == (
            "<!doctype html><title>llava</title>",
            "text/html; charset=utf-8",
        )
    assert client.get("/page.js").headers["content-type"] == "text/javascript; charset=utf-8"
    for path in ("/secret.txt", "/folder.js", "/page.js/", "/page.js%00", "/Page.js", "/x/../secret.txt"):
        assert client.get(path).status_code == 404


def test_the_package_and_the_model_are_told(client):
    assert client.get("/package").json() == PACKAGE
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "fake"
    assert client.get("/v1/models/fake").json() == model
    error_of(client.get("/v1/models/other"), 404)
    assert client.get("/openapi.json").json()["info"]["version"] == version_line()


def test_counts_are_those_of_the_answers(make_client):
    client = make_client(max_context_len=512)
    question = {"messages": [user("What is this?", data_url())], "max_tokens": 5, "temperature": 0}
    replies = [client.post("/v1/chat/completions", json=question).json() for _ in range(2)]
    client.get("/nowhere")
    counts = dict(re.findall(r"^(llava_\S+) (\S+)$", client.get("/metrics").text, re.MULTILINE))
    counts = {name: float(count) for name, count in counts.items()}
    assert counts['llava_requests_total{path="/v1/chat/completions",status="200"}'] == 2
    assert counts['llava_requests_total{path="other",status="404"}'] == 1
    assert counts["llava_prompt_tokens_total"] == sum(reply["timings"]["prompt_n"] for reply in replies)
    assert counts["llava_completion_tokens_total"] == 10
    assert counts['llava_answers_total{reason="length"}'] == 2
    assert counts["llava_time_to_first_token_seconds_count"] == 2
    assert counts["llava_requests_waiting"] == counts["llava_requests_running"] == 0


def test_what_is_known_of_a_program_is_what_the_manifest_says(tmp_path):
    program = tmp_path / "llava.pte"
    program.write_bytes(b"program")
    assert verification_of(program, is_checked=False) == {
        "text": "The package has no manifest: nothing says what its program should be.",
        "command": f"llava verify {tmp_path}",
    }
    manifest_path(program).write_text("{}")
    assert "no manifest" in verification_of(program, is_checked=True)["text"]

"""The page of ``llava serve`` in Debian's Chromium, in front of a server whose answers are not computed."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

from tests.runner.serve.browser import DESKTOP, INSTALL, PHONE, Browser, can_drive
from tests.runner.serve.fake_server import FakeServer, fake_server

AXE = Path(__file__).parent / "node_modules/axe-core/axe.min.js"
IMAGE = Image.linear_gradient("L").convert("RGB")  # 256 pixels wide and high


def lacking(what: str, how: str) -> None:
    """Skip the test, and say why. Fail instead where everything is meant to be tested (``LLAVA_TEST_ALL=1``)."""
    if os.environ.get("LLAVA_TEST_ALL"):
        pytest.fail(f"{what} is missing: {how}")
    pytest.skip(f"{what} is missing: {how}")


@pytest.fixture(scope="module")
def one_browser() -> Iterator[Browser]:
    if not can_drive():
        lacking("Chromium", INSTALL)
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def browser(one_browser) -> Iterator[Browser]:
    """Return the browser with a wide and light window. At the end it must not have complained about the page."""
    one_browser.show()
    yield one_browser
    # Statuses that are no success are what some tests want.
    assert [it for it in one_browser.complaints() if "Failed to load resource" not in it] == []


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with fake_server() as server:
        yield server


def sent_images(request: dict) -> list[Image.Image]:
    """Return the images of a request, in order."""
    parts = [part for message in request["messages"] if message["role"] == "user" for part in message["content"]]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_an_image_is_asked_about_and_asked_about_again(browser, server, how):
    browser.open(server.url)
    browser.hand_over(IMAGE, how=how)
    browser.ask("What is in the image?")
    assert browser.wait_for_answer(1) == "Questions: 1, images: 1."
    browser.ask("And where?")
    assert browser.wait_for_answer(2) == "Questions: 2, images: 1."
    first, second = server.requests
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][:1] == first["messages"]  # to the byte, so that the server need not read it again
    assert second["messages"][1]["content"] == "Questions: 1, images: 1."
    assert sent_images(second)[0].tobytes() == IMAGE.tobytes()
    assert browser.texts(".timings")[1].splitlines() == [
        "prompt 38 ms, 21 tokens, 64 kept",
        "answer 412 ms, 38.8 tokens/s",
    ]


def test_a_chosen_large_image_is_made_smaller_before_it_is_sent(browser, server, tmp_path):
    IMAGE.resize((4000, 1000)).save(tmp_path / "photo.jpg")
    browser.open(server.url)
    browser.find("#file").send_keys(str(tmp_path / "photo.jpg"))
    browser.wait("!document.getElementById('attachment').hidden")
    assert browser.texts("#attachment .name") == ["photo.jpg"]
    browser.click("#suggestions button")
    browser.wait_for_answer()
    (image,) = sent_images(server.requests[0])
    assert (image.format, image.size) == ("JPEG", (1600, 400))


def test_what_is_no_image_is_refused_and_the_question_stays(browser, server, tmp_path):
    (tmp_path / "notes.png").write_bytes(b"not an image")
    browser.open(server.url)
    browser.find("#question").send_keys("What is this?")
    browser.hand_over(tmp_path / "notes.png")
    browser.wait("!document.getElementById('problem').hidden")
    assert browser.texts("#problem") == ["This browser cannot read notes.png as an image. JPEG, PNG and WebP work."]
    assert browser.find("#question").get_property("value") == "What is this?"


def test_the_answer_is_shown_while_it_comes_and_can_be_stopped_and_retried(browser, server):
    server.answer, server.pause = "word " * 500, 0.03
    browser.open(server.url)
    browser.ask("Say a lot.")
    browser.wait("document.querySelector('.answer > .text').textContent.length > 20")
    assert browser.find(".answer").get_attribute("aria-busy") == "true"
    browser.find("#question").send_keys(Keys.ESCAPE)
    stopped = browser.wait_for_answer()
    assert 20 < len(stopped) < 2000 and browser.texts(".note") == ["Stopped."]
    assert server.client_left.wait(5)
    server.answer, server.pause = None, 0
    browser.click(".retry")
    browser.wait("document.querySelector('.answer > .text').textContent === 'Questions: 1, images: 0.'")
    assert [request["temperature"] for request in server.requests] == [0, 0]
    browser.wait_for_answer()
    browser.click(".retry")  # the likeliest answer would come again
    browser.wait("document.querySelector('.note').textContent.startsWith('Another answer')")
    assert server.requests[2]["temperature"] > 0 and len(server.requests[2]["messages"]) == 1


def test_an_answer_that_a_reload_ended_can_be_retried(browser, server):
    server.answer, server.pause = "word " * 500, 0.03
    browser.open(server.url)
    browser.ask("Say a lot.")
    browser.wait("document.querySelector('.answer > .text').textContent.length > 20")
    browser.reload()
    assert browser.texts(".note") == ["Stopped."]
    server.answer, server.pause = None, 0
    browser.click(".retry")
    browser.wait("document.querySelector('.answer > .text').textContent === 'Questions: 1, images: 0.'")


def test_a_screen_reader_hears_an_answer_once(browser, server):
    browser.open(server.url)
    browser.driver.execute_script(
        "window.heard = []; const status = document.getElementById('status');"
        "new MutationObserver(() => heard.push(status.textContent)).observe(status, {childList: true});"
    )
    browser.ask("What is this?")
    browser.wait("heard.length >= 2")
    assert browser.driver.execute_script("return heard") == ["Answering.", "Answer: Questions: 1, images: 0."]


def test_answers_are_copied(browser, server):
    browser.open(server.url)
    for number, has_clipboard in enumerate((True, False), start=1):
        if not has_clipboard:  # as on a page by plain http from another machine
            browser.driver.execute_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        browser.ask("What is this?")
        answer = browser.wait_for_answer(number)
        browser.click(f".turn:nth-child({number}) .copy")
        browser.wait(f"document.querySelectorAll('.copy')[{number - 1}].textContent.trim() === 'Copied'")
        browser.find("#question").send_keys(Keys.CONTROL, "v")
        assert browser.find("#question").get_property("value") == answer == f"Questions: {number}, images: 0."
        browser.find("#question").clear()


def test_conversations_are_found_after_a_reload_until_they_are_deleted(browser, server):
    browser.open(server.url)
    browser.hand_over(IMAGE)
    browser.ask("What is in the image?")
    browser.wait_for_answer()
    browser.click("#new")
    browser.ask("<b>Is this bold?</b>")
    browser.wait_for_answer()
    browser.reload()
    assert browser.texts("#conversations .label") == ["<b>Is this bold?</b>", "What is in the image?"]
    assert browser.texts(".question .text") == ["<b>Is this bold?</b>"]
    browser.click("#conversations li:nth-child(2) .open")
    browser.wait("document.querySelector('.question img')?.naturalWidth === 256")
    browser.ask("And now?")
    assert browser.wait_for_answer(2) == "Questions: 2, images: 1."
    for left in (1, 0):
        browser.click("#conversations li [aria-current] + .delete")
        browser.click("#delete-dialog .danger")
        browser.wait(f"document.querySelectorAll('#conversations li').length === {left}")
        browser.wait("!document.getElementById('welcome').hidden")
        if left:
            browser.click("#conversations .open")
            browser.wait("document.querySelectorAll('.turn').length === 1")
    browser.reload()
    assert browser.texts("#conversations .label") == [] and browser.is_shown("#welcome")


@pytest.mark.parametrize(
    ("lack", "note"),
    [
        (
            "Object.defineProperty(window, 'indexedDB', {value: undefined})",
            "This browser keeps nothing: gone on reload.",
        ),
        ("IDBObjectStore.prototype.put = () => { throw Error() }", "This browser has no room to keep conversations."),
    ],
    ids=["no storage", "full"],
)
def test_a_browser_without_storage_can_ask(browser, server, lack, note):
    added = browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": lack})
    browser.open(server.url)
    browser.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    browser.hand_over(IMAGE)
    browser.ask("What is in the image?")
    browser.wait_for_answer()
    browser.ask("And where?")
    assert browser.wait_for_answer(2) == "Questions: 2, images: 1."
    assert browser.texts("#storage-note") == [note]


def test_an_answer_goes_on_while_another_conversation_is_read(browser, server):
    server.pause = 0.2
    browser.open(server.url)
    browser.ask("First")
    browser.wait("document.querySelectorAll('#conversations li').length === 1")
    browser.click("#new")
    server.pause = 0
    browser.ask("Second")
    assert browser.wait_for_answer() == "Questions: 1, images: 0."
    browser.click("#conversations li:nth-child(2) .open")
    browser.wait("document.getElementById('title').textContent === 'First'")
    assert browser.wait_for_answer() == "Questions: 1, images: 0."


def test_a_busy_server_is_asked_again(browser, server):
    server.refusals = [(429, {"Retry_After": "1"})]
    browser.open(server.url)
    browser.ask("What is this?")
    browser.wait("document.querySelector('.waiting')?.textContent.includes('busy')")
    assert browser.texts(".waiting") == ["The server is busy with other questions. Asking again in 1 s"]
    assert browser.wait_for_answer() == "Questions: 1, images: 0."


def test_the_key_is_asked_for_and_kept(browser, server):
    server.key = "right"
    browser.open(server.url)
    for key in ("wrong", "right"):
        browser.wait("document.getElementById('key-dialog').open")
        assert browser.is_shown("#key-wrong") is (key == "right")
        browser.find("#key").send_keys(key, Keys.ENTER)
    browser.wait("document.getElementById('package-model').textContent === 'tiny-llava'")
    browser.reload()
    browser.ask("What is this?")
    assert browser.wait_for_answer() == "Questions: 1, images: 0."


def test_a_refusal_a_cut_and_a_stopped_server_are_told(browser, server):
    browser.open(server.url)
    server.refusals = [(400, {})]
    browser.hand_over(IMAGE)
    browser.ask("First")
    browser.wait_for_answer(1)
    assert browser.texts(".note") == ["refused with 400"]
    server.breaks_off = True
    browser.ask("Second")  # with the image that the first question was about
    assert browser.wait_for_answer(2) == "Questions: 1,"
    assert browser.texts(".note")[1:] == ["The connection ended before the answer did."]
    assert len(sent_images(server.requests[0])) == 1
    server.server_close()
    server.shutdown()
    browser.ask("Third")
    browser.wait_for_answer(3)
    assert browser.texts(".failed .note")[-1] == "The server does not answer. Is “llava serve” still running?"
    assert browser.is_shown(".turn:last-child .retry")


def test_the_package_is_one_click_away(browser, server):
    browser.open(server.url)
    browser.wait("document.getElementById('package-recipe').textContent === '8da4w'")
    browser.click("#package")
    facts = browser.texts("#package-facts dt, #package-facts dd")
    assert dict(zip(facts[::2], facts[1::2], strict=True)) == {
        "Model": "tiny-llava",
        "Recipe": "8da4w (vision 8da8w, embedding bits 8)",
        "Program": "llava.pte",
        "Context": "512 tokens",
        "Image size": "64 pixels",
        "An image takes": "64 tokens",
        "Engine": "C++",
        "Version": "0.2.0",
    }
    assert browser.texts("#proof, #proof-command") == ["6 files intact. <b>Not</b> bold.", "llava verify demo"]


def test_the_page_follows_the_system_until_the_switch_is_set(browser, server):
    themes = "document.documentElement.dataset.theme"
    browser.show(theme="dark")
    browser.open(server.url)
    browser.wait(f"{themes} === 'dark'")
    browser.click("#theme")
    browser.wait(f"{themes} === 'light'")
    browser.reload()
    browser.wait(f"{themes} === 'light'")
    browser.show(theme="light")
    browser.click("#theme")
    browser.click("#theme")  # as the system has it, so it is followed again
    browser.show(theme="dark")
    browser.wait(f"{themes} === 'dark'")


def test_the_page_can_be_used_with_the_keyboard_alone(browser, server):
    browser.show(PHONE)
    browser.open(server.url)

    def press(*keys: str) -> str:
        browser.driver.switch_to.active_element.send_keys(*keys)
        return browser.driver.execute_script("return document.activeElement.id || document.activeElement.className")

    browser.find("#open-sidebar").send_keys(Keys.ENTER)
    assert browser.driver.switch_to.active_element.get_attribute("id") == "close-sidebar"
    assert press(Keys.TAB) == "new"
    assert press(Keys.ESCAPE) == "open-sidebar"
    browser.find("#package").send_keys(Keys.ENTER)
    assert browser.driver.switch_to.active_element.get_attribute("id") == "package-title"
    assert press(Keys.ESCAPE) == "package"
    assert not browser.is_shown("#sidebar")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(browser, server, size, theme):
    if not AXE.exists():
        lacking("axe-core", "npm install --prefix tests/runner/serve --no-package-lock")
    browser.show(size, theme=theme)
    browser.open(server.url)
    browser.driver.execute_script(AXE.read_text())

    def check(state: str) -> None:
        script = "axe.run({resultTypes: ['violations']}).then((found) => arguments[0](found.violations))"
        found = browser.driver.execute_async_script(script)
        told = [(it["id"], [node["target"] for node in it["nodes"]], it["nodes"][0]["failureSummary"]) for it in found]
        assert told == [], state
        wide = browser.driver.execute_script("return document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{state}: the page is wider than the window"

    check("welcome")
    browser.hand_over(IMAGE)
    browser.wait("!document.getElementById('suggestions').hidden")
    check("image")
    browser.ask("What is in the image? " + "w" * 200)
    browser.wait_for_answer(1)
    server.refusals = [(400, {})]
    browser.ask("And this?")
    browser.wait_for_answer(2)
    check("answer and refusal")
    browser.click("#package")
    check("package")
    browser.click("#package-dialog .close")
    if size == PHONE:
        browser.click("#open-sidebar")
        check("list of conversations")
    browser.click("#conversations .delete")
    check("deletion")

"""Conversations are kept in the browser."""

from __future__ import annotations

import pytest

from tests.runner.serve.page.browser import IMAGE


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
            browser.wait("document.querySelector('#conversations [aria-current]') !== null")
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

"""The page in front of the real server, on a model that is not real."""

from __future__ import annotations

from selenium.webdriver.common.keys import Keys

from llava_runner.contract import GenerationDefaults
from llava_runner.serve.page_files import page_files
from tests.runner.serve.conftest import CONTEXT
from tests.runner.serve.page.browser import IMAGE


def test_the_page_shows_the_answers_of_the_runner(browser, make_live, make_session):
    card = {"max_context_len": CONTEXT, "generation": GenerationDefaults(0.0, 1.0, max_new_tokens=5)}
    session = make_session(**card)
    browser.open(make_live(page=page_files(), api_key="right", **card).url)
    browser.wait("document.getElementById('key-dialog').open")
    browser.find("#key").send_keys("right", Keys.ENTER)
    browser.wait("document.getElementById('package-model').textContent === 'fake'")
    for number, (question, image) in enumerate((("What is this?", IMAGE), ("Is it red?", None)), start=1):
        if image:
            browser.hand_over(image)
        browser.ask(question)
        browser.wait_for_answer(number)
        expected = "".join(session.chat(question, image=image, temperature=0))
        assert browser.find(f".turn:nth-child({number}) .answer > .text").get_property("textContent") == expected
    assert [line.split()[0] for line in browser.texts(".timings")[0].splitlines()] == ["image", "prompt", "answer"]
    assert browser.texts(".note")[0] == "The answer is cut off here: the context or the limit of tokens is full."
    browser.click(".turn:last-child .retry")
    browser.wait_for_answer(2)
    assert browser.texts(".failed") == []
    browser.reload()
    assert browser.texts(".question .text") == ["What is this?", "Is it red?"]

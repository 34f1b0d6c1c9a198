"""Questions, images and answers, and what is told when there is no answer."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys

from tests.runner.serve.page.browser import IMAGE
from tests.runner.serve.page.fake_server import sent_images


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

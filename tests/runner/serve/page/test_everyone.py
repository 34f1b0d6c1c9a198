"""The page can be used by everyone: any theme, width, keyboard, or screen reader."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys

from tests.runner.serve.page.browser import DESKTOP, IMAGE, PHONE


def test_a_screen_reader_hears_an_answer_once(browser, server):
    browser.open(server.url)
    browser.driver.execute_script(
        "window.heard = []; const status = document.getElementById('status');"
        "new MutationObserver(() => heard.push(status.textContent)).observe(status, {childList: true});"
    )
    browser.ask("What is this?")
    browser.wait("heard.length >= 2")
    assert browser.driver.execute_script("return heard") == ["Answering.", "Answer: Questions: 1, images: 0."]


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
    assert browser.texts("#verification, #verify-command") == ["6 files intact. <b>Not</b> bold.", "llava verify demo"]


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
def test_axe_finds_nothing(browser, server, axe, size, theme):
    browser.show(size, theme=theme)
    browser.open(server.url)
    browser.driver.execute_script(axe)

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
    server.may_verify.clear()
    browser.click("#verify")
    check("verifying")
    server.may_verify.set()
    browser.wait("!document.getElementById('verdict-output').hidden")
    check("verdict")
    browser.click("#package-dialog .close")
    if size == PHONE:
        browser.click("#open-sidebar")
        check("list of conversations")
    browser.click("#conversations .delete")
    check("deletion")

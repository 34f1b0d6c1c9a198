"""The button that verifies the package."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys

from tests.runner.serve.page.browser import PHONE
from tests.runner.serve.page.fake_server import PACKAGE

SAID = "document.getElementById('verdict').textContent"
PASS = "PASS: the program answers as the original model, within what its recipe allows."
FAIL = "FAIL: the program is not what was exported."


def open_package(browser, server) -> None:
    """Open the package's dialog."""
    browser.open(server.url)
    browser.wait("document.getElementById('package-recipe').textContent === '8da4w'")
    browser.click("#package")


@pytest.mark.parametrize(("verdict", "told"), [("PASS", PASS), ("FAIL", FAIL)])
def test_the_verdict_is_one_click_away(browser, server, verdict, told):
    server.verdict = {"verdict": verdict, "text": "a  1\n<b>b</b>  2"}
    server.may_verify.clear()
    open_package(browser, server)
    browser.find("#verify").send_keys(Keys.ENTER)
    browser.wait(f"{SAID}.startsWith('Verifying…')")
    assert browser.find("#verify").get_attribute("aria-disabled") == "true"
    browser.find("#verify").send_keys(Keys.ENTER)  # does nothing
    browser.click("#package-dialog .close")
    browser.click("#package")
    assert browser.texts("#verdict") == ["Verifying… A large model takes minutes."]
    server.may_verify.set()
    browser.wait("document.getElementById('verify').hidden")
    assert browser.texts("#verdict, #verdict-output") == [told, "a  1\n<b>b</b>  2"]
    browser.click("#package-dialog .close")
    browser.click("#package")
    assert browser.texts("#verdict") == [told] and not browser.is_shown("#verify")
    assert server.verifications == 1


def test_the_focus_goes_from_the_button_to_the_output(browser, server):
    open_package(browser, server)
    browser.find("#verify").send_keys(Keys.ENTER)
    browser.wait("document.activeElement.id === 'verdict-output'")


def test_a_verification_that_is_refused_can_be_asked_for_again(browser, server):
    open_package(browser, server)
    server.refusals = [(500, {})]
    browser.click("#verify")
    browser.wait(f"{SAID} === 'refused with 500'")
    browser.click("#verify")
    browser.wait(f"{SAID} === {PASS!r}")


def test_there_is_no_button_where_the_server_cannot_verify(browser, server, monkeypatch):
    monkeypatch.setitem(PACKAGE, "verification", {**PACKAGE["verification"], "can_verify": False})
    open_package(browser, server)
    assert browser.is_shown("#verify-command") and not browser.is_shown("#verify")


def test_a_long_output_scrolls_on_a_phone(browser, server):
    browser.show(PHONE)
    open_package(browser, server)
    browser.click("#verify")
    browser.wait("!document.getElementById('verdict-output').hidden")
    wider = "const it = document.getElementById(arguments[0]); return it.scrollWidth > it.clientWidth"
    assert browser.driver.execute_script(wider, "verdict-output")
    assert not browser.driver.execute_script(wider, "package-dialog")

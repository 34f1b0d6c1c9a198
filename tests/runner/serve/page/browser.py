"""Debian's Chromium, driven by Selenium, with what the tests of the page and its screenshots do in it."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path

from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

INSTALL = "apt-get install --no-install-recommends chromium chromium-driver"
DESKTOP = (1280, 800)
PHONE = (390, 844)
IMAGE = Image.linear_gradient("L").convert("RGB")  # 256 pixels wide and high

# Gives the page a file as if it was dropped, pasted, or chosen.
HAND_OVER = """
const [kind, name, type, base64] = arguments;
const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], name, { type }));
const options = { bubbles: true, cancelable: true };
if (kind === "drop") {
  for (const event of ["dragenter", "dragover", "drop"])
    document.body.dispatchEvent(new DragEvent(event, { ...options, dataTransfer: transfer }));
} else if (kind === "paste") {
  document.activeElement.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
}
"""


def can_drive() -> bool:
    """Return whether Chromium and its driver are installed."""
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


class Browser:
    """A headless browser with one tab."""

    def __init__(self) -> None:
        """Start Chromium. It takes a second."""
        options = ChromeOptions()
        options.binary_location = shutil.which("chromium") or "chromium"
        # The sandbox does not work for root, and /dev/shm is small in containers.
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = Chrome(options=options, service=Service(shutil.which("chromedriver")))

    def close(self) -> None:
        """End Chromium."""
        self.driver.quit()

    def show(self, size: tuple[int, int] = DESKTOP, *, theme: str = "light", scale: int = 1) -> None:
        """Set the size of the window in CSS pixels, and what the system says about light and dark."""
        width, height = size
        is_phone = size == PHONE
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": is_phone}
        features = [
            {"name": "prefers-color-scheme", "value": theme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": is_phone})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, url: str) -> None:
        """Open the page, and wait until it is ready."""
        self.driver.get(url)
        self.wait("document.body.classList.contains('ready')")

    def reload(self) -> None:
        """Load the page again, and wait until it is ready."""
        self.driver.refresh()
        self.wait("document.body.classList.contains('ready')")

    def wait(self, condition: str, *, seconds: float = 10) -> None:
        """Wait until an expression in JavaScript is true. Raises ``TimeoutException``."""
        waiting = WebDriverWait(self.driver, seconds, poll_frequency=0.03)
        waiting.until(lambda driver: driver.execute_script(f"return {condition}"), condition)

    def find(self, selector: str) -> WebElement:
        """Return the first element of a CSS selector."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        """Click on the first element of a CSS selector. Raises where it cannot be clicked."""
        self.find(selector).click()

    def texts(self, selector: str) -> list[str]:
        """Return the text that is seen of each element of a CSS selector."""
        return [element.text for element in self.driver.find_elements(By.CSS_SELECTOR, selector)]

    def is_shown(self, selector: str) -> bool:
        """Return whether an element is seen."""
        return self.find(selector).is_displayed()

    def hand_over(self, image: Path | Image.Image, *, how: str = "drop", kind: str = "png") -> None:
        """Drop or paste an image, and wait until it is attached."""
        if isinstance(image, Image.Image):
            buffer = io.BytesIO()
            image.save(buffer, kind)
            name, content = f"image.{kind}", buffer.getvalue()
        else:
            name, content = image.name, image.read_bytes()
        self.driver.execute_script(HAND_OVER, how, name, f"image/{kind}", base64.b64encode(content).decode())

    def ask(self, question: str) -> None:
        """Write a question and press Enter."""
        self.find("#question").send_keys(question, Keys.ENTER)

    def wait_for_answer(self, number: int = 1) -> str:
        """Wait until the answer to a question has ended and is kept. Return what is shown of it."""
        ended = f"document.querySelectorAll('.answer[aria-busy=false]').length >= {number}"
        self.wait(f"{ended} && document.getElementById('stop').hidden")
        return self.texts(".answer > .text")[number - 1]

    def complaints(self) -> list[str]:
        """Return what the browser complained about since the last call, such as a violated policy."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

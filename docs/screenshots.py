"""Makes the images of the page of ``llava serve`` that the documentation shows.

Usage, in the root of a checkout after ``make demo``, with Chromium and its driver from Debian, and the font Inter:
    apt-get install --no-install-recommends chromium chromium-driver fonts-inter
    python -m docs.screenshots demo
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from tests.runner.serve.page.browser import DESKTOP, PHONE, Browser

IMAGES = Path(__file__).parent / "images"
CONVERSATIONS = (
    ("What color is the square?", "Where is the circle?"),
    ("What is in the image?", "What color is the circle?"),
)


@contextmanager
def served(package: Path) -> Iterator[str]:
    """Serve a package until the end of the ``with`` block. Yield the address of the page."""
    command = [sys.executable, "-m", "llava_runner.command", "serve", str(package), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[0]
        finally:
            server.terminate()


def talk(browser: Browser, image: Path) -> None:
    """Have the conversations that are seen, each about the image. The last one is on the screen."""
    for questions in CONVERSATIONS:
        browser.click("#new")
        browser.hand_over(image)
        browser.wait("!document.getElementById('attachment').hidden")
        for number, question in enumerate(questions, start=1):
            browser.ask(question)
            print(f"{question}  {browser.wait_for_answer(number)}")


def shoot(browser: Browser, path: Path) -> None:
    """Write what the window shows. An alpha channel without use is left out."""
    Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB").save(path, optimize=True)
    print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


def main(package: Path) -> None:
    """Write the page in four versions: wide and narrow, light and dark."""
    browser = Browser()
    try:
        with served(package) as url:
            browser.show()
            browser.open(url)
            talk(browser, package / "image.png")
            for name, size in (("desktop", DESKTOP), ("phone", PHONE)):
                for theme in ("light", "dark"):
                    browser.show(size, theme=theme)
                    browser.reload()
                    shoot(browser, IMAGES / f"serve_{name}_{theme}.png")
    finally:
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""English prose from Debian's documentation packages, dealt into parts that share no paragraph."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path

# Debian packages, and where each has its pages in English.
PACKAGES = {
    "debian-faq": "usr/share/doc/debian/FAQ/*.html",
    "debian-handbook": "usr/share/doc/debian-handbook/html/en-US/*.html",
    "debian-reference-en": "usr/share/debian-reference/*.en.html",
    "developers-reference": "usr/share/developers-reference/*.html",
}
LANGUAGE = re.compile(r"\.([a-z]{2})(-[a-z]+)?\.html$")  # in the names of pages that several languages share
SHORTEST = 150  # characters; shorter paragraphs are captions, menus and commands
BLOCKS = {
    "blockquote", "body", "dd", "div", "dl", "dt", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "section",
    "td", "th", "tr", "ul",
}  # fmt: skip
LEFT_OUT = {"pre", "script", "style", "table"}  # their text is no prose
PARTS = ("calibration", "development", "page")


def download(folder: Path) -> None:
    """Get the packages from the Debian archive that this machine uses, and unpack them into ``folder``."""
    for package in PACKAGES:
        target = folder / package
        if target.exists():
            continue
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = folder.glob(f"{package}_*.deb")
        partial = folder / f"{package}.partial"
        subprocess.run(["dpkg-deb", "--extract", archive, partial], check=True)
        partial.rename(target)
        archive.unlink()


def documents(folder: Path) -> list[list[str]]:
    """Return the paragraphs of each page of the unpacked packages, in a fixed order."""
    found = []
    for package, pattern in PACKAGES.items():
        for page in sorted((folder / package).glob(pattern)):
            language = LANGUAGE.search(page.name)
            if language is None or language[1] == "en":
                found.append(paragraphs(page.read_text(encoding="utf-8", errors="replace")))
    return found


def paragraphs(page: str) -> list[str]:
    """Return the paragraphs of prose of an HTML page: one line each, without markup."""
    reader = _Paragraphs()
    reader.feed(page)
    reader.close()
    return [text for text in reader.found if len(text) >= SHORTEST]


def deal(pages: Iterable[list[str]]) -> dict[str, list[str]]:
    """Return the paragraphs of each part, by ``PARTS``. All of a page go to the part that has the least text so far.

    A paragraph that was dealt before is left out, so that no part has what another one has.
    """
    parts: dict[str, list[str]] = {name: [] for name in PARTS}
    sizes = dict.fromkeys(PARTS, 0)
    seen: set[str] = set()
    for page in pages:
        fresh = [text for text in dict.fromkeys(page) if text not in seen]
        seen.update(fresh)
        smallest = min(PARTS, key=sizes.__getitem__)
        parts[smallest] += fresh
        sizes[smallest] += sum(map(len, fresh))
    return parts


class _Paragraphs(HTMLParser):
    """Collects in ``found`` the text of ``<p>`` and ``<div class="para">``, up to the next block."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._text: list[str] = []
        self._is_open = False
        self._left_out = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a paragraph, or end one."""
        self._left_out += tag in LEFT_OUT
        if tag in BLOCKS | LEFT_OUT:
            self._end()
            classes = (dict(attrs).get("class") or "").split()
            self._is_open = not self._left_out and (tag == "p" or (tag == "div" and "para" in classes))

    def handle_endtag(self, tag: str) -> None:
        """End a paragraph."""
        self._left_out = max(0, self._left_out - (tag in LEFT_OUT))
        if tag in BLOCKS | LEFT_OUT:
            self._end()

    def close(self) -> None:
        """End the page, and the paragraph that is open."""
        super().close()
        self._end()

    def handle_data(self, data: str) -> None:
        """Add text to the paragraph that is open."""
        if self._is_open:
            self._text.append(data)

    def _end(self) -> None:
        """Keep the paragraph that is open, if any."""
        text = " ".join("".join(self._text).split())
        if text:
            self.found.append(text)
        self._text, self._is_open = [], False

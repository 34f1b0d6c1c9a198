"""The files of the page, read once when the server starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}
FOLDER = Path(__file__).parent / "page"


@dataclass(frozen=True)
class PageFile:
    """A file of the page."""

    content: bytes
    media_type: str


def page_files(folder: Path = FOLDER) -> dict[str, PageFile]:
    """Return the files of a folder by their names."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return {
        path.name: PageFile(path.read_bytes(), MEDIA_TYPES[path.suffix])
        for path in paths
        if path.suffix in MEDIA_TYPES and path.is_file()
    }

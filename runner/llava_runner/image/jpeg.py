"""JPEG files: reduced where they are very large, and limits on what a progressive one may take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image, JpegImagePlugin

from llava_runner.errors import ImageError
from llava_runner.image.limits import most_pixels

MAX_SCANS = 100  # libjpeg writes about 10
MAX_COEFFICIENT_BYTES = 640 << 20  # of an image in several scans: 200 megapixels with the usual 4:2:0 fit

START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN = 0xD8, 0xD9, 0xDA
MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)  # within a scan, FF 00 and restarts are none


class JpegFile(JpegImagePlugin.JpegImageFile):
    """A JPEG whose EXIF data is not looked at when it is opened: malformed data must not make a sound image unread."""

    def _read_dpi_from_exif(self) -> None:
        """Do nothing: the resolution in EXIF data is not needed."""


def open_jpeg(stream: BinaryIO, name: str) -> Image.Image:
    """Return a JPEG, not yet decoded, at the largest of 1, 1/2, 1/4 and 1/8 of its size that is not too large.

    Raises ``ImageError`` for one that would take too much time or memory.
    """
    image = JpegFile(stream)
    width, height = image.size
    if "progressive" in image.info or _scan_components(stream) < image.layers:
        _check_scans(stream, image, name)
    for scale in (1, 2, 4, 8):
        if -(-width // scale) * -(-height // scale) <= most_pixels():
            break
    if scale > 1:
        image.draft(None, (width // scale, height // scale))
    return image


def _scan_components(stream: BinaryIO) -> int:
    """Return the number of components in the first scan, whose header has just been read."""
    end = stream.tell()
    for components in (1, 2, 3, 4):  # the header has 6 bytes, and 2 for each of them
        stream.seek(end - 6 - 2 * components)
        head = stream.read(3)
        if head[:2] == (6 + 2 * components).to_bytes(2, "big") and head[2] == components:
            break
    stream.seek(end)
    return components


def _check_scans(stream: BinaryIO, image: JpegFile, name: str) -> None:
    """Raise ``ImageError`` for too many scans, and where their coefficients take too much memory."""
    position = stream.tell()
    stream.seek(0)
    scans = 0
    for marker in markers(stream.read()):
        scans += marker == START_OF_SCAN
        if scans > MAX_SCANS:
            raise ImageError(f"{name} has more than {MAX_SCANS} scans; save it again as a JPEG or PNG")
    stream.seek(position)
    width, height = image.size
    most = [max((layer[i] for layer in image.layer), default=1) or 1 for i in (1, 2)]
    samples = sum(width * across * height * down // (most[0] * most[1]) for _, across, down, _ in image.layer)
    if 2 * samples > MAX_COEFFICIENT_BYTES:
        raise ImageError(
            f"{name} is too large: {width}x{height} pixels in a progressive JPEG; save it as a baseline JPEG"
        )


def markers(content: bytes) -> Iterator[int]:
    """Yield the second bytes of the markers of a JPEG, up to its end."""
    at = 0
    while found := MARKER.search(content, at):
        (marker,) = found[1]
        yield marker
        if marker == END_OF_IMAGE:
            return
        at = found.end()
        if marker not in (START_OF_IMAGE, 0x01):
            at += max(int.from_bytes(content[at : at + 2], "big"), 2)

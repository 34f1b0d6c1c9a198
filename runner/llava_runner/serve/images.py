"""The images of requests: in ``data:`` URLs, or on other hosts where these are allowed."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from llava_runner.contract import ModelCard
from llava_runner.errors import ImageError
from llava_runner.image import prepare_image_for
from llava_runner.serve.download import download
from llava_runner.serve.refusal import unusable
from llava_runner.serve.turns import PreparedImage

MAX_PIXELS = 50_000_000  # of an image: the camera of a phone. A larger JPEG is read at a part of its size
MAX_IMAGE_BYTES = 20 << 20
MOST_RECENT = 64  # prepared images that are kept: less than a megabyte each


class ImageReader:
    """Reads images for one model, one request at a time, beside the event loop and the model."""

    def __init__(self, card: ModelCard, *, allows_remote: bool) -> None:
        self._card = card
        self._allows_remote = allows_remote
        # Each thread may hold an image of 50 million pixels.
        self.threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="llava-images")
        # Downloads only wait, and may take long.
        self.downloads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="llava-downloads")
        self._recent: OrderedDict[bytes, PreparedImage] = OrderedDict()
        Image.MAX_IMAGE_PIXELS = min(Image.MAX_IMAGE_PIXELS or MAX_PIXELS, MAX_PIXELS)

    def close(self) -> None:
        """End the threads, once they are done with what they have begun."""
        self.threads.shutdown(cancel_futures=True)
        self.downloads.shutdown(wait=False, cancel_futures=True)

    def is_remote(self, url: str) -> bool:
        """Return whether an image is on another host. Raises ``Refusal`` for URLs that are not taken."""
        if url[:5].lower() == "data:":
            return False
        if not url[:8].lower().startswith(("http://", "https://")):
            raise unusable("an image is a data: URL, such as data:image/png;base64,...", param="messages")
        if not self._allows_remote:
            raise unusable(
                "images on other hosts are not allowed here; send a data: URL, or start the server with "
                "--allow-remote-images",
                param="messages",
            )
        return True

    def read(self, contents: Sequence[str | bytes]) -> list[PreparedImage]:
        """Return the images in ``data:`` URLs and downloaded files. Raises ``Refusal``.

        Only one of ``threads`` may call this.
        """
        return [self._prepared(it) for it in contents]

    def _prepared(self, content: str | bytes) -> PreparedImage:
        """Return an image. Each turn of a conversation has all of them, so those seen lately are kept prepared."""
        key = hashlib.sha256(content.encode() if isinstance(content, str) else content).digest()
        if key not in self._recent:
            file = decoded(content) if isinstance(content, str) else content
            try:
                self._recent[key] = PreparedImage.of(prepare_image_for(self._card, file))
            except ImageError as error:
                raise unusable(str(error), param="messages", code="invalid_image") from error
        self._recent.move_to_end(key)
        while len(self._recent) > MOST_RECENT:
            self._recent.popitem(last=False)
        return self._recent[key]


def decoded(url: str) -> bytes:
    """Return the content of a ``data:`` URL in base64. Raises ``Refusal``."""
    head, comma, content = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise unusable("a data: URL of an image needs base64: data:image/png;base64,...", param="messages")
    try:
        found = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise unusable(f"an image's data: URL is not base64: {error}", param="messages") from error
    if len(found) > MAX_IMAGE_BYTES:
        raise unusable(f"an image has {len(found)} bytes; at most {MAX_IMAGE_BYTES} are read", param="messages")
    return found


def download_image(url: str) -> bytes:
    """Return the file at a URL of another host. Raises ``Refusal``."""
    return download(url, max_bytes=MAX_IMAGE_BYTES)

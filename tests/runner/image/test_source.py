"""What images are read from: every kind of source gives the same pixels, or an ``ImageError`` that names it."""

import io
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llava_runner.errors import ImageError
from llava_runner.image import limits, load_image, prepare_image, source

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def prepare(image):
    return prepare_image(image, image_size=56, image_mean=(0.48, 0.46, 0.41), image_aspect_ratio="pad")


@pytest.fixture
def path(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def expected(path):
    return prepare(Image.fromarray(PIXELS))


class HasPath:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


class OnlyReads:
    """A stream that cannot seek, and gives little at a time."""

    def __init__(self, content):
        self.rest = io.BytesIO(content)

    def read(self, count):
        return self.rest.read(min(count, 7))


def at_the_end(content):
    stream = io.BytesIO()
    stream.write(content)
    return stream


SOURCES: dict[str, Callable[[Path], object]] = {
    "text": str,
    "path": lambda path: path,
    "path-like": lambda path: HasPath(str(path)),
    "path of bytes": lambda path: HasPath(os.fsencode(path)),
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "stream": lambda path: at_the_end(path.read_bytes()),
    "stream without seek": lambda path: OnlyReads(path.read_bytes()),
    "file": lambda path: path.open("rb"),
    "file without buffer": lambda path: path.open("rb", buffering=0),
    "Pillow": Image.open,
    "array": lambda path: PIXELS,
    "array of other strides": lambda path: np.asfortranarray(PIXELS)[::-1][::-1],
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_pixels(kind, path, expected):
    np.testing.assert_array_equal(prepare(SOURCES[kind](path)), expected)


MODES = "1 L P RGBA CMYK YCbCr LAB HSV I LA PA RGBX RGBa La I;16 I;16B"


@pytest.mark.parametrize("mode", MODES.split())
def test_pillow_images_of_any_mode(mode):
    assert prepare(Image.new(mode, (40, 30))).shape == (3, 56, 56)


def test_tensors_on_odd_strides_become_contiguous():
    tensor = torch.randint(0, 256, (28, 20, 3), dtype=torch.uint8).permute(2, 0, 1)
    for image in (tensor, tensor.numpy()[:, ::-1]):
        pixels = prepare(image)
        assert pixels.flags.c_contiguous
        np.testing.assert_array_equal(pixels, np.asarray(image))


def closed(path):
    image = Image.open(path)
    image.close()
    return image


def left(path):
    with Image.open(path) as image:
        return image


def closed_file(path):
    with path.open("rb") as file:
        return file


REFUSED = {
    "closed image": (closed, "mode RGB cannot be read"),
    "closed before it was decoded": (left, "closed before its pixels were read"),
    "closed file": (closed_file, r"photo\.png cannot be read: .*closed"),
    "text file": (lambda path: io.StringIO("text"), "gives str, not bytes; open it in binary mode"),
    "no bytes": (lambda path: b"", "it is empty"),
    "nothing": (lambda path: None, "this is of type NoneType"),
    "dictionary": (lambda path: {}, "this is of type dict"),
    "class": (lambda path: Image.Image, "this is of type type"),
    "gradient": (lambda path: torch.zeros(3, 8, 8, requires_grad=True), "this one is float32"),
    "meta": (lambda path: torch.zeros(3, 8, 8, dtype=torch.uint8, device="meta"), "Tensor of torch.uint8 on meta"),
    "sparse": (lambda path: torch.zeros(3, 8, 8).to_sparse(), "Tensor of torch.float32 on cpu"),
    "bfloat16": (lambda path: torch.zeros(3, 8, 8, dtype=torch.bfloat16), "Tensor of torch.bfloat16"),
    "16 bits": (lambda path: np.zeros((28, 28, 3), np.uint16), "this one is uint16"),
    "four channels": (lambda path: np.zeros((28, 28, 4), np.uint8), r"this one is uint8 \[28, 28, 4\]"),
    "one row": (lambda path: np.zeros((1, 28, 3), np.uint8), "28x1 pixels is too small"),
    "bad path": (lambda path: HasPath(5), "the HasPath gives no path"),
    "zero byte": (lambda path: "a\0b", "is not a path"),
    "empty path": (lambda path: "", "the path of the image is empty"),
    "folder": (lambda path: path.parent, "is a folder, not an image"),
    "under a file": (lambda path: path / "more.png", "does not exist"),
    "device": (lambda path: "/dev/zero", "is a device, not an image"),
    "https": (lambda path: "https://example.org/photo.png", "is a URL; download the image first"),
    "s3": (lambda path: "s3://bucket/photo.png", "is a URL; download the image first"),
    "https as a path": (lambda path: Path("https://example.org/photo.png"), "https://example.org/photo.png is a URL"),
    "data": (lambda path: "data:image/png;base64,iVBORw0", "is a URL"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_everything_else_is_named(kind, path):
    make, message = REFUSED[kind]
    with pytest.raises(ImageError, match=message):
        prepare(make(path))


@pytest.mark.parametrize("end", ["pipe", "socket"])
def test_a_pipe_is_read_whole(end, path, expected):
    content = path.read_bytes()
    reader, writer = os.pipe() if end == "pipe" else (each.detach() for each in socket.socketpair())

    def write():
        os.write(writer, content)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    if end == "pipe":
        np.testing.assert_array_equal(prepare(f"/dev/fd/{reader}"), expected)
        os.close(reader)
    else:
        np.testing.assert_array_equal(prepare(os.fdopen(reader, "rb")), expected)
    thread.join()


def test_a_pipe_has_a_bound(monkeypatch, path):
    monkeypatch.setattr(source, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ImageError, match="the image is too large: at most 1000 bytes are read"):
        prepare(io.BytesIO(path.read_bytes()))


@pytest.mark.parametrize(("head", "message"), [(b"", "neither JPEG nor PNG"), (b"\xff\xd8\xff", "at most 1073741824")])
def test_a_huge_file_is_not_read(head, message, tmp_path):
    """Its 3 GB are a hole in the file, which takes no space."""
    with (tmp_path / "holiday.mov").open("wb") as file:
        file.write(head)
        file.truncate(3 * limits.MAX_FILE_BYTES)
    with pytest.raises(ImageError, match=message):
        load_image(tmp_path / "holiday.mov")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\0\x18ftypheic", "it is a HEIC image; save it as JPEG or PNG"),
        (b"\0\0\0\x18ftypmp42", "it is a video; save one of its frames"),
        (b"RIFF\0\0\0\0AVI LIST", "it is a video"),
        (b"%PDF-1.7", "it is a PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "it is PostScript"),
        (b"<!DOCTYPE html>", "it is a web page; download the image itself"),
        (b"P7\n", "PAM"),
        (b"just some text", "neither JPEG nor PNG"),
    ],
)
def test_other_kinds_of_files_are_named(content, message, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(content.ljust(100, b"\0"))
    with pytest.raises(ImageError, match=message):
        load_image(tmp_path / "photo.jpg")


@pytest.mark.parametrize("name", ["image.pt", "IMAGE.PT"])
def test_a_tensor_file_is_known_by_its_name(name, tmp_path):
    tensor = torch.randint(0, 256, (3, 28, 17), dtype=torch.uint8)
    torch.save(tensor, tmp_path / name)
    np.testing.assert_array_equal(prepare(tmp_path / name), tensor.numpy())

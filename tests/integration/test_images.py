"""Images in both runners: the same decisions, bytes and words, and memory that goes with the image."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from llava_runner.contract import IMAGE_ASPECT_RATIOS, RESAMPLES
from llava_runner.errors import ImageError
from llava_runner.image import limits, load_image, prepare_image
from tests.compare_images import Prepared, by_llava_main, by_llava_run
from tests.integration.image_cases import cases, segment, tiff
from tests.integration.png_cases import header, png
from tests.photographs import photographs


@pytest.fixture(scope="module")
def parts(native_build) -> Path:
    """Return the program that runs one part of the C++ runner."""
    return native_build / "build/parts"


def refusal(parts: Path, path: Path | str) -> str:
    """Return the message with which both runners refuse a file."""
    with pytest.raises(ImageError) as raised:
        prepare_image(path, image_size=56, image_mean=(0.5, 0.5, 0.5), image_aspect_ratio="pad")
    done = subprocess.run([parts, "image", path, "56", "pad"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: {raised.value}\n")
    return str(raised.value)


def test_odd_files_are_the_same_in_both(parts, tmp_path):
    paths = []
    for name, content in cases():
        paths.append(tmp_path / name.replace("/", " "))
        paths[-1].write_bytes(content)
    assert len(paths) >= 500
    found = by_llava_main(parts, paths, image_size=56, image_aspect_ratio="pad")
    expected = [by_llava_run(path, image_size=56, image_aspect_ratio="pad") for path in paths]
    differing = [path.name for path, *both in zip(paths, found, expected, strict=True) if not Prepared.agree(*both)]
    assert differing == []
    refused = [path.name for path, each in zip(paths, expected, strict=True) if each.pixels is None]
    assert 80 < len(refused) < 140
    # Pillow alone refuses no other files, except those with long texts and with metadata it stumbles over.
    read = {"long text.png", "long text at the end.png", "long profile.png", "long profile, raw profile.png"}
    read |= {"long xmp.png", "bad resolution.jpg"}
    assert set(refused) ^ refused_by_pillow(paths) == read | {"120 scans.jpg", "animated, first frame small.png"}


@pytest.mark.parametrize("image_resample", RESAMPLES)
@pytest.mark.parametrize("image_aspect_ratio", IMAGE_ASPECT_RATIOS)
def test_images_are_resized_to_the_same_bytes(image_aspect_ratio, image_resample, parts, tmp_path):
    """Photographs, and noise that is thin, tiny, or of the size that it is resized to."""
    generator = np.random.default_rng(0)
    images = list(photographs())
    for width, height in ((700, 26), (33, 900), (2, 2), (56, 56), (61, 61), (56, 300), (3, 80)):
        images.append(Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)))
    paths = [tmp_path / f"{index}.png" for index in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path, compress_level=1)
    for image_size, image_resize in ((56, 56), (56, 61), (336, 336)):
        how: dict[str, Any] = {
            "image_size": image_size,
            "image_aspect_ratio": image_aspect_ratio,
            "image_resize": image_resize,
            "image_resample": image_resample,
        }
        expected = [by_llava_run(path, **how) for path in paths]
        assert all(each.pixels for each in expected)
        assert by_llava_main(parts, paths, **how) == expected


def refused_by_pillow(paths: list[Path]) -> set[str]:
    """Return the names of the files that Pillow does not decode."""
    refused = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths:
            try:
                with Image.open(path) as image:
                    image.convert("RGBA")
            except Exception:  # of all kinds
                refused.add(path.name)
    return refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "the path of the image is empty"),
        ("https://example.org/photo.jpg", "is a URL; download the image first"),
        ("data:image/png;base64,iVBORw0KGgo", "is a URL"),
        ("nowhere.png", "does not exist"),
        ("nowhere.PT", "does not exist"),
        ("/etc/passwd/photo.png", "does not exist"),
        ("/tmp", "is a folder, not an image"),
        ("/dev/zero", "is a device, not an image"),
        ("x" * 300, "cannot be read: File name too long"),
    ],
)
def test_paths_that_are_no_file_are_named_in_both(name, message, parts):
    assert message in refusal(parts, name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"just some text", "it is neither JPEG nor PNG"),
        (b"\0\0\0\x18ftypheic", "it is a HEIC image; save it as JPEG or PNG"),
        (b"\0\0\0\x18ftypisom", "it is a video"),
        (b"\x1aE\xdf\xa3", "it is a video"),
        (b"%PDF-1.7", "it is a PDF; save the page as JPEG or PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "it is PostScript"),
        (b"<!DOCTYPE html><html>", "it is a web page; download the image itself"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "it is a JPEG XL image"),
        (b"PK\x03\x04", "it is a ZIP archive"),
        (png([header(70000, 1300, 8, 2)] + [(b"IDAT", b"")]), "is too large: 70000x1300 pixels; at most 89478485"),
        (png([header(1, 9, 8, 2), (b"IDAT", b"")]), "1x9 pixels is too small"),
    ],
)
def test_files_that_are_no_image_are_named_in_both(content, message, parts, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(content)
    assert message in refusal(parts, tmp_path / "photo.jpg")


@pytest.mark.parametrize("head", [b"", b"\xff\xd8\xff"])
def test_a_file_of_gigabytes_is_not_read(head, parts, tmp_path):
    with (tmp_path / "holiday.mov").open("wb") as file:
        file.write(head)
        file.truncate(3 * limits.MAX_FILE_BYTES)
    assert ("at most 1073741824 bytes" if head else "neither JPEG nor PNG") in refusal(parts, file.name)


def test_a_jpeg_of_too_many_coefficients_is_refused(parts, tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "JPEG", progressive=True, subsampling=0)
    content = stream.getvalue()
    (tmp_path / "photo.jpg").write_bytes(content.replace(b"\x08\0\x40\0\x40\x03", b"\x08\x40\0\x40\0\x03"))
    assert "16384x16384 pixels in a progressive JPEG; save it as a baseline JPEG" in refusal(
        parts, tmp_path / "photo.jpg"
    )


def test_a_tensor_file_may_be_named_in_capitals(parts, tiny_package, tmp_path):
    (tmp_path / "IMAGE.PT").write_bytes((tiny_package.folder / "image.pt").read_bytes())
    expected = by_llava_run(tmp_path / "IMAGE.PT", image_size=112, image_aspect_ratio="pad")
    found = by_llava_main(parts, [tmp_path / "IMAGE.PT"], image_size=112, image_aspect_ratio="pad")
    assert expected.pixels is not None and found == [expected]


@pytest.mark.parametrize("how", ["cat {path} | {parts} image /dev/stdin 56 pad", "{parts} image <(cat {path}) 56 pad"])
def test_a_pipe_is_read(how, parts, tiny_package):
    path = tiny_package.folder / "image.png"
    command = how.format(path=shlex.quote(str(path)), parts=shlex.quote(str(parts)))
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True)
    assert done.stdout == by_llava_run(path, image_size=56, image_aspect_ratio="pad").pixels


def test_a_photograph_of_90_megapixels_is_decoded_at_half_its_size(parts, tmp_path):
    colors = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(colors).resize((11201, 8001), Image.Resampling.NEAREST)
    exif = b"Exif\0\0" + tiff((0x112, 3, 1, b"\0\6"))
    image.save(tmp_path / "photo.jpg", quality=60, exif=exif)
    loaded = load_image(tmp_path / "photo.jpg")
    assert isinstance(loaded, Image.Image) and loaded.size == (4001, 5601)
    found = by_llava_main(parts, [tmp_path / "photo.jpg"], image_size=336, image_aspect_ratio="pad")
    expected = by_llava_run(tmp_path / "photo.jpg", image_size=336, image_aspect_ratio="pad")
    assert expected.pixels is not None and found == [expected]


@pytest.mark.parametrize("size", [(30000, 600), (600, 30000)])
@pytest.mark.parametrize("how", IMAGE_ASPECT_RATIOS)
def test_memory_goes_with_the_image(size, how, parts, tmp_path):
    """Its pixels take 54 MB; a square with its longer side would take 2.7 GB."""
    Image.new("RGB", size).save(tmp_path / "wide.png")
    limit = "ulimit -v 160000"  # KiB
    command = shlex.join([str(parts), "image", str(tmp_path / "wide.png"), "336", how])
    done = subprocess.run(["bash", "-c", f"{limit}; {command}"], capture_output=True)
    assert (done.returncode, done.stderr, len(done.stdout)) == (0, b"", 3 * 336 * 336)


def test_too_little_memory_is_one_line_in_both(parts, tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGB", (9000, 9000)).save(path, compress_level=1)
    command = shlex.join([str(parts), "image", str(path), "56", "pad"])
    done = subprocess.run(["bash", "-c", f"ulimit -v 160000; {command}"], capture_output=True, text=True)
    message = f"{path}: there is not enough memory for 9000x9000 pixels"
    assert (done.returncode, done.stderr) == (2, f"error: {message}\n")
    code = f"""
import resource
from llava_runner.contract import IMAGE_ASPECT_RATIOS, RESAMPLES
from llava_runner.errors import ImageError
from llava_runner.image import load_image
limit = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) + (1 << 27)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    load_image({str(path)!r})
except ImageError as error:
    print(error)
"""
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert refused.stdout == f"{message}\n"


def test_limits_of_pillow_are_those_that_the_cases_pass():
    """Otherwise the files with long texts would not show that they are read in spite of them."""
    assert PngImagePlugin.MAX_TEXT_CHUNK == 1 << 20
    assert len(segment(0xE2, bytes(65533))) == 65537

"""Image files of every odd kind, built around two photographs: JPEG and PNG with their metadata, and PPM."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from llava_export.builtin import CHECKPOINTS
from tests.integration.png_cases import png_cases

SIZE = (46, 34)
Case = tuple[str, bytes]


def photographs() -> list[Image.Image]:
    """Return the two: the sample image, and smooth noise."""
    sample = Image.open(next(CHECKPOINTS["tiny-llava"].glob("*.png"))).convert("RGB")
    pixels = np.random.default_rng(3).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return [image.resize(SIZE, Image.Resampling.BICUBIC) for image in (sample, Image.fromarray(pixels))]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the content of a file with the image."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def cases() -> list[Case]:
    """Return about 400 files, each with a name. Names are unique."""
    first, second = photographs()
    found = [*jpeg_cases(first, second), *png_cases(first, second), *ppm_cases(first)]
    assert len(dict(found)) == len(found)
    return found


def tiff(*entries: tuple[int, int, int, bytes], order: str = "big", start: bytes = b"", offset: int = 8) -> bytes:
    """Return EXIF data: the entries are tag, type, count, and four bytes or more, which then are stored apart."""
    out = start or (b"MM\0*" if order == "big" else b"II*\0")
    out += offset.to_bytes(4, order) + len(entries).to_bytes(2, order)  # type: ignore[arg-type]
    apart = b""
    for tag, kind, count, value in entries:
        if len(value) > 4:
            place = 8 + 2 + 12 * len(entries) + 4 + len(apart)
            apart, value = apart + value, place.to_bytes(4, order)  # type: ignore[arg-type]
        out += b"".join(
            number.to_bytes(size, order)  # type: ignore[arg-type]
            for number, size in ((tag, 2), (kind, 2), (count, 4))
        )
        out += value.ljust(4, b"\0")
    return out + bytes(4) + apart


def orientation(value: int, *, kind: int = 3, count: int = 1, order: str = "big") -> tuple[int, int, int, bytes]:
    """Return the entry of an orientation, as a whole number of any type."""
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 13: 4, 16: 8}
    if kind in (11, 12):
        dtype = np.dtype(f"f{4 if kind == 11 else 8}").newbyteorder(">" if order == "big" else "<")
        content = np.array([value] * max(count, 1), dtype).tobytes()
    elif kind in (5, 10):
        content = b"".join(part.to_bytes(4, order) for part in (2 * value, 2)) * max(count, 1)  # type: ignore[arg-type]
    else:
        content = value.to_bytes(sizes.get(kind, 2), order) * max(count, 1)  # type: ignore[arg-type]
    return (0x112, kind, count, content)


def metadata_cases() -> Iterator[tuple[str, bytes]]:
    """Yield EXIF data, without "Exif" before it: of every type and byte order, and malformed."""
    for value in range(10):
        yield f"{value}", tiff(orientation(value))
    for order in ("big", "little"):
        for kind in range(1, 18):
            for count in (1, 3) if kind in (3, 4, 5, 9, 12) else (1,):
                yield (
                    f"type {kind} count {count} {order}",
                    tiff(orientation(6, kind=kind, count=count, order=order), order=order),
                )
        yield f"twice {order}", tiff(*(orientation(value, order=order) for value in (6, 3)), order=order)
    far = (0x10F, 2, 50, (9999).to_bytes(4, "big"))  # a text beyond the end
    yield "count 0", tiff(orientation(6, count=0))
    yield "negative", tiff((0x112, 8, 1, b"\xff\xfa"))
    yield "half", tiff((0x112, 5, 1, bytes([0, 0, 0, 13, 0, 0, 0, 2])))
    yield "by zero", tiff((0x112, 5, 1, bytes([0, 0, 0, 6, 0, 0, 0, 0])))
    yield "none", tiff((0x10F, 3, 1, b"\0\1"))
    yield "after what is cut", tiff(far, orientation(6))
    yield "before what is cut", tiff(orientation(6), far)
    yield "far directory", tiff(orientation(6), offset=5000)
    yield "cut", tiff(orientation(6), orientation(3))[:-12]
    for start in (b"MM*\0", b"II\0*", b"XX\0*", b"II+\0", b"MM\0+", b"MM\0\0"):
        order = "little" if start.startswith(b"II") else "big"
        yield f"start {start!r}", tiff(orientation(6, order=order), order=order, start=start)
    yield "four bytes", b"MM\0*"
    yield "empty", b""
    yield "two heads", b"Exif\0\0" + tiff(orientation(6))


def xmp_cases() -> Iterator[tuple[str, bytes]]:
    """Yield XMP with an orientation, as an attribute and as an element, and with none."""
    for value in (0, 1, 3, 6, 8, 9):
        yield f"attribute {value}", b'<x:xmpmeta><d tiff:Orientation="%d"/></x:xmpmeta>' % value
        yield f"element {value}", b"<x><tiff:Orientation>%d</tiff:Orientation></x>" % value
    yield "spaces", b"<x><tiff:Orientation> 6 </tiff:Orientation></x>"
    yield "other quotes", b"<d tiff:Orientation='6'/>"
    yield "second counts", b'<d tiff:Orientation="x" tiff:Orientation="6"/>'
    yield "not UTF-8", b'<d tiff:Orientation="6" \xff/>'
    yield "empty", b""


def segment(marker: int, data: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data


def jpeg_cases(first: Image.Image, second: Image.Image) -> Iterator[Case]:
    """Yield JPEG files."""
    plain = saved(first, "JPEG", quality=90)
    start, rest = plain[:2], plain[2:]
    exif, xmp = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"

    def with_segments(*segments: bytes) -> bytes:
        return start + b"".join(segments) + rest

    six, eight = segment(0xE1, exif + tiff(orientation(6))), segment(0xE1, xmp + b'<d tiff:Orientation="8"/>')
    for name, data in metadata_cases():
        yield f"exif {name}.jpg", with_segments(segment(0xE1, exif + data))
    for name, data in xmp_cases():
        yield f"xmp {name}.jpg", with_segments(segment(0xE1, xmp + data))
    without_resolution = plain.replace(b"JFIF\0\1\1\0\0\1\0\1", b"JFIX\0\1\1\0\0\1\0\1")
    yield "no JFIF.jpg", without_resolution[:2] + six + without_resolution[2:]
    bad_resolution = tiff(orientation(6), (0x11A, 2, 2, b"7\0"), (0x128, 3, 1, b"\0\2"))
    yield "bad resolution.jpg", start + segment(0xE1, exif + bad_resolution) + without_resolution[2:]
    segments = {
        "both": (six, eight),
        "both, XMP first": (eight, six),
        "xmp and none": (segment(0xE1, exif + tiff()), eight),
        "xmp and malformed": (segment(0xE1, exif + b"XX"), eight),
        "two xmp": (eight, segment(0xE1, xmp + b'<d tiff:Orientation="3"/>')),
        "empty first": (segment(0xE1, exif), six),
        "in two segments": (segment(0xE1, six[4:30]), segment(0xE1, exif + six[30:])),
        "second is another": (six, segment(0xE1, exif + tiff(orientation(3)))),
        "short APP1": (segment(0xE1, b"Exif"), six),
        "JFIF too short": (segment(0xE0, b"JFIF"),),
        "Adobe too short": (segment(0xEE, b"Adobe"),),
        "Adobe RGB": (segment(0xEE, b"Adobe\0\x64\0\0\0\0\0"),),
        "profile": tuple(segment(0xE2, b"ICC_PROFILE\0" + bytes([i, 16]) + bytes(65500)) for i in range(1, 17)),
        "profile too short": (segment(0xE2, b"ICC_PROFILE\0"),),
        "comment": (segment(0xFE, b"text" * 9000),),
        "marker filled up": (b"\xff\xff\xff", six),
        "between segments": (b"\0\1\2\3", six),
        "stuffed": (b"\xff\0", six),
        "unknown marker": (b"\xff\1", six),
        "length 0": (b"\xff\xe4\0\0", six),
        "second start": (b"\xff\xd8", six),
        "tables cut": (segment(0xDB, bytes(30)),),
    }
    for name, parts in segments.items():
        yield f"{name}.jpg", with_segments(*parts)
    yield from _scans(first, second, plain)


def _scans(first: Image.Image, second: Image.Image, plain: bytes) -> Iterator[Case]:
    """Yield JPEG files with scans of every kind, sound and damaged."""
    for name, image in (("first", first), ("second", second)):
        for subsampling in (0, 1, 2):
            for kind in ("", " progressive"):
                content = saved(image, "JPEG", quality=70, subsampling=subsampling, progressive=bool(kind))
                yield f"{name} {subsampling}{kind}.jpg", content
        yield f"{name} gray.jpg", saved(image.convert("L"), "JPEG")
        yield f"{name} RGB.jpg", saved(image, "JPEG", keep_rgb=True)
        yield f"{name} quality 1.jpg", saved(image, "JPEG", quality=1)
        inks = saved(image.convert("CMYK"), "JPEG")
        yield f"{name} CMYK.jpg", inks
        at = inks.index(b"Adobe")
        yield f"{name} YCCK.jpg", inks[: at + 11] + b"\2" + inks[at + 12 :]
        yield f"{name} CMYK without Adobe.jpg", inks[: at - 4] + inks[at + 12 :]
    restarts = saved(second, "JPEG", restart_marker_rows=1, subsampling=0)
    markers = [at for at in range(len(restarts)) if restarts[at] == 0xFF and 0xD0 <= restarts[at + 1] <= 0xD7]
    assert len(markers) >= 3
    yield "restarts.jpg", restarts
    yield "restart missing.jpg", restarts[: markers[1]] + restarts[markers[1] + 2 :]
    yield "restart wrong.jpg", restarts[: markers[1]] + b"\xff\xd6" + restarts[markers[1] + 2 :]
    yield "restart cut.jpg", restarts[: markers[1] - 20] + restarts[markers[1] :]
    progressive = saved(first, "JPEG", progressive=True)
    for name, content in (("baseline", plain), ("progressive", progressive), ("restarts", restarts)):
        for cut in (1, 2, 3, 4, 8, 30, len(content) // 3, len(content) - 100):
            yield f"{name} cut {cut}.jpg", content[:-cut]
        yield f"{name} more.jpg", content + bytes(range(256))
        yield f"{name} twice.jpg", content + content
        scan = content.index(b"\xff\xda")
        for at in (scan + 3, scan + 30, scan + 80):
            yield f"{name} damaged {at - scan}.jpg", content[:at] + b"\x55\xaa\0\xff" + content[at + 4 :]
    scan = progressive.rindex(b"\xff\xda")
    yield "90 scans.jpg", progressive[:scan] + progressive[scan:-2] * 80 + b"\xff\xd9"
    yield "120 scans.jpg", progressive[:scan] + progressive[scan:-2] * 120 + b"\xff\xd9"
    yield "12 bits.jpg", plain.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")
    yield "no frame.jpg", b"\xff\xd8" + plain[plain.index(b"\xff\xda") :]


def ppm_cases(image: Image.Image) -> Iterator[Case]:
    """Yield PPM, PGM and PBM files of any number of levels, with odd headers, and cut."""
    colors, gray = np.asarray(image).astype(int), np.asarray(image.convert("L")).astype(int)
    width, height = image.size
    for largest in (1, 7, 254, 255, 256, 1000, 65535):
        for plain, binary, samples in ((2, 5, gray), (3, 6, colors)):
            values = samples * largest // 255
            stored = values.astype(">u2" if largest > 255 else np.uint8).tobytes()
            head = b"%d %d\n%d\n" % (width, height, largest)
            yield f"P{binary} {largest}.ppm", b"P%d\n" % binary + head + stored
            yield f"P{plain} {largest}.ppm", b"P%d\n" % plain + head + b" ".join(b"%d" % v for v in values.flat) + b"\n"
    yield "P6 above the largest.ppm", b"P6\n%d %d\n100\n" % (width, height) + np.asarray(image).tobytes()
    yield "P3 above the largest.ppm", b"P3\n2 2\n100\n" + b"101 " * 12
    yield "P4.ppm", saved(image.convert("1"), "PPM")
    bits = b"".join(b"%d" % (value > 127) for value in gray.flat)
    yield "P1.ppm", b"P1\n%d %d\n" % (width, height) + bits
    yield (
        "P1 spaces.ppm",
        b"P1\n%d %d\n#text\n" % (width, height) + b" ".join(bits[i : i + 1] for i in range(len(bits))),
    )
    yield "P1 digits.ppm", b"P1\n2 2\n0012"
    pixels = np.asarray(image).tobytes()
    heads = {
        "comments": b"P6 # text\n%d#text\n %d\n# 7 7\n255\n",
        "comment in a number": b"P6\n4#4\n6 34\n255\n",
        "spaces": b"P6\t\v\f\r\n %d \n\n %d\r255 ",
        "carriage returns": b"P6\r%d\r%d\r255\r",
        "comment ends with a return": b"P6\n# text\r%d %d\n255\n",
        "plus": b"P6\n+%d +%d\n+255\n",
        "zeros": b"P6\n00%d 00%d\n00255\n",
        "no space": b"P6%d %d\n255\n",
        "comment at once": b"P6#text\n%d %d\n255\n",
        "minus": b"P6\n-%d %d\n255\n",
        "long": b"P6\n00000000%d %d\n255\n",
        "letters": b"P6\n%dx %d\n255\n",
        "largest 0": b"P6\n%d %d\n0\n",
        "largest 65536": b"P6\n%d %d\n65536\n",
        "two lines": b"P6\n%d %d\n255\n\n",
    }
    for name, head in heads.items():
        yield f"P6 {name}.ppm", (head % (width, height) if b"%d" in head else head) + pixels
    for cut in (1, 3, len(pixels) // 2, len(pixels), len(pixels) + 3):
        yield f"P6 cut {cut}.ppm", saved(image, "PPM")[:-cut]
    yield "P6 1000 cut.ppm", b"P6\n%d %d\n1000\n" % (width, height) + pixels
    yield "P3 cut.ppm", b"P3\n2 2\n255\n1 2 3 4"
    yield "P3 words.ppm", b"P3\n2 2\n255\n" + b"1 two 3 " * 4
    yield "P3 comments.ppm", b"P3\n2 2\n255\n" + b"1#text\n2 3 " * 6
    yield "P3 long.ppm", b"P3\n2 2\n255\n" + b"00000000001 " * 12

"""PNG files of every odd kind: colors, depths and keys, metadata, and damage."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

Chunk = tuple[bytes, bytes]
SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png(chunks: Sequence[Chunk]) -> bytes:
    """Return a file of chunks, with their checksums."""
    out = SIGNATURE
    for kind, data in chunks:
        out += len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    return out


def header(width: int, height: int, depth: int, color: int, interlaced: bool = False) -> Chunk:
    """Return the first chunk."""
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return (b"IHDR", size + bytes([depth, color, 0, 0, interlaced]))


def rows_of(samples: np.ndarray, depth: int, *, filtered: bool = False) -> bytes:
    """Return the rows of samples ``[H, W, C]``, each with the number of its filter."""
    height = len(samples)
    if depth == 16:
        rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    elif depth == 8:
        rows = samples.astype(np.uint8).reshape(height, -1)
    else:
        bits = np.unpackbits(samples.astype(np.uint8).reshape(height, -1, 1), axis=2)[:, :, 8 - depth :]
        rows = np.packbits(bits.reshape(height, -1), axis=1)
    step = max(1, samples.shape[2] * depth // 8)
    out = b""
    above = np.zeros_like(rows[0]) if height else None
    for y, row in enumerate(rows):
        kind = y % 5 if filtered else 0
        out += bytes([kind]) + _filtered(row.astype(int), above.astype(int), step, kind)  # type: ignore[union-attr]
        above = row
    return out


def _filtered(row: np.ndarray, above: np.ndarray, step: int, kind: int) -> bytes:
    """Return a row with one of the five filters of the specification."""
    left = np.concatenate([np.zeros(step, int), row])[: len(row)]
    corner = np.concatenate([np.zeros(step, int), above])[: len(row)]
    estimate = left + above - corner
    to_left, to_above, to_corner = (abs(estimate - other) for other in (left, above, corner))
    paeth = np.where(
        (to_left <= to_above) & (to_left <= to_corner), left, np.where(to_above <= to_corner, above, corner)
    )
    predicted = (0, left, above, (left + above) // 2, paeth)[kind]
    return bytes(((row - predicted) % 256).astype(np.uint8))


def interlaced_rows(samples: np.ndarray, depth: int) -> bytes:
    """Return the rows of all seven passes."""
    passes = (samples[top::down, left::across] for left, top, across, down in PASSES)
    return b"".join(rows_of(part, depth, filtered=True) for part in passes if part.size)


def samples_of(image: Image.Image, depth: int, color: int) -> np.ndarray:
    """Return samples ``[H, W, C]`` of a kind of PNG."""
    modes = {0: "L", 2: "RGB", 3: "L", 4: "LA", 6: "RGBA"}
    image = image.copy()
    image.putalpha(image.convert("L").transpose(Image.Transpose.ROTATE_180))
    pixels = np.asarray(image.convert(modes[color]), dtype=int).reshape(image.height, image.width, -1)
    return pixels * 257 + 3 if depth == 16 else pixels >> (8 - depth)


def png_cases(first: Image.Image, second: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Yield PNG files."""
    for name, content in (*_kinds(second), *_keys(second), *_metadata(first), *_damaged(first)):
        yield f"{name}.png", content


def _kinds(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Yield every color and depth, plain and interlaced."""
    depths = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    palette = (b"PLTE", bytes(range(0, 240, 5)))
    for color, depth in [(color, depth) for color, each in depths.items() for depth in each]:
        samples = samples_of(image, depth, color)
        before = [palette] if color == 3 else []
        for is_interlaced in (False, True):
            rows = interlaced_rows(samples, depth) if is_interlaced else rows_of(samples, depth, filtered=True)
            chunks = [header(*image.size, depth, color, is_interlaced), *before, (b"IDAT", zlib.compress(rows))]
            yield f"color {color} depth {depth}{' interlaced' * is_interlaced}", png([*chunks, (b"IEND", b"")])
    for size in ((2, 2), (3, 5), (5, 3), (9, 2)):  # some passes are empty
        rows = interlaced_rows(samples_of(image.resize(size), 8, 2), 8)
        yield f"interlaced {size}", png([header(*size, 8, 2, True), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])


def _keys(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Yield images with transparent colors."""
    colors = bytes(range(48)) * 16
    for depth in (1, 2, 4, 8, 16):
        samples = samples_of(image, depth, 0)
        middle = int(np.median(samples))
        for key in {0, 1, middle, 255, middle | 256, (1 << depth) - 1}:
            yield f"gray {depth} key {key}", _keyed(image, samples, depth, 0, key.to_bytes(2, "big"))
    for depth in (8, 16):
        samples = samples_of(image, depth, 2)
        key = samples[5, 5].astype(">u2").tobytes()
        yield f"RGB {depth} key", _keyed(image, samples, depth, 2, key)
        yield f"RGB {depth} low key", _keyed(image, samples, depth, 2, bytes(b for v in key[::2] for b in (7, v)))
        yield f"RGB {depth} short key", _keyed(image, samples, depth, 2, key[:4])
    alphas = {
        "one": b"\xff\xff\xff\0",
        "one of many": b"\xff" * 20 + b"\0" + b"\xff" * 9,
        "new line": b"\xff\0\n",
        "some": bytes(range(0, 250, 9)),
        "none": b"",
        "256": bytes(range(256)),
        "257": bytes(range(256)) + b"\1",
        "one of 300": b"\xff\0" + b"\xff" * 298,
    }
    samples = samples_of(image, 8, 3)
    for name, alpha in alphas.items():
        yield f"palette alpha {name}", _keyed(image, samples, 8, 3, alpha, colors)
    yield "palette before", _keyed(image, samples, 8, 3, b"\0\1", colors, key_first=True)
    yield "palette short", _keyed(image, samples, 8, 3, b"\0\1", colors[:50])
    yield "palette long", _keyed(image, samples, 8, 3, b"\0\1", colors + b"abc")
    yield "palette missing", _keyed(image, samples, 8, 3, b"\0\1")
    yield "LA key", _keyed(image, samples_of(image, 8, 4), 8, 4, b"\0\1")


def _keyed(
    image: Image.Image,
    samples: np.ndarray,
    depth: int,
    color: int,
    key: bytes,
    palette: bytes | None = None,
    key_first: bool = False,
) -> bytes:
    """Return an image with a transparent color, or with the alphas of its palette."""
    before = [(b"PLTE", palette)] if palette is not None else []
    middle = [(b"tRNS", key), *before] if key_first else [*before, (b"tRNS", key)]
    pixels = (b"IDAT", zlib.compress(rows_of(samples, depth)))
    return png([header(*image.size, depth, color), *middle, pixels, (b"IEND", b"")])


def _metadata(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Yield orientations in every way."""
    from tests.integration.image_cases import metadata_cases, orientation, tiff, xmp_cases

    begin, pixels, end = _parts(image)
    six = tiff(orientation(6))
    hexadecimal = b"\nexif\n    %8d\n%s\n" % (len(six), six.hex().encode())
    ways: dict[str, list[Chunk]] = {
        "eXIf with head": [(b"eXIf", b"Exif\0\0" + six)],
        "eXIf twice": [(b"eXIf", six), (b"eXIf", tiff(orientation(3)))],
        "raw profile": [(b"tEXt", b"Raw profile type exif\0" + hexadecimal)],
        "raw profile with head": [
            (b"tEXt", b"Raw profile type exif\0\nexif\n 9\n" + b"457869660000" + six.hex().encode())
        ],
        "raw profile in lines": [(b"tEXt", b"Raw profile type exif\0\nexif\n 9\n" + _lines(six.hex().encode()))],
        "raw profile of odd digits": [(b"tEXt", b"Raw profile type exif\0" + hexadecimal[:-2])],
        "raw profile of letters": [(b"tEXt", b"Raw profile type exif\0\n\n\nxyz")],
        "raw profile empty": [(b"tEXt", b"Raw profile type exif\0")],
        "raw profile deflated": [(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(hexadecimal))],
        "raw profile deflated, cut": [(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(hexadecimal)[:-9])],
        "raw profile deflated badly": [(b"zTXt", b"Raw profile type exif\0\0text")],
        "raw profile international": [(b"iTXt", b"Raw profile type exif\0\0\0\0\0" + hexadecimal)],
        "raw profile and eXIf": [(b"tEXt", b"Raw profile type exif\0" + hexadecimal), (b"eXIf", tiff(orientation(8)))],
        "text exif": [(b"tEXt", b"exif\0" + six)],
        "deflated text exif": [(b"zTXt", b"exif\0\0" + zlib.compress(six))],
        "text xmp": [(b"tEXt", b'XML:com.adobe.xmp\0<d tiff:Orientation="6"/>')],
        "text of key xmp": [(b"tEXt", b'xmp\0<d tiff:Orientation="6"/>')],
        "xmp deflated": [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'<d tiff:Orientation="6"/>'))],
        "xmp deflated otherwise": [(b"iTXt", b"XML:com.adobe.xmp\0\1\1\0\0" + zlib.compress(b'tiff:Orientation="6"'))],
        "xmp cut": [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0")],
        "eXIf and xmp": [(b"eXIf", six), (b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<d tiff:Orientation="8"/>')],
        "malformed and xmp": [(b"eXIf", b"XX"), (b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<d tiff:Orientation="8"/>')],
    }
    for name, data in metadata_cases():
        ways[f"eXIf {name}"] = [(b"eXIf", data)]
    for name, data in xmp_cases():
        ways[f"xmp {name}"] = [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + data)]
    for name, chunks in ways.items():
        yield name, png([begin, *chunks, *pixels, end])
    for name in ("eXIf 6", "raw profile", "xmp attribute 6"):
        yield f"{name} at the end", png([begin, *pixels, *ways[name], end])
    long = b"Comment\0\0" + zlib.compress(bytes(3 << 20))
    profile = (b"iCCP", b"name\0\0" + zlib.compress(bytes(range(256)) * 8192))
    yield "long text", png([begin, (b"zTXt", long), (b"eXIf", six), *pixels, end])
    yield "long text at the end", png([begin, *pixels, (b"zTXt", long), (b"eXIf", six), end])
    yield "long profile", png([begin, profile, *pixels, end])
    yield "long profile, raw profile", png([begin, profile, *ways["raw profile deflated"], *pixels, end])
    yield "long plain text", png([begin, (b"tEXt", b"Comment\0" + b"text" * 500_000), *pixels, end])
    long_xmp = zlib.compress(b'<d tiff:Orientation="6"/>' + bytes(2 << 20))
    yield "long xmp", png([begin, (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + long_xmp), *pixels, end])


def _lines(text: bytes) -> bytes:
    """Return a text in lines of 36 characters."""
    return b"\n".join(text[i : i + 36] for i in range(0, len(text), 36))


def _parts(image: Image.Image) -> tuple[Chunk, list[Chunk], Chunk]:
    """Return the first chunk, the pixels in three, and the last chunk."""
    data = zlib.compress(rows_of(samples_of(image, 8, 2), 8, filtered=True))
    third = len(data) // 3
    pieces = (data[:third], data[third : 2 * third], data[2 * third :])
    return header(*image.size, 8, 2), [(b"IDAT", piece) for piece in pieces], (b"IEND", b"")


def _damaged(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Yield files that are damaged, or look so."""
    begin, pixels, end = _parts(image)
    data = b"".join(piece for _, piece in pixels)
    text = (b"tEXt", b"Comment\0text")
    whole = png([begin, text, *pixels, text, end])
    for kind, which in ((b"IHDR", 0), (b"tEXt", 0), (b"tEXt", 1), (b"IDAT", 0), (b"IDAT", 2), (b"IEND", 0)):
        at = -1
        for _ in range(which + 1):
            at = whole.index(kind, at + 1)
        at += 4 + int.from_bytes(whole[at - 4 : at], "big")
        yield f"checksum of {kind.decode()} {which}", whole[:at] + b"abcd" + whole[at + 4 :]
    for cut in (1, 4, 8, 12, 13, 20, 28, 40, 44, 45, 60, len(whole) // 2, len(whole) - 20, len(whole) - 40):
        yield f"cut {cut}", whole[:-cut]
    rows = rows_of(samples_of(image, 8, 2), 8)
    row = 3 * image.width + 1
    pieces: dict[str, list[bytes]] = {
        "rows missing": [zlib.compress(rows[: 20 * row])],
        "half a row missing": [zlib.compress(rows[: 20 * row + 40])],
        "rows missing, in pieces": [zlib.compress(rows[: 20 * row])[:-3], zlib.compress(rows[: 20 * row])[-3:]],
        "rows too many": [zlib.compress(rows + rows)],
        "more after the end": [data + b"more"],
        "another piece": [data, b"more"],
        "empty pieces": [b"", data[:50], b"", data[50:], b""],
        "single bytes": [data[i : i + 1] for i in range(40)] + [data[40:]],
        "sum wrong": [data[:-4] + b"abcd"],
        "sum missing": [data[:-4]],
        "start wrong": [b"\x70" + data[1:]],
        "damaged": [data[:200] + b"\x55\xaa" * 20 + data[240:]],
        "filter 5": [zlib.compress(b"\5" + rows[1:])],
        "no pixels": [],
        "stored": [zlib.compress(rows, 0)],
    }
    for name, parts in pieces.items():
        yield name, png([begin, *((b"IDAT", part) for part in parts), end])
    before: dict[str, Chunk] = {
        "gAMA short": (b"gAMA", b"\0\0\1"),
        "cHRM odd": (b"cHRM", bytes(30)),
        "sRGB empty": (b"sRGB", b""),
        "pHYs short": (b"pHYs", bytes(8)),
        "iCCP method": (b"iCCP", b"name\0\1text"),
        "iCCP without": (b"iCCP", b"name"),
        "iCCP damaged": (b"iCCP", b"name\0\0text"),
        "zTXt method": (b"zTXt", b"Comment\0\1text"),
        "zTXt without": (b"zTXt", b"Comment"),
        "unknown": (b"abCd", b"text"),
        "unknown critical": (b"ABCD", b"text"),
        "bad name": (b"t\xffXt", b"text"),
        "digits": (b"a1_B", b"text"),
        "acTL short": (b"acTL", bytes(7)),
        "fcTL short": (b"fcTL", bytes(20)),
        "palette of RGB": (b"PLTE", bytes(range(9))),
    }
    for name, chunk in before.items():
        yield f"before: {name}", png([begin, chunk, *pixels, end])
        yield f"after: {name}", png([begin, *pixels, chunk, end])
        yield f"between: {name}", png([begin, pixels[0], chunk, *pixels[1:], end])
    yield "text first", png([text, begin, *pixels, end])
    yield "two headers", png([header(3, 3, 1, 0), begin, *pixels, end])
    yield "header short", png([(b"IHDR", begin[1][:12]), *pixels, end])
    yield "header long", png([(b"IHDR", begin[1] + b"more"), *pixels, end])
    for at, value in ((8, 3), (9, 5), (10, 1), (11, 1), (12, 7), (0, 0x80), (3, 0)):
        yield f"header {at}", png([(b"IHDR", begin[1][:at] + bytes([value]) + begin[1][at + 1 :]), *pixels, end])
    stream = io.BytesIO()
    frames = [image.rotate(angle) for angle in (0, 90, 180)]
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    yield "animated", stream.getvalue()
    frame = (0).to_bytes(4, "big") + b"".join(side.to_bytes(4, "big") for side in (20, 20, 3, 3)) + bytes(6)
    small = (b"IDAT", zlib.compress(rows_of(samples_of(image.crop((3, 3, 23, 23)), 8, 2), 8)))
    yield "animated, first frame small", png([begin, (b"acTL", bytes([0, 0, 0, 2] * 2)), (b"fcTL", frame), small, end])
    stream = io.BytesIO()
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:], default_image=True)
    yield "animated after another", stream.getvalue()

"""WebP, GIF, BMP and TIFF in the C++ runner: the same decision and the same bytes as the Python runner's."""

from __future__ import annotations

import io
import itertools
import struct
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_runner.errors import ImageError
from llava_runner.image import load_image
from tests.integration.conftest import lacking
from tests.integration.image_files import LONG, SHORT, Tiff, aligned, bmp, gif, packed

WIDTH, HEIGHT = 37, 21  # neither is a multiple of anything


@pytest.fixture
def compare(native_build, tmp_path) -> Callable[[dict[str, bytes]], int]:
    """Compare both runners' images of some files. Returns how many both read."""
    log = (native_build / "configure.log").read_text()
    if "-- without" in log:
        lacking("a reader of WebP and TIFF", "apt-get install libwebp-dev libtiff-dev")

    def call(files: dict[str, bytes]) -> int:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        paths = "".join(f"{tmp_path / name}\0" for name in files)
        done = subprocess.run([native_build / "build/parts", "pixels"], input=paths.encode(), capture_output=True)
        assert done.returncode == 0, done.stderr
        found, read = io.BytesIO(done.stdout), 0
        differences: list[tuple[str, object]] = []
        for name in files:
            line = found.readline().decode()
            try:
                expected = load_image(tmp_path / name)
            except ImageError as error:
                if not line.startswith("error: "):
                    found.read(3 * int(np.prod([int(side) for side in line.split()])))
                    differences.append((name, f"C++ alone reads it: {error}"))
                continue
            assert isinstance(expected, Image.Image)
            if line.startswith("error: "):
                differences.append((name, f"Python alone reads it: {line}"))
                continue
            read += 1
            size = tuple(int(side) for side in line.split())
            pixels = np.frombuffer(found.read(3 * int(np.prod(size))), np.uint8)
            if size != expected.size:
                differences.append((name, (size, expected.size)))
            elif not np.array_equal(pixels, np.asarray(expected).reshape(-1)):
                differences.append((name, np.abs(pixels.astype(int) - np.asarray(expected).reshape(-1)).max()))
        assert not differences, "\n".join(map(str, differences))
        return read

    return call


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A smooth image with noise, with alpha."""
    generator = np.random.default_rng(0)
    smooth = Image.fromarray(generator.integers(0, 256, (4, 5, 4), dtype=np.uint8)).resize((WIDTH, HEIGHT))
    noise = generator.integers(-8, 9, (HEIGHT, WIDTH, 4))
    return Image.fromarray((np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_formats_that_are_not_read_are_named(compare, native_build, tmp_path, photo):
    def box(brand: bytes, *others: bytes) -> bytes:
        content = b"ftyp" + brand + bytes(4) + b"".join(others)
        return (len(content) + 4).to_bytes(4, "big") + content + bytes(50)

    heic = {f"{brand.decode()}.heic": box(brand, b"mif1", b"miaf") for brand in (b"heic", b"heix", b"mif1", b"msf1")}
    assert compare(heic) == 0
    for name in heic:
        with pytest.raises(ImageError, match="it is a HEIC image; save it as JPEG or PNG"):
            load_image(tmp_path / name)
    avif = {
        "brand.avif": box(b"avif"),
        "other.avif": box(b"mif1", b"miaf", b"avif"),
        "saved.avif": saved(photo, "AVIF"),
    }
    assert compare({"short.heic": b"\0\0\0\x18ftypheic", "video.mp4": box(b"isom", b"mp41")} | heic) == 0
    for name, content in (avif | heic).items():
        (tmp_path / name).write_bytes(content)
        done = subprocess.run(
            [native_build / "build/parts", "pixels"], input=f"{tmp_path / name}\0", capture_output=True, text=True
        )
        kind = "an AVIF" if name.endswith("avif") else "a HEIC"
        assert f"it is {kind} image; save it as JPEG or PNG" in done.stdout
    assert load_image(tmp_path / "saved.avif").size == photo.size  # the library is in Pillow


def test_sizes_that_lie_are_refused(compare):
    """Without memory or arithmetic for the pixels that they claim."""
    side = struct.pack("<L", 0xCF01_0203)
    samples = np.zeros((4, 4, 3), int)
    files = {
        "screen.gif": gif(np.zeros((2, 2), int), screen=(65535, 65535)),
        "huge.bmp": b"BM" + bytes(8) + struct.pack("<LL", 54, 40) + side[:3] + b"\x7f" + side[:3] + b"\x7f" + bytes(99),
        "negative.bmp": b"BM"
        + bytes(8)
        + struct.pack("<LL", 54, 40)
        + side
        + side
        + struct.pack("<HH", 1, 24)
        + bytes(99),
        "canvas.webp": b"RIFF" + struct.pack("<L", 22) + b"WEBPVP8X" + struct.pack("<LL", 10, 2) + b"\xff\x3f\0" * 2,
    }
    lies: dict[str, dict[int, tuple[int, tuple[int, ...]]]] = {
        "huge.tif": {256: (LONG, (0xCF01_0203,)), 257: (LONG, (0xCF01_0203,))},
        "tile.tif": {322: (LONG, (32768,)), 323: (LONG, (32768,))},
        "rows.tif": {278: (LONG, (0xFFFF_FFFE,))},
    }
    for name, tags in lies.items():
        tile = (16, 16) if name == "tile.tif" else None
        files[name] = Tiff(samples=samples, photometric=2, compression=8, tile=tile, tags=tags).content()
    assert compare(files) == 0


def damaged(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files cut at several places, and the whole ones with something behind them."""
    cut = {f"{part}_{name}": files[name][: len(files[name]) * part // 8] for name in files for part in range(1, 8)}
    return cut | {f"more_{name}": content + bytes(40) for name, content in files.items()}


def test_webp(compare, photo):
    opaque = photo.convert("RGB")
    big = photo.resize((300, 200))
    files = {f"lossy{quality}.webp": saved(opaque, "WEBP", quality=quality) for quality in (1, 40, 80, 100)}
    files |= {f"exact{method}.webp": saved(photo, "WEBP", lossless=True, method=method) for method in (0, 4)}
    files |= {
        "opaque.webp": saved(opaque, "WEBP", lossless=True),
        "alpha.webp": saved(photo, "WEBP", quality=70),
        "big.webp": saved(big, "WEBP", quality=70),
        "big_opaque.webp": saved(big.convert("RGB"), "WEBP", quality=70),
        "icc.webp": saved(opaque, "WEBP", icc_profile=bytes(3000)),
    }
    files |= {f"turned{turn}.webp": saved(opaque, "WEBP", exif=exif_with(turn)) for turn in range(1, 9)}
    frames = [photo.rotate(90 * turn) for turn in range(3)]
    small = Image.new("RGBA", photo.size)
    small.paste(photo.crop((4, 6, 20, 15)), (4, 6))
    for name, first in {"whole": photo, "small": small}.items():
        for lossless in (True, False):
            options: dict[str, Any] = {"save_all": True, "append_images": frames, "lossless": lossless}
            files[f"animated_{name}_{lossless}.webp"] = saved(first, "WEBP", **options)
            files[f"animated_opaque_{name}_{lossless}.webp"] = saved(first.convert("RGB"), "WEBP", **options)
    assert compare(files) == len(files)
    compare(damaged({name: files[name] for name in ("lossy40.webp", "alpha.webp", "animated_small_True.webp")}))


def test_gif(compare, photo):
    opaque = photo.convert("RGB")
    files = {f"colors{count}.gif": saved(opaque.quantize(count), "GIF") for count in (2, 3, 16, 200, 256)}
    files |= {
        "gray.gif": saved(opaque.convert("L"), "GIF"),
        "transparent.gif": saved(photo, "GIF"),
        "straight.gif": saved(opaque, "GIF", interlace=0),
        "large.gif": saved(opaque.resize((600, 500)), "GIF"),
        "animated.gif": saved(photo, "GIF", save_all=True, append_images=[photo.rotate(90)], disposal=2),
    }
    generator = np.random.default_rng(1)
    ramp = bytes(np.repeat(np.arange(256), 3).astype(np.uint8))
    some, other = generator.bytes(3 * 256), generator.bytes(3 * 64)
    indices = generator.integers(0, 256, (HEIGHT, WIDTH))
    screen = (WIDTH + 9, HEIGHT + 4)
    places = {"fits": (0, 0), "inside": (5, 3), "outside": (12, 40)}
    palettes = {"none": (b"", b""), "global": (some, b""), "local": (b"", other), "both": (some, other)}
    palettes |= {"ramp": (ramp, b""), "local_ramp": (b"", ramp), "ramp_over_colors": (some, ramp)}
    for (place, at), (palette, (colors, local)), transparent, interlaced in itertools.product(
        places.items(), palettes.items(), (None, 0, 7), (False, True)
    ):
        name = f"{place}_{palette}_{transparent}_{interlaced}.gif"
        options: dict[str, Any] = {"at": at, "colors": colors, "local_colors": local, "transparent": transparent}
        files[name] = gif(indices, screen=screen, interlaced=interlaced, **options)
    for height in (1, 2, 3, 4, 5, 9):
        files[f"rows{height}.gif"] = gif(indices[:height], screen=(WIDTH, 9), colors=some, interlaced=True)
    extensions = {
        "comment": b"!\xfe\x03abc\x02de\0",
        "empty_comment": b"!\xfe\0",
        "loop": b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0",
        "unknown": b"!\x01\x02ab\0xyz",
        "short": b"!\xf9\x01\x01\0",
    }
    for name, extension in extensions.items():
        files[f"{name}.gif"] = gif(indices, screen=screen, colors=some, extensions=extension)
    assert compare(files) >= len(files) - 2
    compare(damaged({name: files[name] for name in ("colors16.gif", "animated.gif", "inside_both_7_True.gif")}))


def bitmaps(photo: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Return the names and contents of BMP files of every kind."""
    size = (WIDTH, HEIGHT)
    generator = np.random.default_rng(2)
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"saved_{mode}", saved(photo.convert(mode), "BMP")
    for bits, header, top_down in itertools.product((1, 4, 8), (12, 40, 64, 124), (False, True)):
        indices = generator.integers(0, 2**bits, (HEIGHT, WIDTH))
        rows = [aligned(packed(indices[[y]], bits)) for y in range(HEIGHT)]
        entry = 3 if header == 12 else 4
        options: dict[str, Any] = {"size": size, "bits": bits, "header": header, "top_down": top_down}
        yield f"colors_{bits}_{header}_{top_down}", bmp(rows, colors=generator.bytes(entry << bits), **options)
        ramp = np.arange(2**bits) * (255 if bits == 1 else 1)
        gray = bytes(np.repeat(ramp, entry).astype(np.uint8))
        yield f"gray_{bits}_{header}_{top_down}", bmp(rows, colors=gray, **options)
    few = [aligned(packed(generator.integers(0, 9, (1, WIDTH)), 8)) for _ in range(HEIGHT)]
    yield "few_colors", bmp(few, size=size, bits=8, colors=generator.bytes(5 * 4))
    yield "black_white_8", bmp(few, size=size, bits=8, colors=bytes((0, 0, 0, 0, 255, 255, 255, 0)))
    for bits, header in itertools.product((16, 24, 32), (12, 40, 108)):
        rows = [aligned(generator.bytes(WIDTH * bits // 8)) for _ in range(HEIGHT)]
        yield f"plain_{bits}_{header}", bmp(rows, size=size, bits=bits, header=header)
    masks = [
        (16, 0xF800, 0x7E0, 0x1F, 0),
        (16, 0x7C00, 0x3E0, 0x1F, 0),
        (16, 0xF00, 0xF0, 0xF, 0),
        (24, 0xFF0000, 0xFF00, 0xFF, 0),
        (32, 0xFF0000, 0xFF00, 0xFF, 0),
        (32, 0xFF000000, 0xFF0000, 0xFF00, 0),
        (32, 0xFF000000, 0xFF00, 0xFF, 0),
        (32, 0xFF000000, 0xFF0000, 0xFF00, 0xFF),
        (32, 0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (32, 0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        (32, 0xFF000000, 0xFF00, 0xFF, 0xFF0000),
        (32, 0, 0, 0, 0),
        (32, 0xFF, 0xFF00, 0xFF0000, 0),
    ]
    for (bits, *mask), header in itertools.product(masks, (40, 52, 56, 124)):
        rows = [aligned(generator.bytes(WIDTH * bits // 8)) for _ in range(HEIGHT)]
        used = tuple(mask[:3] if header == 40 else mask)
        name = f"masks_{bits}_{'_'.join(f'{value:x}' for value in mask)}_{header}"
        yield name, bmp(rows, size=size, bits=bits, header=header, compression=3, masks=used)
    for index, (bits, top_down) in enumerate(itertools.product((4, 8), (False, True) * 8)):
        runs = b""
        for _ in range(HEIGHT):
            for _ in range(4):
                count = int(generator.integers(3, 9))
                single = generator.bytes(count if bits == 8 else count // 2)
                runs += bytes((0, count)) + single + bytes(len(single) % 2)
                runs += bytes((int(generator.integers(1, 12)), int(generator.integers(0, 256))))
            runs += b"\0\0" if generator.integers(4) else b"\0\2\3\1"
        options = {"size": size, "bits": bits, "top_down": top_down, "compression": 1 if bits == 8 else 2}
        grays = bytes(np.repeat(np.arange(256), 4).astype(np.uint8))
        colors = grays if bits == 8 and index % 3 == 0 else generator.bytes(4 << bits)
        yield f"runs{index}", bmp([runs, b"\0\1"], colors=colors, **options)


def test_bmp(compare, photo):
    files = {f"{name}.bmp": content for name, content in bitmaps(photo)}
    assert compare(files) > len(files) // 2
    compare(damaged({f"{name}.bmp": files[f"{name}.bmp"] for name in ("saved_RGB", "colors_4_40_False", "runs1")}))


PIXELS = [  # photometric, bits, channels, extra samples
    *((photometric, bits, 1, ()) for photometric in (0, 1) for bits in (1, 2, 4, 8, 12, 16, 32)),
    *((3, bits, 1, ()) for bits in (1, 2, 4, 8)),
    *((photometric, 8, 2, (extra,)) for photometric in (0, 1, 3) for extra in (0, 1, 2)),
    *((2, bits, 3 + len(extra), extra) for bits in (8, 16) for extra in ((), (0,), (1,), (2,), (2, 0), (1, 0, 0))),
    (2, 8, 4, ()),
    (2, 4, 3, ()),
    (2, 8, 4, (999,)),
    *((5, bits, 4 + len(extra), extra) for bits in (8, 16) for extra in ((), (0,), (2,))),
    (6, 8, 3, ()),
    (8, 16, 3, ()),
]


def tiffs() -> Iterator[tuple[str, bytes]]:
    """Return the names and contents of TIFF files made by hand: all kinds of pixels in all layouts."""
    generator = np.random.default_rng(3)
    layouts: dict[str, dict[str, Any]] = {
        "strip": {},
        "strips": {"rows": 5},
        "tiles": {"tile": (16, 16)},
        "planes": {"planar": 2, "rows": 8},
        "plane_tiles": {"planar": 2, "tile": (16, 32)},
    }
    for (photometric, bits, channels, extra), (layout, options) in itertools.product(PIXELS, layouts.items()):
        samples = generator.integers(0, 2 ** min(bits, 17), (HEIGHT, WIDTH, channels))
        tags = {320: (SHORT, tuple(generator.integers(0, 65536, 3 * 2**bits).tolist()))} if photometric == 3 else {}
        if photometric == 6:
            tags = {530: (SHORT, (1, 1))}  # as many samples of color as of light
        if channels == 2 and "plane" in layout:
            continue  # Pillow takes their alpha for 0
        for order, compression, fill_order in [("<", 1, 1), (">", 1, 1), ("<", 8, 1), (">", 32773, 1), ("<", 1, 2)]:
            file = Tiff(samples=samples, bits=bits, photometric=photometric, extra=extra, tags=tags, **options)
            file.order, file.compression, file.fill_order = order, compression, fill_order
            kind = f"{photometric}_{bits}_{channels}_{'-'.join(map(str, extra))}"
            yield f"{kind}_{layout}_{'II' if order == '<' else 'MM'}_{compression}_{fill_order}", file.content()
    for order, compression, signed in itertools.product("<>", (1, 8), (8, 16, 32)):
        samples = generator.integers(0, 2**signed, (HEIGHT, WIDTH, 1))
        file = Tiff(samples=samples, bits=signed, order=order, compression=compression, tags={339: (SHORT, (2,))})
        yield f"signed_{order == '<'}_{compression}_{signed}", file.content()
    samples = generator.integers(0, 256, (HEIGHT, WIDTH, 3))
    for orientation, big, compression in itertools.product(range(10), (False, True), (1, 8)):
        tags = {274: (SHORT, (orientation,))}
        file = Tiff(samples=samples, photometric=2, big=big, compression=compression, tags=tags)
        yield f"turned_{orientation}_{big}_{compression}", file.content()
        file = Tiff(samples=samples[..., :1], big=big, compression=compression, tags=tags)
        yield f"turned_gray_{orientation}_{big}_{compression}", file.content()


def test_tiff_by_hand(compare):
    files = {f"{name}.tif": content for name, content in tiffs()}
    assert compare(files) > len(files) // 2
    cut = ("2_8_3__strips_II_1_1.tif", "2_8_3__strips_II_8_1.tif", "3_4_1__tiles_MM_32773_1.tif")
    compare(damaged({name: files[name] for name in cut}))


def test_tiff_as_pillow_writes_it(compare, photo):
    for_all = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd")
    modes = ("1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr")
    kinds = [*itertools.product(modes, for_all), *(("1", name) for name in ("group3", "group4", "tiff_ccitt"))]
    kinds += [(mode, "jpeg") for mode in ("L", "RGB", "CMYK", "YCbCr")]
    files = {
        f"{mode}_{compression}.tif": saved(photo.convert(mode), "TIFF", compression=compression)
        for mode, compression in kinds
    }
    for quality, predictor in ((30, 1), (90, 2)):
        files[f"jpeg{quality}.tif"] = saved(photo.convert("RGB"), "TIFF", compression="jpeg", quality=quality)
        content = saved(photo.convert("RGB"), "TIFF", compression="tiff_lzw", tiffinfo={317: predictor})
        files[f"predictor{predictor}.tif"] = content
    large = photo.convert("RGB").resize((400, 300))
    for compression in ("jpeg", "tiff_lzw"):
        files[f"large_{compression}.tif"] = saved(large, "TIFF", compression=compression)
    assert compare(files) == len(files)
    compare(damaged({name: files[name] for name in ("RGB_tiff_lzw.tif", "1_group4.tif", "YCbCr_jpeg.tif")}))

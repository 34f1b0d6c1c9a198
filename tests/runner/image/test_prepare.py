import io

import numpy as np
import pytest
import torch
from PIL import Image

from llava_runner.contract import IMAGE_ASPECT_RATIOS
from llava_runner.errors import ImageError
from llava_runner.image import fit, load_image, prepare_image, preprocess, to_rgb

MEAN = (0.48145466, 0.4578275, 0.40821073)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
SIZES = [(336, 336), (640, 480), (480, 640), (337, 336), (101, 37), (37, 101), (20, 21), (1000, 333), (15, 300)]


def noise(width, height):
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def clip_processor(size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        do_rescale=False,
        do_normalize=False,
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image_size", [56, 336])
def test_crop_equals_clip_image_processor(size, image_size):
    image = noise(*size)
    expected = clip_processor(image_size)(image, return_tensors="np")["pixel_values"][0]
    actual = preprocess(image, image_size=image_size, image_mean=MEAN, image_aspect_ratio="crop")
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("size", SIZES)
def test_pad_equals_padding_by_hand_then_clip_image_processor(size):
    image = noise(*size)
    width, height = size
    side = max(size)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = (122, 116, 104)
    square[top : top + height, left : left + width] = np.asarray(image)
    expected = clip_processor(56)(Image.fromarray(square), return_tensors="np")["pixel_values"][0]
    actual = preprocess(image, image_size=56, image_mean=MEAN, image_aspect_ratio="pad")
    np.testing.assert_array_equal(actual, expected)


def test_unknown_aspect_ratio_is_refused():
    with pytest.raises(ImageError, match="'square': choose from pad, crop, stretch"):
        preprocess(noise(9, 9), image_size=56, image_mean=MEAN, image_aspect_ratio="square")


@pytest.mark.parametrize(
    ("size", "expected"),
    [((640, 480), (42, 56)), ((480, 640), (56, 42)), ((10, 10), (56, 56)), ((1000, 36), (2, 56)), ((56, 2), (2, 56))],
)
def test_fit_keeps_the_aspect_and_touches_the_square(size, expected):
    assert fit(noise(*size), image_size=56).shape == (3, *expected)


def saved(image, tmp_path, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def loaded(path):
    """Return the image in a file that is no tensor file."""
    image = load_image(path)
    assert isinstance(image, Image.Image) and image.mode == "RGB"
    return image


def first_pixel(path):
    return loaded(path).getpixel((0, 0))


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (8, 4), RED)
    image.putpixel((0, 3), BLUE)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the left column is to be the top row
    upright = loaded(saved(image, tmp_path, "turned.png", exif=exif))
    assert upright.size == (4, 8)
    assert upright.getpixel((0, 0)) == BLUE


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_become_white(tmp_path, mode):
    hidden = (*RED, 0) if mode == "RGBA" else (0, 0)
    assert first_pixel(saved(Image.new(mode, (4, 4), hidden), tmp_path, "clear.png")) == WHITE


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 51))
    assert first_pixel(saved(image, tmp_path, "veil.png")) == (204, 204, 204)


def test_palette_with_a_transparent_color(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    path = saved(image, tmp_path, "palette.png", transparency=0)
    assert first_pixel(path) == WHITE
    assert loaded(path).getpixel((1, 0)) == GREEN


def test_rgb_with_a_transparent_color(tmp_path):
    assert first_pixel(saved(Image.new("RGB", (4, 4), RED), tmp_path, "key.png", transparency=RED)) == WHITE


def test_gray_and_black_and_white(tmp_path):
    assert first_pixel(saved(Image.new("L", (4, 4), 77), tmp_path, "gray.png")) == (77, 77, 77)
    assert first_pixel(saved(Image.new("1", (4, 4), 1), tmp_path, "bilevel.png")) == WHITE


def test_16_bit_gray_is_scaled_not_clipped(tmp_path):
    image = Image.fromarray(np.full((4, 4), 200 * 257, dtype=np.uint16))
    assert first_pixel(saved(image, tmp_path, "deep.png")) == (200, 200, 200)
    assert to_rgb(Image.new("I", (4, 4), 200 * 257)).getpixel((0, 0)) == (200, 200, 200)


def test_cmyk_becomes_rgb(tmp_path):
    assert first_pixel(saved(Image.new("CMYK", (4, 4), (0, 0, 0, 255)), tmp_path, "ink.tiff")) == (0, 0, 0)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, BLUE)]
    path = saved(frames[0], tmp_path, "moving.gif", save_all=True, append_images=frames[1:])
    assert first_pixel(path) == RED


def test_floating_point_pixels_are_refused():
    with pytest.raises(ImageError, match="floating-point"):
        to_rgb(Image.new("F", (4, 4)))


def test_missing_file(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png does not exist"):
        load_image(tmp_path / "nowhere.png")


@pytest.mark.parametrize("content", [b"", b"just some text", b"\x89PNG\r\n\x1a\n"])
def test_files_that_are_no_images(tmp_path, content):
    path = tmp_path / "text.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"text\.jpg is not an image"):
        load_image(path)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(ImageError, match="not an image"):
        load_image(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
def test_truncated_images(tmp_path, kind):
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, kind)
    path = tmp_path / "cut"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(ImageError, match="not an image that can be read"):
        load_image(path)


def test_one_pixel_is_too_small(tmp_path):
    with pytest.raises(ImageError, match=r"dot\.png: 1x1 pixels is too small"):
        load_image(saved(Image.new("RGB", (1, 1)), tmp_path, "dot.png"))


@pytest.mark.parametrize("image_aspect_ratio", IMAGE_ASPECT_RATIOS)
def test_thin_images_are_refused(image_aspect_ratio):
    with pytest.raises(ImageError, match="20000x10 pixels is too thin"):
        preprocess(
            Image.new("RGB", (20000, 10)), image_size=336, image_mean=MEAN, image_aspect_ratio=image_aspect_ratio
        )
    with pytest.raises(ImageError, match="too thin"):
        fit(Image.new("RGB", (20000, 10)), image_size=336)


@pytest.mark.parametrize("factor", [1.5, 3])  # Pillow warns above its limit and refuses above twice the limit
def test_decompression_bombs(tmp_path, monkeypatch, factor):
    path = saved(Image.new("RGB", (100, 100)), tmp_path, "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(100 * 100 / factor))
    with pytest.raises(ImageError, match=r"bomb\.png is too large"):
        load_image(path)


def prepare(image):
    return prepare_image(image, image_size=28, image_mean=MEAN, image_aspect_ratio="pad")


def test_tensors_are_taken_as_they_are(tmp_path):
    tensor = torch.randint(0, 256, (3, 28, 17), dtype=torch.uint8)
    path = tmp_path / "image.pt"
    torch.save(tensor, path)
    for source in (path, str(path), tensor, tensor.numpy()):
        np.testing.assert_array_equal(prepare(source), tensor.numpy())


def test_images_and_their_files_are_preprocessed(tmp_path):
    image = noise(50, 40)
    expected = preprocess(image, image_size=28, image_mean=MEAN, image_aspect_ratio="pad")
    np.testing.assert_array_equal(prepare(image), expected)
    np.testing.assert_array_equal(prepare(saved(image, tmp_path, "noise.png")), expected)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(3, 29, 28, dtype=torch.uint8), "28x29 pixels and the model sees 28x28"),
        (torch.zeros(3, 1, 28, dtype=torch.uint8), "28x1 pixels is too small"),
        (torch.zeros(3, 28, 28), r"uint8 \[3, H, W\]; this one is float32 \[3, 28, 28\]"),
        (torch.zeros(1, 3, 28, 28, dtype=torch.uint8), r"this one is uint8 \[1, 3, 28, 28\]"),
        (torch.zeros(28, 28, 3, dtype=torch.uint8), r"this one is uint8 \[28, 28, 3\]"),
    ],
)
def test_tensors_of_another_kind_are_refused(tensor, message):
    with pytest.raises(ImageError, match=message):
        prepare(tensor)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 not a zip after all"])
def test_damaged_tensor_files(tmp_path, content):
    path = tmp_path / "image.pt"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"not an image tensor written by torch\.save"):
        prepare(path)


def test_tensor_files_with_something_else_inside(tmp_path):
    torch.save({"image": 1}, tmp_path / "image.pt")
    with pytest.raises(ImageError, match=r"not an image tensor written by torch\.save"):
        prepare(tmp_path / "image.pt")

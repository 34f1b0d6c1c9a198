"""Images for the vision encoder: read from files of any format, made upright, opaque and square."""

from llava_runner.image.prepare import fit, load_image, prepare_image, prepare_image_for, preprocess, to_rgb

__all__ = ["fit", "load_image", "prepare_image", "prepare_image_for", "preprocess", "to_rgb"]

"""The whole model. It has one child module for each method of the exported program, with the method's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_export.config import LlavaConfig
from llava_export.models import names
from llava_export.models.llama import CachedAttention, LlamaDecoder
from llava_export.models.projectors import build_projector
from llava_export.models.vision_towers import build_vision_tower


class VisionEncoder(nn.Module):
    """The way from an image's bytes to rows for the decoder: normalization, vision tower, projector."""

    def __init__(self, config: LlavaConfig, *, image_mean: Sequence[float], image_std: Sequence[float]) -> None:
        super().__init__()
        assert config.vision is not None and config.projector is not None
        self.image_size = config.vision.image_size
        self.vision_tower = build_vision_tower(config.vision)
        self.projector = build_projector(config.projector)
        # Normalization, (x / 255 - mean) / std, becomes one product and one sum.
        mean, std = (torch.tensor(values, device="cpu").reshape(3, 1, 1) for values in (image_mean, image_std))
        self.register_buffer("scale", 1.0 / (255.0 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    scale: Tensor
    shift: Tensor

    def forward(self, image_3HW: Tensor) -> Tensor:
        """Return rows ``float32 [1, num_image_tokens, hidden_size]`` for an RGB image ``uint8 [3, H, W]``.

        Neither side may be longer than the image size.
        """
        return self.projector(self.vision_tower(self.pixel_values(image_3HW)))

    def pixel_values(self, image_3HW: Tensor) -> Tensor:
        """Return an image ``uint8 [3, H, W]`` normalized, in the center of ``[1, 3, image_size, image_size]``.

        The zeros around the normalized image are exactly the mean color around the original.
        """
        _, height, width = image_3HW.shape
        left, top = (self.image_size - width) // 2, (self.image_size - height) // 2
        normalized = image_3HW.to(torch.float32) * self.scale + self.shift
        padding = (left, self.image_size - width - left, top, self.image_size - height - top)
        return F.pad(normalized, padding).reshape(1, 3, self.image_size, self.image_size)


class LlavaModel(nn.Module):
    """A LLaVA model with the children ``vision_encoder``, ``token_embedding`` and ``text_decoder``.

    A language model alone has no ``vision_encoder``.

    Build it under ``torch.device("meta")`` to get the shapes without the weights. ``cached_attention`` is the class of
    the decoder's attention, and ``logits_to_keep`` the number of last tokens whose logits it gives. ``has_tied_head``
    says that the head's weights are those of the token embedding; the module of each has them.
    """

    def __init__(
        self,
        config: LlavaConfig,
        *,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        max_context_len: int,
        logits_to_keep: int = 1,
        cached_attention: Callable[..., nn.Module] = CachedAttention,
    ) -> None:
        super().__init__()
        self.has_tied_head = config.text.tie_word_embeddings
        if config.vision is not None:
            self.vision_encoder = VisionEncoder(config, image_mean=image_mean, image_std=image_std)
        self.token_embedding = nn.Embedding(config.text.vocab_size, config.text.hidden_size)
        self.text_decoder = LlamaDecoder(
            config.text,
            max_context_len=max_context_len,
            logits_to_keep=logits_to_keep,
            cached_attention=cached_attention,
        )

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the parts that are loaded, run and quantized one by one, as ``(fqn, module)`` in the order they run."""
        blocks = []
        if hasattr(self, names.VISION_ENCODER):
            tower = self.vision_encoder.vision_tower
            blocks += [f"{names.VISION_TOWER}.{name}" for name in tower.stem]
            blocks += [names.tower_layer(i) for i in range(len(tower.layers))]
            blocks += [names.PROJECTOR]
        blocks += [names.TOKEN_EMBEDDING]
        blocks += [names.decoder_layer(i) for i in range(len(self.text_decoder.layers))]
        blocks += [names.DECODER_NORM, names.LM_HEAD]
        for block in blocks:
            yield block, self.get_submodule(block)

"""MobileVLM and MobileVLM V2 as their authors publish them: ``MobileLlamaForCausalLM``.

The layout is LLaVA's own. Only the projectors are MobileVLM's: LDP in V1 and LDPv2 in V2.
"""

from __future__ import annotations

from llava_export.families import original
from llava_export.families.prompts import VICUNA_V1

MOBILEVLM = original.family(
    name="mobilevlm",
    model_types=("mobilevlm",),
    projectors=("ldpnet", "ldpnetv2"),
    prompt=VICUNA_V1,
    question="What is in the image?",
)

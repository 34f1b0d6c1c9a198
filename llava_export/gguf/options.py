"""The types that GGUF files can have. This file imports nothing, so that ``--help`` is instant."""

TEXT_QUANTIZATIONS = ("f16", "q8_0", "q4_0", "q4_k_s", "q4_k_m", "q5_k_m")
DEFAULT_QUANTIZATION = "q4_k_m"
MMPROJ_TYPES = ("f16", "q8_0", "f32")
DEFAULT_MMPROJ_TYPE = "f16"

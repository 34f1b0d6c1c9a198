"""Marks that tests of several folders share."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

needs_llama_cpp = pytest.mark.skipif(
    find_spec("llama_cpp") is None, reason="llama-cpp-python (extra llama) takes long to build"
)

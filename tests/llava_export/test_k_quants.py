"""Q4_K, Q5_K and Q6_K: blocks that ``quantize_k`` writes, decoded by the gguf package."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from llava_export.gguf import k_quants
from llava_export.gguf.k_quants import quantize_k
from tests.marks import needs_llama_cpp

Q4_K, Q5_K, Q6_K = GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q5_K, GGMLQuantizationType.Q6_K
TYPES = pytest.mark.parametrize("type", [Q4_K, Q5_K, Q6_K], ids=lambda type: type.name)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Compute with one thread: several would mostly wait for each other, as the operations are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def decoded(rows: torch.Tensor, type: GGMLQuantizationType) -> torch.Tensor:
    """Return rows, quantized and decoded."""
    return torch.from_numpy(dequantize(quantize_k(rows, type), type))


def relative_rmse(rows: torch.Tensor, type: GGMLQuantizationType) -> float:
    """Return the root mean square of the error, divided by that of the rows."""
    return ((decoded(rows, type) - rows).norm() / rows.norm()).item()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return normally distributed values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized_by_llama_cpp(rows: torch.Tensor, type: GGMLQuantizationType) -> torch.Tensor:
    """Return rows, quantized by llama.cpp and decoded."""
    import llama_cpp

    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    block, block_bytes = GGML_QUANT_SIZES[type]
    packed = np.empty((rows.shape[0], rows.shape[1] // block * block_bytes), dtype=np.uint8)
    library.ggml_quantize_init(ctypes.c_int(type))
    library.ggml_quantize_chunk(
        ctypes.c_int(type), ctypes.c_void_p(rows.data_ptr()), ctypes.c_void_p(packed.ctypes.data),
        ctypes.c_int64(0), ctypes.c_int64(rows.shape[0]), ctypes.c_int64(rows.shape[1]), None,
    )  # fmt: skip
    return torch.from_numpy(dequantize(packed, type))


@needs_llama_cpp
@TYPES
@pytest.mark.parametrize("tail", ["gaussian", "heavy tailed", "uniform"])
def test_error_is_within_2_percent_of_that_of_llama_cpp(tail, type):
    rows = 0.02 * random(64, 4096)
    if tail == "heavy tailed":
        rows = rows * rows.abs().sqrt()
    elif tail == "uniform":
        rows = torch.rand(64, 4096, generator=torch.Generator().manual_seed(0)) - 0.5
    ours, theirs = decoded(rows, type) - rows, quantized_by_llama_cpp(rows.contiguous(), type) - rows
    assert float(ours.norm() / theirs.norm()) < 1.02


# The errors of llama.cpp's own quantizers for Q4_K, Q5_K and Q6_K are 0.0715, 0.0362 and 0.0178 on Gaussian weights,
# and 0.0546, 0.0276 and 0.0135 on uniform ones.
@pytest.mark.parametrize(("type", "bound"), [(Q4_K, 0.0717), (Q5_K, 0.0364), (Q6_K, 0.0179)])
def test_error_on_gaussian_weights(type, bound):
    assert 0.98 * bound < relative_rmse(0.02 * random(64, 4096), type) < bound


@pytest.mark.parametrize(("type", "bound"), [(Q4_K, 0.0549), (Q5_K, 0.0278), (Q6_K, 0.0134)])
def test_error_on_uniform_weights(type, bound):
    rows = 0.04 * torch.rand(64, 4096, generator=torch.Generator().manual_seed(0)) - 0.02
    assert 0.98 * bound < relative_rmse(rows, type) < bound


@pytest.mark.parametrize(("type", "highest"), [(Q4_K, 15), (Q5_K, 31)])
def test_grid_with_mins_is_exact(type, highest):
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(highest + 1, (50, 8, 32), generator=generator)
    q[:, :, 4], q[:, :, 9] = 0, highest  # each sub-block spans its range
    scales = torch.randint(64, (50, 8, 1), generator=generator)
    mins = torch.randint(64, (50, 8, 1), generator=generator)
    scales[:, 3], mins[:, 5] = 63, 63
    rows = (2**-11 * scales * q - 2**-10 * mins).view(50, 256)
    assert torch.equal(decoded(rows, type), rows)


def test_symmetric_grid_is_exact():
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(-32, 32, (50, 16, 16), generator=generator)
    q[:, :, 4], q[:, :, 9] = -32, 31
    scales = torch.randint(-128, 128, (50, 16, 1), generator=generator)
    scales[:, 3] = -128
    rows = (2**-12 * scales * q).view(50, 256)
    assert torch.equal(decoded(rows, Q6_K), rows)


@TYPES
def test_zeros_stay_zeros(type):
    rows = torch.zeros(2, 512)
    assert torch.equal(decoded(rows, type), rows)
    rows[0, 300] = 1.0
    assert decoded(rows, type).count_nonzero() == 1


@TYPES
@pytest.mark.parametrize("value", [1.0, -1.0, 0.3, -0.3, 1e3, -1e3])
def test_constant_blocks(type, value):
    rows = torch.full((1, 256), value)
    torch.testing.assert_close(decoded(rows, type), rows, rtol=5e-4, atol=0)


@TYPES
def test_narrow_blocks_away_from_zero(type):
    rows = random(4, 1024) * 0.01
    assert relative_rmse(1 + rows, type) < 0.011
    assert relative_rmse(-1 - rows, type) < (0.011 if type is Q6_K else 0.0015)  # Q6_K has no min


@TYPES
@pytest.mark.parametrize("outlier", [5.0, -5.0])
def test_an_outlier_keeps_its_value_and_the_other_sub_blocks_theirs(type, outlier):
    rows = random(1, 256) * 0.05
    rows[0, 70] = outlier
    values = decoded(rows, type)
    assert values[0, 70] == pytest.approx(outlier, rel=0.01)
    elsewhere = torch.cat([rows[:, :64] - values[:, :64], rows[:, 96:] - values[:, 96:]], dim=1)
    assert elsewhere.square().mean().sqrt() < 0.03


@TYPES
@pytest.mark.parametrize("magnitude", [1e-40, 1e-30, 1e-7, 1e-5, 1e6, 1e8, 1e10, 1e25, 1e37])
def test_magnitudes_outside_float16_stay_finite_and_bounded(type, magnitude):
    rows = magnitude * random(2, 512)
    values = decoded(rows, type)
    assert values.isfinite().all()
    assert values.abs().max() <= 1.1 * rows.abs().max() + 1e-6


@TYPES
def test_magnitudes_within_float16_keep_their_relative_error(type):
    error = relative_rmse(random(4, 1024), type)
    assert relative_rmse(1e6 * random(4, 1024), type) == pytest.approx(error, rel=0.01)
    assert relative_rmse(1e-3 * random(4, 1024), type) == pytest.approx(error, rel=0.05)


@TYPES
def test_super_blocks_follow_each_other_along_a_row(type):
    rows = random(3, 5, 1024)
    packed = quantize_k(rows, type)
    block_bytes = GGML_QUANT_SIZES[type][1]
    assert packed.dtype == np.uint8
    assert packed.shape == (3, 5, 4 * block_bytes)
    blocks = quantize_k(rows.view(-1, 256), type)
    np.testing.assert_array_equal(packed.reshape(-1, block_bytes), blocks)
    np.testing.assert_array_equal(quantize_k(rows[1:, 2], type), packed[1:, 2])


@TYPES
def test_transposed_and_half_precision_rows(type):
    rows = random(256, 8).bfloat16()
    np.testing.assert_array_equal(quantize_k(rows.T, type), quantize_k(rows.float().T.contiguous(), type))


@TYPES
def test_result_does_not_depend_on_chunks(type, monkeypatch):
    rows = random(37, 1024)
    packed = quantize_k(rows, type)
    np.testing.assert_array_equal(quantize_k(rows[30:], type), packed[30:])
    for chunk in (8, 24, 56, 64):
        monkeypatch.setattr(k_quants, "CHUNK", chunk)
        np.testing.assert_array_equal(quantize_k(rows, type), packed)


@TYPES
@pytest.mark.parametrize("columns", [1, 255, 384])
def test_columns_that_are_not_whole_super_blocks(type, columns):
    with pytest.raises(ValueError, match=f"{columns} columns are not a multiple of 256"):
        quantize_k(torch.zeros(2, columns), type)


def test_other_types():
    with pytest.raises(ValueError, match="Q8_0 is none of Q4_K, Q5_K, Q6_K"):
        quantize_k(torch.zeros(2, 256), GGMLQuantizationType.Q8_0)

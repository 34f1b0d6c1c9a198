"""GPTQ (Frantar et al., 2022): rounds the columns of a weight in turn, and lets those to come make up for the error.

What is made small is not the error of the weight but that of the linear's output, for the inputs of a calibration set.
Two choices are of the authors' later code: columns with the largest inputs come first ("activation order"), and each
group's scale is chosen before that from its own columns, so that groups stay where XNNPACK wants them.

The inputs are those of a model whose earlier layers are rounded. The weight is first moved toward the outputs that the
float model has, so that errors do not add up from layer to layer: "Quantization Error Propagation" (Arai and Ichikawa,
2025).
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava_export.quantize.scales import GREATEST, LEAST, scales_for_inputs

# Shares of the mean squared input of which one is added to all, the first with which the matrix can be inverted.
DAMPINGS = (0.01, 0.1, 1.0)
# How far the weight is moved toward the float model's outputs. All the way would fit the calibration set too closely.
PROPAGATION = 0.5
COLUMNS_AT_ONCE = 128  # whose errors reach the other columns by one product


def gptq(weight_OI: Tensor, hessian_II: Tensor, drift_II: Tensor, *, group_size: int) -> tuple[Tensor, Tensor]:
    """Return the integers ``int8 [O, I]`` and scales ``float32 [O, I / group_size]`` of a linear with 4-bit weights.

    ``hessian_II`` is the sum of ``x x^T`` over the inputs ``x`` of the linear in the rounded model, and ``drift_II``
    that of ``(y - x) x^T`` where ``y`` is the same input in the float model.
    """
    squares_I = hessian_II.diagonal().clone()
    order = squares_I.argsort(descending=True)
    factor_II = inverse_factor(hessian_II, order)
    change_OI = _toward_float(weight_OI, drift_II[:, order], factor_II)
    weight_OI = weight_OI.index_add(1, order, change_OI, alpha=PROPAGATION)
    del change_OI
    scales = scales_for_inputs(weight_OI, squares_I, group_size=group_size)
    # Rows are columns here, so that each is contiguous.
    left_IO = weight_OI.T[order].contiguous()
    integers_IO = torch.empty(left_IO.shape, dtype=torch.int8, device=left_IO.device)
    scales_gO = scales.T.contiguous()
    group_of = (order // group_size).tolist()
    for start in range(0, len(order), COLUMNS_AT_ONCE):
        end = min(start + COLUMNS_AT_ONCE, len(order))
        block_BO, errors_BO = left_IO[start:end], torch.empty_like(left_IO[start:end])
        factor_BB = factor_II[start:end, start:end]
        for i in range(end - start):
            scale_O = scales_gO[group_of[start + i]]
            integer_O = (block_BO[i] / scale_O).round_().clamp_(LEAST, GREATEST)
            integers_IO[start + i] = integer_O
            error_O = (block_BO[i] - integer_O * scale_O).div_(factor_BB[i, i])
            errors_BO[i] = error_O
            block_BO[i + 1 :].addr_(factor_BB[i, i + 1 :], error_O, alpha=-1)
        left_IO[end:].addmm_(factor_II[start:end, end:].T, errors_BO, alpha=-1)
    integers_OI = torch.empty(weight_OI.shape, dtype=torch.int8, device=weight_OI.device)
    integers_OI[:, order] = integers_IO.T
    return integers_OI, scales


def _toward_float(weight_OI: Tensor, drift_II: Tensor, factor_II: Tensor) -> Tensor:
    """Return the change of a weight that fits the float model's outputs best: ``weight drift (H + damping)^-1``.

    The columns of ``drift_II`` and of the result are in the order of ``factor_II``. The products are computed in the
    order that takes the least time.
    """
    if len(weight_OI) <= len(drift_II):
        return weight_OI @ drift_II @ factor_II.T @ factor_II
    return weight_OI @ (drift_II @ factor_II.T @ factor_II)


def inverse_factor(hessian_II: Tensor, order: Tensor) -> Tensor:
    """Return the upper triangular ``U`` with ``U^T U = (H + damping)^-1``, rows and columns of H put into ``order``.

    Read backwards, H is ``L L^T`` with a lower triangular L. Read backwards again, the inverse of L is U.
    """
    backwards = order.flip(0)
    damped_II = hessian_II[backwards[:, None], backwards]
    mean, added = float(damped_II.diagonal().mean()), 0.0
    for damping in DAMPINGS:
        damped_II.diagonal().add_((damping - added) * mean + 1e-10)
        added = damping
        factor_II, failed = torch.linalg.cholesky_ex(damped_II)
        if not failed:
            break
    else:
        raise torch.linalg.LinAlgError("the products of the inputs have no inverse: they are not finite")
    del damped_II
    identity = torch.eye(len(factor_II), dtype=factor_II.dtype, device=factor_II.device)
    inverse_II = torch.linalg.solve_triangular(factor_II, identity, upper=False)
    del factor_II, identity
    return inverse_II.flip(0, 1)

"""What a program's methods need, against what a runtime has."""

from __future__ import annotations

from collections import Counter

import pytest

from llava_export.doctor.findings import Severity
from llava_export.doctor.program import check_operators
from llava_export.pte.read.types import Method
from llava_export.pte.report import REASONS, SERIALIZED, unexplained_operators
from llava_runner.program import runtime_names

HERE = {"aten::_to_copy.out", "aten::mul.out", "aten::rsqrt.out", "executorch_prim::add.Scalar"}


def method(name: str, *, outside: dict[str, int], delegates: dict[str, int]) -> Method:
    """Return a method of a program that has these operators and delegates."""
    return Method(name, (), (), Counter(delegates), Counter(outside), Counter(), 0, (), ())


@pytest.mark.parametrize(
    ("name", "outside", "delegates", "severity", "cause"),
    [
        (
            "text_decoder",
            {"aten::_to_copy.out": 3, "llama::new_sdpa.out": 1, "aten::mul.Tensor_out": 2},
            {"XnnpackBackend": 1},
            Severity.BROKEN,
            "text_decoder needs operators that the runtime here lacks: llama::new_sdpa.out, aten::mul.Tensor_out",
        ),
        (
            "vision_encoder",
            {},
            {"CoreMLBackend": 2, "XnnpackBackend": 1},
            Severity.BROKEN,
            "vision_encoder needs the backend CoreMLBackend, which the runtime here lacks",
        ),
        ("vision_encoder", {"aten::_to_copy.out": 1}, {}, Severity.DOUBTFUL, "vision_encoder delegates nothing"),
        (
            "text_decoder",
            {"aten::rsqrt.out": 4, "aten::mul.out": 1, "aten::_to_copy.out": 1, "executorch_prim::add.Scalar": 1},
            {"XnnpackBackend": 1},
            Severity.DOUBTFUL,
            "text_decoder computes aten::rsqrt.out, aten::mul.out outside of XNNPACK",
        ),
    ],
)
def test_what_a_method_lacks_is_named(name, outside, delegates, severity, cause):
    methods = [
        method(name, outside=outside, delegates=delegates),
        method("token_embedding", outside={"aten::_to_copy.out": 1}, delegates={}),
    ]
    (finding,) = check_operators(methods, operators=HERE, backends={"XnnpackBackend"})
    assert finding.severity == severity and finding.what.startswith(cause) and finding.remedy


def test_the_runtime_here_has_what_programs_of_this_project_need():
    operators, backends = runtime_names()
    assert "XnnpackBackend" in backends
    assert {"llama::custom_sdpa.out", "llama::update_cache.out"} <= operators
    # What serializing makes of other operators is registered under the names that are looked for.
    for name in SERIALIZED:
        assert any(it.startswith(f"{name.replace('.', '::')}.") for it in operators), name
    assert set(SERIALIZED.values()) <= REASONS.keys()


def test_operators_are_explained_by_the_names_that_a_program_has_for_them():
    explained = ["aten::slice_copy.Tensor_out", "aten::_local_scalar_dense", "executorch_prim::et_view.default"]
    explained += ["quantized_decomposed::embedding_4bit.dtype_out", "executorch_prim::floordiv.Scalar"]
    assert unexplained_operators([*explained, "aten::bmm.out", "aten::slice.out"]) == [
        "aten::bmm.out",
        "aten::slice.out",
    ]

"""A program, read from its file. Only the flatbuffer and the delegates' payloads are read.

No weight is read, so it takes about as long for a large program as for a small one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_export.pte.read import execution_plan
from llava_export.pte.read.accounting import account
from llava_export.pte.read.container import Container, Payload, layout
from llava_export.pte.read.types import Method, PteFile
from llava_export.pte.read.weights import find_weights
from llava_export.pte.read.xnnpack_graph import Graph
from llava_runner.errors import PackageError


def read_pte(path: Path) -> PteFile:
    """Return what is in a program. Raises ``PackageError`` if it is no ExecuTorch program, truncated or damaged."""
    program_size, segment_base = layout(path)
    try:
        with path.open("rb") as file:
            return _contents(Container(file, program_size=program_size, segment_base=segment_base))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # A damaged flatbuffer can often be decoded. Then its values are wrong, and any of these errors may follow.
        reason = str(error) if type(error) is ValueError else repr(error)
        raise PackageError(f"{path} is damaged, or of another version of ExecuTorch: {reason}") from error


def _contents(container: Container) -> PteFile:
    graphs = container.xnnpack_graphs()
    is_constant = execution_plan.is_constant
    return PteFile(
        bytes=container.size,
        identifier=container.flatbuffer[4:8].decode("ascii"),
        version=container.program["version"],
        methods=tuple(_method(plan, graphs) for plan in container.plans if not is_constant(plan)),
        constants={plan["name"]: execution_plan.constant_value(plan) for plan in container.plans if is_constant(plan)},
        parts=tuple(account(container, find_weights(container, graphs))),
    )


def _method(plan: dict[str, Any], graphs: Mapping[Payload, Graph]) -> Method:
    delegates = execution_plan.delegates(plan)
    payloads = [execution_plan.payload_of(delegate) for delegate in delegates]
    return Method(
        name=plan["name"],
        inputs=execution_plan.inputs(plan),
        outputs=execution_plan.outputs(plan),
        delegates=Counter(delegate["id"] for delegate in delegates),
        outside=Counter(".".join(filter(None, names)) for names, _ in execution_plan.kernels(plan)),
        xnnpack=sum((graphs[payload].operators() for payload in payloads if payload in graphs), Counter()),
        planned_bytes=sum(plan.get("non_const_buffer_sizes", ())[1:]),  # the first stands for constants
        state=tuple(execution_plan.state(plan)),
        kv_cache=tuple(execution_plan.kv_cache(plan)),
    )

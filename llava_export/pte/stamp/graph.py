"""The graph of a template with its body copied: one layer after the other, each with weights of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Node
from torch.fx.passes.tools_common import stable_topological_sort

from llava_export.pte.stamp.packing import Blob
from llava_export.pte.stamp.repeat import Repeat
from llava_export.pte.stamp.template import Slot, Template, delegate_name, moved


class StampedGraph:
    """A template whose ``repeat`` is to occur ``extra_layers`` more times.

    A parameter of the template stands for the one so many layers on as body copies come before its reader: ``by``.
    """

    def __init__(self, template: Template, *, extra_layers: int) -> None:
        self._template = template
        self._repeat = template.repeat or Repeat(body=[], after=[], carried={})
        self._extra = extra_layers
        self._body, self._after = set(self._repeat.body), set(self._repeat.after)

    def delegated_parameters(self) -> set[str]:
        """Names of the real parameters whose packed bytes delegates hold."""
        return {
            moved(slot.fqn, by)
            for node, delegate in self._template.delegates.items()
            for slot in delegate.slots.values()
            for by in self._occurrences(node)
        }

    def constant_parameters(self) -> set[str]:
        """Names of the real parameters that are constants of the program."""
        return {moved(fqn, by) for node, fqn in self._template.constants.items() for by in self._occurrences(node)}

    def stamp(self, *, blob_of: Callable[[Slot], Blob], constant_of: Callable[[str], Tensor]) -> ExportedProgram:
        """The method with real weights. Changes the template's own graph, so it can be called once."""
        stamping = _Stamping(self._template, blob_of=blob_of, constant_of=constant_of)
        for node in list(self._template.program.graph.nodes):
            stamping.fill(node, like=node, by=self._extra if node in self._after else 0)
        latest = dict(self._repeat.carried)
        for by in range(1, self._extra + 1):
            copies = stamping.copy(self._repeat.body, inputs=latest, by=by)
            latest = {value: copies[self._repeat.carried[value]] for value in latest}
        for value, newest in latest.items():
            stamping.redirect(self._repeat.after, value=self._repeat.carried[value], to=newest)
        return stamping.program()

    def _occurrences(self, node: Node) -> range:
        if node in self._body:
            return range(self._extra + 1)
        by = self._extra if node in self._after else 0
        return range(by, by + 1)


class _Stamping:
    """One program in the making: every node gets the weights, the caches and the specs of its layer."""

    def __init__(
        self, template: Template, *, blob_of: Callable[[Slot], Blob], constant_of: Callable[[str], Tensor]
    ) -> None:
        self._template = template
        self._blob_of = blob_of
        self._constant_of = constant_of
        self._module = template.program.graph_module
        self._graph = template.program.graph
        self._newest: dict[Node, Node] = {}  # of a placeholder's copies
        self._state: dict[str, Tensor] = {}
        self._constants: dict[str, Any] = {}
        self._inputs: dict[Node, InputSpec] = {}
        signature = template.program.graph_signature
        self._mutated = set(signature.buffers_to_mutate.values())
        (self._output,) = self._graph.find_nodes(op="output")
        self._output_specs = dict(zip(self._output.args[0], signature.output_specs, strict=True))
        self._outputs: dict[Node, OutputSpec] = {}

    def fill(self, node: Node, *, like: Node, by: int) -> None:
        """Make ``node`` what ``like`` is in the template, ``by`` layers on."""
        if like in self._template.inputs:
            self._fill_input(node, self._template.inputs[like], by)
        elif like in self._template.delegates:
            delegate = self._template.delegates[like].stamped(lambda slot: self._blob_of(slot.moved(by)))
            setattr(self._module, delegate_name(node), delegate)
        if like in self._output_specs:
            spec = self._output_specs[like]
            target = spec.target and moved(spec.target, by)
            self._outputs[node] = OutputSpec(spec.kind, TensorArgument(node.name), target)

    def copy(self, body: list[Node], *, inputs: Mapping[Node, Node], by: int) -> dict[Node, Node]:
        """Another layer, ``by`` layers on, that reads ``inputs``; the copies by their originals."""
        copies = dict(inputs)
        for node in body:
            copies[node] = self._copy_input(node, by) if node.op == "placeholder" else self._copy_call(node, copies, by)
            if copies[node] is not node:
                self.fill(copies[node], like=node, by=by)
        return copies

    def redirect(self, readers: list[Node], *, value: Node, to: Node) -> None:
        for reader in readers:
            reader.replace_input_with(value, to)

    def program(self) -> ExportedProgram:
        outputs = sorted(self._outputs.items(), key=lambda output: output[1].kind is OutputKind.USER_OUTPUT)
        self._output.args = (tuple(node for node, _ in outputs),)
        stable_topological_sort(self._module)
        self._module.recompile()
        template = self._template.program
        return ExportedProgram(
            root=self._module,
            graph=self._module.graph,
            graph_signature=ExportGraphSignature(
                [self._inputs[node] for node in self._graph.find_nodes(op="placeholder")],
                [spec for _, spec in outputs],
            ),
            state_dict=self._state,
            range_constraints=template.range_constraints,
            module_call_graph=template.module_call_graph,
            example_inputs=template.example_inputs,
            constants=self._constants,
            verifiers=[template.verifier],
        )

    def _fill_input(self, node: Node, spec: InputSpec, by: int) -> None:
        if spec.target is None:  # an argument of the method
            self._inputs[node] = spec
            return
        target = moved(spec.target, by) if self._is_of_a_layer(spec) else spec.target
        self._inputs[node] = InputSpec(spec.kind, TensorArgument(node.name), target, spec.persistent)
        if spec.kind is InputKind.PARAMETER:
            self._state[target] = self._constant_of(target)
        elif spec.target in self._template.program.state_dict:
            self._state[target] = self._template.value_of(spec.target)
        else:
            self._constants[target] = self._template.value_of(spec.target)

    def _is_of_a_layer(self, spec: InputSpec) -> bool:
        """Parameters and caches; other buffers are the same for all layers, which share them."""
        return spec.kind is InputKind.PARAMETER or spec.target in self._mutated

    def _copy_input(self, node: Node, by: int) -> Node:
        if not self._is_of_a_layer(self._template.inputs[node]):
            return node
        with self._graph.inserting_after(self._newest.get(node, node)):
            copy = self._graph.placeholder(f"{node.name}_{by}")
        copy.meta = dict(node.meta)
        self._newest[node] = copy
        return copy

    def _copy_call(self, node: Node, copies: Mapping[Node, Node], by: int) -> Node:
        with self._graph.inserting_before(self._output):
            copy = self._graph.node_copy(node, lambda value: copies.get(value, value))
            if node in self._template.delegates:
                name = f"{delegate_name(node)}_{by}"
                setattr(self._module, name, self._template.delegates[node].module)
                with self._graph.inserting_before(copy):
                    copy.args = (self._graph.get_attr(name), *copy.args[1:])
        return copy

"""Stamps one method: copies the body of a template for every further layer, and fills in the real weights.

A template of three layers has layers 0, 1 and 2. Stamped to ten layers, its nodes are used like this:

- What comes before the body, layer 0 and the beginning of layer 1, stays as it is.
- The body, the rest of layer 1 and the beginning of layer 2, stays and is copied seven times. The first copy reads the
  weights one layer later, the second those two layers later, and so on.
- What comes after the body, the rest of layer 2, becomes the rest of layer 9: it reads the weights seven layers later.
"""

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
from llava_export.pte.stamp.schemes import SchemeDelegates
from llava_export.pte.stamp.template import Delegate, Slot, Template, delegate_name, shifted


class StampedGraph:
    """A template, and how many layers are to be added to it: its body will be copied ``extra_layers`` times.

    Where linears of the layers have different schemes, ``schemes`` has their delegates.
    """

    def __init__(self, template: Template, *, extra_layers: int, schemes: SchemeDelegates | None = None) -> None:
        self._template = template
        self._schemes = schemes
        self._repeat = template.repeat or Repeat(body=[], after=[], carried={})
        self._extra = extra_layers
        self._body, self._after = set(self._repeat.body), set(self._repeat.after)

    def delegated_parameters(self) -> set[str]:
        """Return the names of the real parameters that delegates hold."""
        return {
            shifted(slot.fqn, by)
            for node in self._template.delegates
            for by in self._shifts(node)
            for slot in self._delegate(node, by).slots.values()
        }

    def constant_parameters(self) -> set[str]:
        """Return the names of the real parameters that the program itself holds."""
        return {shifted(fqn, by) for node, fqn in self._template.constants.items() for by in self._shifts(node)}

    def stamp(self, *, blob_of: Callable[[Slot], Blob], constant_of: Callable[[str], Tensor]) -> ExportedProgram:
        """Return the method with all its layers and real weights.

        ``blob_of`` returns the blob for a slot, and ``constant_of`` the value of a parameter that the program holds.
        This changes the template's own graph, so it can be called once.
        """
        stamping = _Stamping(self._template, delegate_of=self._delegate, blob_of=blob_of, constant_of=constant_of)
        for node in list(self._template.program.graph.nodes):
            stamping.fill(node, original=node, by=self._extra if node in self._after else 0)
        carried = self._repeat.carried
        latest = dict(carried)  # value that enters the body -> what the last copy made of it
        for by in range(1, self._extra + 1):
            copies = stamping.copy(self._repeat.body, inputs=latest, by=by)
            latest = {entering: copies[carried[entering]] for entering in latest}
        for entering, leaving in latest.items():
            stamping.redirect(self._repeat.after, value=carried[entering], to=leaving)
        return stamping.program()

    def _delegate(self, node: Node, by: int) -> Delegate:
        """Return the delegate for a node of the template with the weights ``by`` layers later."""
        return self._schemes.of(node, by=by) if self._schemes else self._template.delegates[node]

    def _shifts(self, node: Node) -> range:
        """Return by how many layers the weights of a node are shifted: one number for the node and for each copy."""
        if node in self._body:
            return range(self._extra + 1)
        by = self._extra if node in self._after else 0
        return range(by, by + 1)


class _Stamping:
    """A method that is being stamped. Collects the inputs, outputs and values of all nodes, old and new."""

    def __init__(
        self,
        template: Template,
        *,
        delegate_of: Callable[[Node, int], Delegate],
        blob_of: Callable[[Slot], Blob],
        constant_of: Callable[[str], Tensor],
    ) -> None:
        self._template = template
        self._delegate_of = delegate_of
        self._blob_of = blob_of
        self._constant_of = constant_of
        self._module = template.program.graph_module
        self._graph = template.program.graph
        self._newest: dict[Node, Node] = {}  # placeholder of the template -> its last copy
        self._state: dict[str, Tensor] = {}
        self._constants: dict[str, Any] = {}
        self._inputs: dict[Node, InputSpec] = {}
        signature = template.program.graph_signature
        self._mutated = set(signature.buffers_to_mutate.values())
        (self._output,) = self._graph.find_nodes(op="output")
        self._output_specs = dict(zip(self._output.args[0], signature.output_specs, strict=True))
        self._outputs: dict[Node, OutputSpec] = {}

    def fill(self, node: Node, *, original: Node, by: int) -> None:
        """Give a node the weights, the caches and the outputs that are ``by`` layers after those of ``original``.

        ``original`` is a node of the template. ``node`` is a copy of it, or itself.
        """
        if original in self._template.inputs:
            self._fill_input(node, self._template.inputs[original], by)
        elif original in self._template.delegates:
            delegate = self._delegate_of(original, by).stamped(lambda slot: self._blob_of(slot.shifted(by)))
            setattr(self._module, delegate_name(node), delegate)
        if original in self._output_specs:
            spec = self._output_specs[original]
            target = spec.target and shifted(spec.target, by)
            self._outputs[node] = OutputSpec(spec.kind, TensorArgument(node.name), target)

    def copy(self, body: list[Node], *, inputs: Mapping[Node, Node], by: int) -> dict[Node, Node]:
        """Add a copy of the body with the weights ``by`` layers later. Return the copies by their originals.

        ``inputs`` maps the values that enter the body to those that enter the copy. They are in the result, too.
        """
        copies = dict(inputs)
        for node in body:
            copies[node] = self._copy_input(node, by) if node.op == "placeholder" else self._copy_call(node, copies, by)
            if copies[node] is not node:
                self.fill(copies[node], original=node, by=by)
        return copies

    def redirect(self, readers: list[Node], *, value: Node, to: Node) -> None:
        """Let ``readers`` read ``to`` where they read ``value``."""
        for reader in readers:
            reader.replace_input_with(value, to)

    def program(self) -> ExportedProgram:
        """Return the finished method. Its outputs are the updated caches first, and then the result."""
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
        target = shifted(spec.target, by) if self._is_of_a_layer(spec) else spec.target
        self._inputs[node] = InputSpec(spec.kind, TensorArgument(node.name), target, spec.persistent)
        if spec.kind is InputKind.PARAMETER:
            self._state[target] = self._constant_of(target)
        elif spec.target in self._template.program.state_dict:
            self._state[target] = self._template.value_of(spec.target)
        else:
            self._constants[target] = self._template.value_of(spec.target)

    def _is_of_a_layer(self, spec: InputSpec) -> bool:
        """Return whether each layer has its own: parameters and caches. All layers share the other buffers."""
        return spec.kind is InputKind.PARAMETER or spec.target in self._mutated

    def _copy_input(self, node: Node, by: int) -> Node:
        """Return a new placeholder, or ``node`` itself if all layers share it."""
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

"""Putting a plan into a copy of the model: what the fold does not concern stays as it is, field by field."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field

import onnx
from onnx import AttributeProto, TensorProto

from bnfold.graph import Graph, Model
from bnfold.plan import Edit, GraphPlan, Merge, NewBias, NewConstant, Plan, Rewrite, SetAttribute, SetOperator
from bnfold.protos import Names, bodies, quantized, read_in_training, sharded, trained
from bnfold.source import is_beside, tensor_nbytes
from bnfold.witness import GraphWitness, Merged, Witness


@dataclass
class Patched:
    """The new model, and the constants whose values are still to be written into it."""

    proto: onnx.ModelProto
    pending: list[tuple[TensorProto, NewConstant]] = field(default_factory=list)
    """New initializers in `proto`, without data yet."""
    origin: dict[str, list[int]] = field(default_factory=dict)
    """By path of a graph that changed: of every node the index that it had, of a merged one that of its root."""

    @property
    def missing_bytes(self) -> int:
        """Bytes that these initializers will add to the proto itself."""
        return sum(tensor_nbytes(tensor) for tensor, _ in self.pending if not is_beside(tensor))


def witness_of(rewrite: Rewrite) -> Witness:
    """What a checker must know of a rewrite."""
    graphs = []
    for own in rewrite.plan.graphs:
        path, nodes = own.graph.path, own.graph.nodes
        origin = rewrite.origin.get(path) or range(len(nodes))
        merges = [merge for merge in rewrite.merges if merge.root.graph.path == path]
        new = _made_by_merges([merge.root.outputs[0] for merge in merges], own.graph)
        removed = {origin[i]: (source, nodes[i].outputs[0]) for i, source in own.removed.items()}
        storage = {
            name: s
            for name, s in own.storage.items()
            if not name.startswith("#") and name not in new and not s.is_identity
        }
        members = {
            merge.root.index: Merged(merge.kept.index, tuple(node.index for node in merge.members)) for merge in merges
        }
        sums = () if rewrite.regrouped is None else tuple(rewrite.regrouped.sums.get(path, ()))
        graphs.append(GraphWitness(path, storage, removed, own.names(), members, sums))
    return Witness(tuple(graphs), rewrite.calls)


def _made_by_merges(outputs: Iterable[str], after: Graph) -> set[str]:
    """Tensors that the original does not have: what a merged MatMul makes in front of its bias."""
    adds = [after.producers[name] for name in outputs if after.producers[name].op == "Add"]
    return {name for add in adds for name in add.inputs if after.constant(name) is None}


def patch(model: Model, plan: Plan) -> Patched:
    """The model after the plan. `model` is not changed."""
    result = Patched(onnx.ModelProto())
    result.proto.CopyFrom(model.proto)
    editor = _Editor(model, result)
    # Inner graphs first: deleting nodes of an outer graph would move what the trails of the inner ones count.
    for own in reversed(plan.graphs):
        if not own.is_empty:
            editor.graph(own)
    editor.sweep()
    editor.carry_over()
    return result


class _Editor:
    def __init__(self, model: Model, result: Patched) -> None:
        self.model = model
        self.result = result
        self.graphs = {graph.path: graph.within(result.proto) for graph in model.graphs}
        self.names = Names(result.proto)
        self.loose: list[tuple[str, str]] = []
        """(graph path, name) of constants that lost a reader."""
        self.replaced: dict[tuple[str, str], list[TensorProto]] = {}
        """New tensors that take the place of an initializer, if that one goes."""
        self.gone: dict[str, set[int]] = {}
        self.inserted: dict[str, dict[int, list[onnx.NodeProto]]] = {}
        self.roots: dict[str, dict[int, int]] = {}
        """By graph path and index of a merged node: the index of its root."""

    def graph(self, own: GraphPlan) -> None:
        graph, proto = own.graph, self.graphs[own.graph.path]
        names = own.names()
        self.gone[graph.path] = set(own.removed)
        for merge in own.merges:
            self._merge(graph, merge)
        for index in self.gone[graph.path]:
            self.loose += [(graph.path, name) for name in proto.node[index].input if graph.constant(name)]
        self.loose += [(graph.path, graph.nodes[index].outputs[0]) for index in own.computed]
        rename_within(proto, names, own.removed)
        for index, edits in own.edits.items():
            for edit in edits:
                self._edit(graph, index, edit)
        stale = set(names)
        _delete(proto.value_info, lambda value: value.name in stale)

    def _merge(self, graph: Graph, merge: Merge) -> None:
        """The kept node takes the place of all."""
        index, root = merge.kept.index, merge.root.outputs[0]
        node = self.graphs[graph.path].node[index]
        inner = {name for member in merge.members for name in member.outputs if name != root}
        _delete(self.graphs[graph.path].value_info, lambda value: value.name in inner)
        self.gone[graph.path] |= {member.index for member in merge.members} - {index}
        self.roots.setdefault(graph.path, {})[index] = merge.root.index
        slot = next(slot for slot, name in enumerate(merge.kept.inputs) if name and graph.constant(name) is None)
        node.input[slot] = merge.source
        node.output[0] = root
        for edit in merge.edits:
            self._edit(graph, index, edit)

    def _edit(self, graph: Graph, index: int, edit: Edit) -> None:
        node = self.graphs[graph.path].node[index]
        if isinstance(edit, SetAttribute):
            _set_attribute(node, edit)
        elif isinstance(edit, SetOperator):
            node.op_type = edit.op
        elif isinstance(edit, NewBias):
            self._add_bias(graph, index, edit)
        else:
            while len(node.input) <= edit.slot:
                node.input.append("")
            old = node.input[edit.slot]
            node.input[edit.slot] = self._new_constant(graph, index, edit)
            if old:
                self.loose.append((graph.path, old))

    def _add_bias(self, graph: Graph, index: int, edit: NewBias) -> None:
        node = self.graphs[graph.path].node[index]
        label = graph.nodes[index].label
        output = node.output[0]
        before = self.names.fresh(f"{output}.without_bias")
        shift, forms = edit.shift, {}
        if self.model.opset < 7:  # broadcasting knew no axes of size one
            axis = max((i for i, size in enumerate(shift.shape) if size > 1), default=shift.ndim - 1)
            forms = {"broadcast": 1} if axis == shift.ndim - 1 else {"broadcast": 1, "axis": axis}
            shift = shift.reshape(-1)
        constant = NewConstant(1, "bias", edit.type, shift.shape, None, (), lambda: shift)
        added = onnx.NodeProto(op_type="Add", name=self.names.fresh(f"{label}.add_bias"), domain=node.domain)
        added.input.extend([before, self._new_constant(graph, index, constant)])
        added.output.append(output)
        for name, value in forms.items():
            added.attribute.add(name=name, type=AttributeProto.INT, i=value)
        node.output[0] = before
        self.inserted.setdefault(graph.path, {}).setdefault(index, []).append(added)

    def _new_constant(self, graph: Graph, index: int, edit: NewConstant) -> str:
        base = edit.base.tensor.name if edit.base is not None and edit.base.tensor is not None else ""
        holder: Graph = (graph.owner(base) if base else None) or graph
        if self.model.proto.ir_version < 4:
            holder = self.model.main  # a body could not list the new constant among its inputs
        stem = base.removesuffix(".folded").removesuffix(".merged") or f"{graph.nodes[index].label}.{edit.hint}"
        name = self.names.fresh(f"{stem}.{'folded' if edit.values is None else 'merged'}")
        tensor = TensorProto(name=name, data_type=edit.type, dims=edit.shape)
        if edit.base is not None and edit.base.tensor is not None and is_beside(edit.base.tensor):
            tensor.data_location = TensorProto.EXTERNAL
        proto = self.graphs[holder.path]
        proto.initializer.append(tensor)
        self.result.pending.append((proto.initializer[-1], edit))
        if self.model.proto.ir_version < 4:
            proto.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        if base:
            self.replaced.setdefault((holder.path, base), []).append(tensor)
        return tensor.name

    def sweep(self) -> None:
        """Delete the nodes that left, what only computed constants that nobody reads any more, and those constants."""
        uses = self._uses()
        owners = {graph.path: graph for graph in self.model.graphs}
        dead: dict[str, set[str]] = {}
        while self.loose:
            path, name = self.loose.pop()
            owner = owners[path].owner(name)
            if not name or uses[name] or owner is None or name in dead.get(owner.path, set()):
                continue
            producer = owner.producers.get(name)
            if producer is None:
                if name in owner.initializers:
                    dead.setdefault(owner.path, set()).add(name)
                continue
            gone = self.gone.setdefault(owner.path, set())
            if producer.index in gone or any(uses[output] for output in producer.outputs if output):
                continue
            gone.add(producer.index)
            dead.setdefault(owner.path, set()).update(producer.outputs)
            for given in self.graphs[owner.path].node[producer.index].input:
                uses[given] -= 1
                self.loose.append((owner.path, given))
        for graph in reversed(self.model.graphs):
            self._delete(graph.path, dead.get(graph.path, set()))

    def carry_over(self) -> None:
        """What an earlier step left to be written, as far as it is still there."""
        new = {tensor.name for tensor, _ in self.result.pending}
        for proto in self.graphs.values() if self.model.pending else ():
            for tensor in proto.initializer:
                constant = self.model.pending.get(tensor.name)
                if constant is not None and tensor.name not in new:
                    edit = NewConstant(0, "", constant.type, constant.shape, constant)
                    self.result.pending.append((tensor, edit))

    def _uses(self) -> Counter[str]:
        """How often every name is read, or named by what is not a node."""
        uses: Counter[str] = Counter()
        for graph in self.model.graphs:
            proto, gone = self.graphs[graph.path], self.gone.get(graph.path, set())
            for index, node in enumerate(proto.node):
                if index not in gone:
                    uses.update(node.input)
                    uses.update(sharded(node))
            for nodes in self.inserted.get(graph.path, {}).values():
                for node in nodes:
                    uses.update(node.input)
            uses.update(value.name for value in proto.output)
            uses.update(quantized(proto))
        uses.update(trained(self.result.proto))
        uses.update(read_in_training(self.result.proto))
        return uses

    def _delete(self, path: str, dead: set[str]) -> None:
        proto = self.graphs[path]
        inserted, gone = self.inserted.get(path, {}), self.gone.get(path, set())
        roots = self.roots.get(path, {})
        self.result.origin[path] = [
            roots.get(index, index)
            for index in range(len(proto.node))
            if index not in gone
            for _ in range(1 + len(inserted.get(index, [])))
        ]
        for index in sorted({*gone, *inserted}, reverse=True):
            for added in inserted.get(index, []):
                proto.node.insert(index + 1, added)
            if index in gone:
                del proto.node[index]
        if dead:
            _delete(proto.value_info, lambda value: value.name in dead)
            self._move_into_place(path, dead)
            listed = {tensor.name for tensor in proto.initializer}
            _delete(proto.initializer, lambda tensor: tensor.name in dead)
            if path == "" and self.model.proto.ir_version < 4:
                _delete(proto.input, lambda value: value.name in dead and value.name in listed)

    def _move_into_place(self, path: str, dead: set[str]) -> None:
        """A new constant stands where the one it replaces stood, so that the order of initializers stays."""
        proto = self.graphs[path]
        new = {old: tensors for (where, old), tensors in self.replaced.items() if where == path and old in dead}
        if not new:
            return
        order = [tensor.name for tensor in proto.initializer]
        moving = {tensor.name for tensors in new.values() for tensor in tensors}
        wanted: list[str] = []
        for name in order:
            if name not in moving:
                wanted += [name, *(tensor.name for tensor in new.get(name, []))]
        rank = {name: i for i, name in enumerate(wanted)}
        proto.initializer.sort(key=lambda tensor: rank[tensor.name])
        if self.model.proto.ir_version < 4:
            inputs = {value.name: i for i, value in enumerate(proto.input)}
            place = {t.name: (inputs[old], 1) for old, tensors in new.items() for t in tensors if old in inputs}
            proto.input.sort(key=lambda value: place.get(value.name, (inputs[value.name], 0)))
        by_name = {tensor.name: tensor for tensor in proto.initializer}
        self.result.pending = [(by_name.get(tensor.name, tensor), edit) for tensor, edit in self.result.pending]


def rename_within(graph: onnx.GraphProto, names: dict[str, str], gone: Container[int] = ()) -> None:
    """Rename tensors in a graph and wherever its bodies capture them; nodes that are `gone` define nothing."""
    stack = [(graph, names)] if names else []
    while stack:
        proto, current = stack.pop()
        for index, node in enumerate(proto.node):
            for i, name in enumerate(node.input):
                if name in current:
                    node.input[i] = current[name]
            if proto is graph and index not in gone:
                for i, name in enumerate(node.output):
                    if name in current:
                        node.output[i] = current[name]
            for _, body in bodies(node):
                defined = {v.name for v in body.input} | {o for n in body.node for o in n.output}
                inner = {name: new for name, new in current.items() if name not in defined}
                if inner:
                    for value in body.output:
                        if value.name in inner:
                            value.name = inner[value.name]
                    stack.append((body, inner))


def _set_attribute(node: onnx.NodeProto, edit: SetAttribute) -> None:
    found = next((a for a in node.attribute if a.name == edit.name), None) or node.attribute.add(name=edit.name)
    if edit.value is None:
        node.attribute.remove(found)
    elif isinstance(edit.value, list):
        found.type = AttributeProto.INTS
        found.ints[:] = edit.value
    elif isinstance(edit.value, float):
        found.type, found.f = AttributeProto.FLOAT, edit.value
    else:
        found.type, found.i = AttributeProto.INT, edit.value


def _delete(repeated, condemned) -> None:  # type: ignore[no-untyped-def]
    for index in range(len(repeated) - 1, -1, -1):
        if condemned(repeated[index]):
            del repeated[index]


def tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model, wherever the format lets one stand."""
    graphs = [model.graph, *(info.initialization for info in model.training_info)]
    graphs += [info.algorithm for info in model.training_info]
    nodes: list[Iterable[onnx.NodeProto]] = [function.node for function in model.functions]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.append(graph.node)
            continue
        for node in nodes.pop():
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t
                yield from attribute.tensors
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)
            graphs += [body for _, body in bodies(node)]

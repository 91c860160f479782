"""The one thing that flows through the pipeline: a model, as an onnx-graphsurgeon graph plus its metadata."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from graphopt import garbage
from graphopt.ir import convert, wire
from graphopt.ir.objects import link, new_constant
from graphopt.ir.values import identity, is_sparse
from graphopt.ir.view import all_graphs

# graphsurgeon prints to stdout, which belongs to the result. What it would warn about is checked by ``ir.verify``;
# what it calls critical, it raises as well.
G_LOGGER.severity = G_LOGGER.CRITICAL + 1

_uids = itertools.count()


class Digest(Protocol):
    """The hash of a file's content, computed by the time it is asked for."""

    def result(self) -> str: ...


@dataclass(frozen=True)
class Source:
    """The file that a model was read from, and the files that hold its external data."""

    path: str
    digest: Digest
    data: frozenset[Path] = frozenset()

    @property
    def sha256(self) -> str:
        """Of the model file, without external data."""
        return self.digest.result()


class Original(Protocol):
    """What can build the graph of a model again, as it was read: each time a new one that shares the weights."""

    linked: bool  # whether tensors of what it builds list who reads and writes them

    def build(self) -> gs.Graph: ...


class Model:
    """A graph, its opset imports, local functions and metadata, and a revision number.

    Change the graph inside ``with model.edit() as graph:`` so that the revision moves and cached analyses of the
    old graph are dropped. Weight arrays are shared between copies of a model: replace ``Constant.values``, never
    write into the array.
    """

    def __init__(
        self, graph: gs.Graph | None, header: convert.Header, source: Source | None = None, linked: bool = True
    ) -> None:
        self._graph: gs.Graph | None = graph
        self.linked = linked  # whether tensors list who reads and writes them
        self.header = header
        self.source = source
        self.revision = 0
        self.uid = next(_uids)
        self._names: set[str] | None = None
        self._captured: tuple[int, frozenset[str]] | None = None
        self.workbench: object = None  # what the last rewriting pass has found out, for the next one
        self.flat: int | None = None  # the revision at which the graph is known to have no subgraphs
        self._as_read: int | None = None
        self._original: Original | None = None  # from which the graph of an unchanged model can be built again

    @property
    def graph(self) -> gs.Graph:
        """The main graph."""
        graph = self.bare
        if not self.linked:
            with garbage.paused():
                link(graph)
            self.linked = True
        return graph

    @graph.setter
    def graph(self, graph: gs.Graph) -> None:
        self._graph, self.linked = graph, True

    @property
    def bare(self) -> gs.Graph:
        """The main graph for who asks no tensor for its ``inputs`` and ``outputs``.

        Those of a large graph take time to make, and are not there before somebody has asked for ``graph``.
        """
        if self._graph is None:
            assert self._original is not None
            with garbage.paused():
                self._graph, self.linked = self._original.build(), self._original.linked
        return self._graph

    # --- conversion -----------------------------------------------------------------------------------------

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto, source: Source | None = None) -> Model:
        """Build a model from a proto whose initializers are inline or already mapped (see ``ir.io.load``).

        Raises ModelError for what the IR cannot represent.
        """
        imported = convert.import_model(proto)
        return cls(imported.graph, imported.header, source, imported.blueprint.linked)

    @classmethod
    def from_text(cls, text: str) -> Model:
        """Build a model from the ONNX text format (``onnx.parser``), with shapes inferred. For tests and examples."""
        from graphopt.ir.shapes import infer_shapes

        model = cls.from_proto(onnx.parser.parse_model(text))
        infer_shapes(model)
        return model

    def to_proto(self, stub_above: int | None = None) -> onnx.ModelProto:
        """Convert to a proto.

        With ``stub_above``, initializers of more bytes than that keep their type and shape but carry no data:
        enough for shape inference and structure, at no memory.
        """
        return convert.export_model(self.bare, self.header, stub_above)

    def to_bytes(self) -> bytes:
        """Serialize, deterministically. Only for models under 2 GB; ``ir.io.save`` has no such limit."""
        return b"".join(self.pieces())

    def pieces(self, weights: Iterable[gs.Constant] | None = None) -> Iterator[bytes | memoryview]:
        """What ``to_bytes`` joins: the weights among it are views of their arrays.

        ``weights``: what ``constants`` gives, for who has asked already.
        """
        if len(list(self.bare_graphs())) > 1 or self.header.input_defaults:  # there are initializers elsewhere
            yield self.to_proto().SerializeToString(deterministic=True)
            return
        dense = [c for c in weights or self.constants(self.bare_graphs()) if not is_sparse(c)]
        yield from wire.pieces(convert.export_model(self.bare, self.header, weights=False), dense)

    def copy(self) -> Model:
        """An independent graph that shares the weight arrays."""
        unchanged = self.unchanged_file is not None
        with garbage.paused():
            built_later = unchanged and self._original is not None
            graph = None if built_later else convert.copy_graph(self.graph)
            twin = Model(graph, self.header.copy(), self.source)
        if unchanged:
            twin.mark_unchanged(self._original)
        return twin

    # --- changing -------------------------------------------------------------------------------------------

    @contextmanager
    def edit(self) -> Iterator[gs.Graph]:
        """The way to change the graph: the revision moves when the block ends, even by an exception."""
        self.flat = None
        try:
            yield self.graph
        finally:
            self.touch()

    def touch(self) -> None:
        """Declare that the graph changed."""
        self.revision += 1

    def mark_unchanged(self, original: Original | None = None) -> None:
        """Declare that the graph is what its source file holds, and what ``original`` builds.

        Copies are then built only when something looks at them: most references never are.
        """
        self._as_read, self._original = self.revision, original

    def is_copy_of(self, other: Model) -> bool:
        """Whether both have the same structure and share all weights."""
        mine = self._original if self.unchanged_file is not None else None
        if mine is not None and other.unchanged_file is not None and other._original is mine:
            return True
        return self.fingerprint() == other.fingerprint()

    @property
    def unchanged_file(self) -> Path | None:
        """The file that this model was read from, while nothing has changed the model since."""
        return Path(self.source.path) if self.source is not None and self._as_read == self.revision else None

    def replace_with(self, other: Model) -> None:
        """Become ``other`` (which must not be used afterwards)."""
        self.graph, self.header, self.workbench = other.graph, other.header, None
        self._names = None
        self.touch()

    def fresh_name(self, stem: str) -> str:
        """A node or tensor name that nothing in the model uses; the same calls give the same names."""
        if self._names is None:
            self._names = self._all_names()
        name = stem
        for k in itertools.count(1):
            if name not in self._names:
                break
            name = f"{stem}_{k}"
        self._names.add(name)
        return name

    def constant(self, stem: str, values: np.ndarray) -> gs.Constant:
        """A new initializer with a fresh name."""
        # not ascontiguousarray, which turns a scalar into a vector
        return new_constant(self.fresh_name(stem), np.asarray(values, order="C"), linked=self.linked)

    # --- reading --------------------------------------------------------------------------------------------

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self.header.opsets.get("", 1)

    @property
    def metadata(self) -> dict[str, str]:
        """The model's ``metadata_props``; changing it changes the model."""
        return self.header.metadata

    @property
    def inputs(self) -> list[gs.Variable]:
        """Graph inputs that a caller must feed, in order (inputs with a default value are not among them)."""
        return [t for t in self.graph.inputs if t.name not in self.header.input_defaults]

    @property
    def outputs(self) -> list[gs.Tensor]:
        return list(self.graph.outputs)

    def graphs(self) -> Iterator[gs.Graph]:
        """The main graph, then every subgraph (bodies of local functions are not included)."""
        return iter((self.graph,)) if self.flat == self.revision else all_graphs(self.graph)

    def bare_graphs(self) -> Iterator[gs.Graph]:
        """The same for whom ``bare`` is enough."""
        return iter((self.bare,)) if self.flat == self.revision else all_graphs(self.bare)

    def constants(self, graphs: Iterable[gs.Graph] | None = None) -> Iterator[gs.Constant]:
        """Every initializer once, in order of first use, those of subgraphs included.

        Here and below, ``graphs`` are those of ``graphs()``, for who asks several questions.
        """
        found: dict[int, gs.Constant] = {}
        for graph in self.graphs() if graphs is None else graphs:
            lists = (graph.inputs, *[node.inputs for node in graph.nodes], graph.outputs)
            found.update({id(t): t for tensors in lists for t in tensors if isinstance(t, gs.Constant)})
        return iter(found.values())

    def captured(self) -> frozenset[str]:
        """Names of main-graph tensors that some subgraph reads by name. They must not be renamed or removed."""
        if self._captured is None or self._captured[0] != self.revision:
            names: set[str] = set()
            for sub in itertools.islice(self.bare_graphs(), 1, None):
                names.update(t.name for n in sub.nodes for t in n.inputs)
                names.update(t.name for t in sub.outputs)
            self._captured = (self.revision, frozenset(names))
        return self._captured[1]

    def is_output(self, tensor: gs.Tensor) -> bool:
        return any(tensor is out for out in self.bare.outputs)

    def fingerprint(self) -> int:
        """A number that changes when the structure or the identity of a weight array does. Linear, cheap."""
        return self.survey()[0]

    def survey(self) -> tuple[int, list[gs.Constant], int]:
        """The fingerprint, every initializer as ``constants`` gives them, and the number of nodes, in one walk."""
        mark = hash((self.opset, tuple(sorted(self.metadata.items()))))
        constants: dict[int, gs.Constant] = {}
        nodes = 0
        for graph in self.bare_graphs():
            nodes += len(graph.nodes)
            for node in graph.nodes:
                parts: list[object] = [mark, node.op, node.name, node.domain]
                if node.attrs:
                    parts.append(_freeze(node.attrs))
                for tensor in node.inputs:
                    parts.append(tensor.name)
                    if isinstance(tensor, gs.Constant):
                        constants[id(tensor)] = tensor
                for tensor in node.outputs:
                    parts.append(tensor.name)
                mark = hash(tuple(parts))
            interface = graph.inputs + graph.outputs
            mark = hash((mark, tuple([t.name for t in interface])))
            constants.update((id(t), t) for t in interface if isinstance(t, gs.Constant))
        weights = list(constants.values())
        return hash((mark, tuple([identity(c._values) for c in weights]))), weights, nodes

    def _all_names(self) -> set[str]:
        names: set[str] = set()
        for graph in self.bare_graphs():
            names.update([t.name for t in graph.inputs + graph.outputs])
            names.update([n.name for n in graph.nodes])
            names.update([t.name for n in graph.nodes for t in n.inputs])
            names.update([t.name for n in graph.nodes for t in n.outputs])
        return names


_PLAIN = frozenset((int, float, str, bytes))


def _freeze(attrs: dict[str, object]) -> tuple[object, ...]:
    return tuple([(k, v if type(v) in _PLAIN else _freeze_one(v)) for k, v in attrs.items()])


def _freeze_one(value: object) -> object:
    if isinstance(value, list):
        # Lists are of one type; turning one into a tuple at once is many times as fast as looking at each element.
        return tuple(value) if not value or type(value[0]) in _PLAIN else tuple([_freeze_one(v) for v in value])
    if isinstance(value, gs.Constant):
        return (value.name, identity(value._values))
    if isinstance(value, gs.Graph):
        return "graph"
    return value if type(value) in _PLAIN else id(value)

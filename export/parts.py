"""Runs an exported generator in parts, with the compiled loops of `zoo.kernels` in place of its projections.

onnxruntime sorts for a projection, which takes up to half of the time of a generator. The loops keep the same entries
many times faster. So the graph is cut at its projections, and each part has a session of its own. Needs onnx and numba.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx  # noqa: TID253 (only `OnnxSampler.divide` imports this module)
import onnx.utils  # noqa: TID253
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TypeProto  # noqa: TID253

from sparsegen.export.functions import DOMAIN
from sparsegen.zoo import kernels

Session = Any  # of onnxruntime, which has no types


@dataclass(frozen=True)
class Cut:
    """A projection between two parts.

    Attributes:
        source, target: Names of the values before and after the projection.
        k: Name of the input with its k.
        shape: (C, H, W) of the code.
        whole: Whether each sample is one code, not many needles.
    """

    source: str
    k: str
    target: str
    shape: tuple[int, ...]
    whole: bool


@dataclass(frozen=True)
class Part:
    """A session, the values that it reads and makes, and the projection that follows; None after the last part."""

    session: Session
    reads: tuple[str, ...]
    makes: frozenset[str]
    cut: Cut | None


class Parts:
    """The parts of a generator, in order.

    Args:
        path: The .onnx file.
        open_session: Opens a serialized model, with the weights of the file.
        threads: Of the loops.

    Raises:
        ValueError: If the graph has no projection, or lacks the types of its values.
    """

    def __init__(self, path: Path, open_session: Callable[[bytes], Session], threads: int) -> None:
        self._threads = threads
        try:
            models = split(onnx.load(path, load_external_data=False))
        except KeyError as error:
            raise ValueError(f"{path} is not as sparsegen exports it: {error} has no type") from error
        self._parts = [
            Part(
                open_session(model.SerializeToString()),
                tuple(value.name for value in model.graph.input),
                frozenset(value.name for value in model.graph.output),
                cut,
            )
            for model, cut in models
        ]
        for _, cut in models:
            if cut:  # compiles the loop now, if that has not been done on this machine
                self._project(np.zeros((1, *cut.shape), np.float32), np.array(1), cut.whole)

    def run(self, outputs: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Computes outputs of the whole graph from its inputs, as `onnxruntime.InferenceSession.run`."""
        values = dict(inputs)
        wanted = {*outputs, *(name for part in self._parts for name in part.reads)}
        wanted |= {part.cut.source for part in self._parts if part.cut}
        for part in self._parts:
            names = sorted(part.makes & wanted)
            made = part.session.run(names, {name: values[name] for name in part.reads})
            values.update(zip(names, made, strict=True))
            if part.cut:
                values[part.cut.target] = self._project(
                    values[part.cut.source], values[part.cut.k], part.cut.whole
                )
        return [values[name] for name in outputs]

    def _project(self, code: NDArray[np.float32], k: NDArray[np.int64], whole: bool) -> NDArray[np.float32]:
        """Shape: code (B, C, H, W), k () or (B,)."""
        y, mask = np.empty_like(code), np.empty(code.shape, np.uint8)
        shape = (len(code), -1) if whole else (*code.shape[:2], -1)
        x_bits, y_bits = (array.view(np.int32).reshape(shape) for array in (code, y))
        kernels.project(x_bits, y_bits, mask.reshape(shape), k if k.ndim else int(k), threads=self._threads)
        return y


def split(model: ModelProto) -> list[tuple[ModelProto, Cut | None]]:
    """Cuts a generator at its projections.

    Each node is in the first part that needs it, and in no other. Nodes that depend on weights alone are in each part
    that needs them.

    Raises:
        ValueError: If there is no projection of a float32 code.
    """
    nodes = list(model.graph.node)
    places = [index for index, node in enumerate(nodes) if node.domain == DOMAIN]
    if not places:
        raise ValueError("the graph has no projection")
    types = {value.name: value.type.tensor_type for value in model.graph.value_info}
    cuts = [_cut(nodes[place], types[nodes[place].input[0]]) for place in places]
    varying = _varying(model)
    part_of = _part_of(nodes, places)
    outputs = {value.name for value in model.graph.output}
    extractor = onnx.utils.Extractor(model)
    parts: list[tuple[ModelProto, Cut | None]] = []
    for number, cut in enumerate([*cuts, None]):
        inside = [
            node for node, part in zip(nodes, part_of, strict=True) if part == number and not node.domain
        ]
        later = {
            name for node, part in zip(nodes, part_of, strict=True) if part > number for name in node.input
        }
        made = {name for node in inside for name in node.output}
        reads = {name for node in inside for name in node.input if name in varying - made}
        makes = made & varying & (later | outputs | ({cut.source} if cut else set()))
        parts.append((extractor.extract_model(sorted(reads), sorted(makes)), cut))
    return parts


def _cut(node: NodeProto, source: TypeProto.Tensor) -> Cut:
    """Raises: ValueError if the code is not float32."""
    if source.elem_type != onnx.TensorProto.FLOAT:
        raise ValueError(f"the code {node.input[0]} is not float32")
    shape = tuple(side.dim_value for side in source.shape.dim[1:])
    return Cut(node.input[0], node.input[1], node.output[0], shape, node.op_type == "GlobalProjection")


def _varying(model: ModelProto) -> set[str]:
    """The values that depend on the inputs. A part computes the others itself, since they depend on weights alone."""
    varying = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if not varying.isdisjoint(node.input):
            varying.update(node.output)
    return varying


def _part_of(nodes: Sequence[NodeProto], places: Sequence[int]) -> list[int]:
    """Returns the first part that needs a node, for each node; the i-th projection needs its input in part i."""
    needed: dict[str, int] = {}
    parts = []
    for index in range(len(nodes) - 1, -1, -1):
        node = nodes[index]
        first = min((needed.get(name, len(places)) for name in node.output), default=len(places))
        part = places.index(index) if index in places else first
        parts.append(part)
        for name in node.input:
            needed[name] = min(part, needed.get(name, part))
    return parts[::-1]

"""Weights of a graph that are stored elsewhere, in the safetensors file of a checkpoint, or in half precision."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sparsegen.export.runtime import digest

_DTYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Weights:
    """A safetensors file as external data of a graph: dtype, shape, offset and number of bytes of each tensor."""

    name: str
    digest: str
    tensors: dict[str, tuple[ir.DataType, list[int], int, int]]

    @classmethod
    def read(cls, path: Path) -> "Weights":
        """Reads the header of a file, without the tensors.

        Raises:
            FileNotFoundError, ValueError: If it is not a safetensors file.
        """
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: with embed=False, the graph reads its weights from it"
            )
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, path.stat().st_size)))
            entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
            tensors = {
                key: (_DTYPES[entry["dtype"]], entry["shape"], 8 + length + start, end - start)
                for key, entry in entries.items()
                for start, end in [entry["data_offsets"]]
                if entry["dtype"] in _DTYPES
            }
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is corrupt, truncated or not a safetensors file: {error}") from None
        return cls(path.name, digest(path), tensors)

    def place(self, model: ir.Model) -> None:
        """Makes the initializers of a model refer to the file; weights that are not float32 are cast in the graph.

        Raises:
            ValueError: If a weight is not in the file, or has another shape there.
        """
        graph, first = model.graph, model.graph[0]
        for name, weight in list(graph.initializers.items()):
            if name not in self.tensors:
                raise ValueError(f"{self.name} holds another network: it has no {name}")
            dtype, shape, offset, length = self.tensors[name]
            if shape != (wanted := list(weight.shape or ())):
                raise ValueError(
                    f"{self.name} holds another network: its {name} has the shape {shape}, not {wanted}"
                )
            weight.const_value = ir.ExternalTensor(
                self.name, offset, length, dtype, shape=ir.Shape(shape), name=name
            )
            if dtype != ir.DataType.FLOAT:
                _read_as_float32(graph, first, weight, dtype)


def halve(model: ir.Model) -> None:
    """Stores the initializers of a model in float16; they are cast to float32 in the graph."""
    graph, first = model.graph, model.graph[0]
    for name, weight in graph.initializers.items():
        if weight.const_value is not None and weight.const_value.dtype == ir.DataType.FLOAT:
            weight.const_value = ir.tensor(weight.const_value.numpy().astype(np.float16), name=name)
            _read_as_float32(graph, first, weight, ir.DataType.FLOAT16)


def _read_as_float32(graph: ir.Graph, first: ir.Node, weight: ir.Value, dtype: ir.DataType) -> None:
    """Inserts a cast between an initializer, which is stored as `dtype`, and the nodes that read it."""
    uses = weight.uses()
    cast = ir.node("Cast", [weight], {"to": ir.DataType.FLOAT}, name=f"node_{weight.name}")
    (single,) = cast.outputs
    single.name, single.shape = f"{weight.name}.float32", weight.shape
    single.dtype, weight.dtype = ir.DataType.FLOAT, dtype
    for node, index in uses:
        node.replace_input_with(index, single)
    graph.insert_before(first, cast)

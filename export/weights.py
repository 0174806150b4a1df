"""A checkpoint's safetensors file as the external weights of a graph."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from sparsegen.export.runtime import digest

_DTYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Weights:
    """A safetensors file as a store of external data: dtype, shape, first byte and bytes of each tensor."""

    name: str
    digest: str
    tensors: dict[str, tuple[ir.DataType, list[int], int, int]]

    @classmethod
    def read(cls, path: Path) -> "Weights":
        """Reads where each tensor lies, and none of them.

        Raises: FileNotFoundError; ValueError if it is not a safetensors file.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: without embed, the graph reads its weights there")
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
        """Points the initializers into the file; other types than float32 are cast in the graph.

        Raises: ValueError if they are not in the file, or of another shape.
        """
        graph, first = model.graph, model.graph[0]
        for weight in list(graph.initializers.values()):
            if weight.name not in self.tensors:
                raise ValueError(f"{self.name} holds another network: it has no {weight.name}")
            dtype, shape, offset, length = self.tensors[weight.name]
            if shape != list(weight.shape):
                raise ValueError(
                    f"{self.name} holds another network: its {weight.name} has the shape {shape}, "
                    f"not {list(weight.shape)}"
                )
            weight.const_value = ir.ExternalTensor(
                self.name, offset, length, dtype, shape=weight.shape, name=weight.name
            )
            if dtype != ir.DataType.FLOAT:
                uses = weight.uses()
                cast = ir.node("Cast", [weight], {"to": ir.DataType.FLOAT}, name=f"node_{weight.name}")
                (single,) = cast.outputs
                single.name, single.shape = f"{weight.name}.float32", weight.shape
                single.dtype, weight.dtype = ir.DataType.FLOAT, dtype
                for node, index in uses:
                    node.replace_input_with(index, single)
                graph.insert_before(first, cast)

"""Traces a generator to a graph in which each projection is one node, and extracts and saves models from it."""

import copy
import json
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sparsegen.common.extras import install_command

try:
    import onnx  # noqa: TID253 (nothing here works without it)
    import onnx_ir as ir
    import onnxscript.optimizer
    import onnxscript.rewriter
    from onnx_ir.passes.common import (
        ClearMetadataAndDocStringPass,
        IdentityEliminationPass,
        InlinePass,
        RemoveUnusedNodesPass,
        RemoveUnusedOpsetsPass,
    )
    from onnxscript.rewriter.rules.common import collapse_slice2_rule
except ImportError as error:
    raise ImportError(f"exporting needs onnx and onnxscript: {install_command('export')}") from error

from sparsegen import __version__
from sparsegen.export.functions import DOMAIN, FUNCTIONS, IR_VERSION, OPSET
from sparsegen.export.runtime import METADATA
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.projections import Projection


def trace(generator: Generator) -> ir.Graph:
    """Traces a generator to a graph whose only initializers are its weights, named by their state-dict keys."""
    batch, labels = {0: torch.export.Dim("batch")}, [torch.zeros(2, dtype=torch.int64)][: generator.classes]
    traced = torch.export.export(
        _Traced(generator).eval(),
        (
            torch.zeros(2, generator.z_dim),
            [torch.tensor(k_range.k) for k_range in generator.k_ranges],
            *labels,
        ),
        dynamic_shapes=(batch, [None for _ in generator.k_ranges], *(batch for _ in labels)),
    )
    names = [f"code_{level}" for level in range(1, len(generator.code_shapes) + 1)]
    inputs = [
        "z",
        *(f"k_{k_range.level}" for k_range in generator.k_ranges),
        *("labels" for _ in labels),
    ]
    return to_graph(traced, inputs, ["image", *names, "dictionary"])


def to_graph(traced: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Graph:
    """Converts a traced module with the attribute `generator` to a graph, as `trace` returns it."""
    exported = torch.onnx.export(
        traced,
        input_names=inputs,
        output_names=outputs,
        opset_version=OPSET,
        optimize=False,  # it would fold the batch norms into copies of the weights
        verbose=False,
    )
    program = cast(torch.onnx.ONNXProgram, exported)  # it is None only for dynamo=False
    model, graph = program.model, program.model.graph
    weights = set(graph.initializers.values())

    def may_fold(node: ir.Node) -> bool | None:
        return None if node.op_type == "Shape" or weights.isdisjoint(node.inputs) else False

    onnxscript.optimizer.fold_constants(model, should_fold=may_fold)
    onnxscript.rewriter.rewrite(
        model, [collapse_slice2_rule]
    )  # z[:, :, None, None] starts with slices of everything
    for node in graph:
        if node.op_type == "Conv" and len(node.inputs) == 3 and node.inputs[2] not in weights:
            node.resize_inputs(2)  # the exporter writes a missing bias as zeros
    for tidy in (IdentityEliminationPass(), RemoveUnusedNodesPass(), ClearMetadataAndDocStringPass()):
        tidy(model)
    for node in graph:
        if node.domain == DOMAIN and (k := node.inputs[1]) is not None:
            node.name = _projection_name(k.name)
    for name, value in list(graph.initializers.items()):
        if value in weights:
            value.name = name.removeprefix("generator.")
        else:
            _make_constant_node(graph, name)
    _name_batch(graph)
    return graph


def cut(
    graph: ir.Graph,
    inputs: Sequence[str],
    outputs: Sequence[str],
    functions: Mapping[str, str] = FUNCTIONS,
) -> ir.Model:
    """Extracts the model that computes these outputs from these inputs, with those of the functions that it needs."""
    model = ir.Model(
        ir.convenience.extract(graph, inputs, outputs),
        ir_version=IR_VERSION,
        producer_name="sparsegen",
        producer_version=__version__,
    )
    for name in sorted({node.op_type for node in model.graph if node.domain == DOMAIN}):
        function = ir.serde.deserialize_function(onnx.parser.parse_function(functions[name]))
        model.functions[function.identifier()] = function
    RemoveUnusedOpsetsPass()(model)
    for name in sorted(model.graph.initializers):  # `extract` returns them in random order
        model.graph.initializers[name] = model.graph.initializers.pop(name)
    return model


def fold(model: ir.Model) -> None:
    """Computes what depends on weights alone, i.e. spectral norms, since quantizers need weights as initializers.

    onnxruntime does so when it opens a file, so this changes neither speed nor memory.
    """
    onnxscript.optimizer.fold_constants(model, input_size_limit=sys.maxsize, output_size_limit=sys.maxsize)
    for tidy in (RemoveUnusedNodesPass(), ClearMetadataAndDocStringPass()):
        tidy(model)


def inline(model: ir.Model) -> None:
    """Replaces each projection by the standard operators of its function, named e.g. projection_1/TopK_1."""
    before = set(model.graph)
    InlinePass()(model)
    for known, group in groupby(model.graph, before.__contains__):
        if not known:
            nodes = list(group)  # of one projection
            read = [value.name or "" for node in nodes for value in node.inputs if value is not None]
            k = next(name for name in read if re.fullmatch(r"k_\d+", name))
            for number, node in enumerate(nodes, 1):
                node.name = f"{_projection_name(k)}/{node.op_type}_{number}"
    RemoveUnusedOpsetsPass()(model)


def save(model: ir.Model, about: dict[str, Any], file: Path) -> None:
    """Writes a model with the metadata `about`, and checks the file with onnx."""
    model.metadata_props[METADATA] = json.dumps(about)
    proto = ir.to_proto(model)
    stored = {tensor.name for tensor in proto.graph.initializer}
    # A second record of their shapes, which is wrong once a quantizer transposes them.
    shapes = [value for value in proto.graph.value_info if value.name not in stored]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(shapes)
    file.write_bytes(proto.SerializeToString(deterministic=True))
    onnx.checker.check_model(file, full_check=True)


def projection_node(projection: Projection, code: Tensor, k: Tensor) -> Tensor:
    """Records a projection during tracing as one node of our domain."""
    operator = f"{DOMAIN}::{type(projection).__name__}"
    return torch.onnx.ops.symbolic(operator, (code, k), dtype=code.dtype, shape=code.shape, version=1)


class _Node(nn.Module):
    """Replaces a projection during tracing by one node of our domain."""

    def __init__(self, projection: Projection, level: int, k: dict[int, Tensor]):
        super().__init__()
        self.projection, self.level, self.k = projection, level, k

    def forward(self, code: Tensor) -> Tensor:
        return projection_node(self.projection, code, self.k[self.level])


class _Traced(nn.Module):
    """Maps z, the k of each projected level and the labels to the image, the codes and the atoms of D1."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.k: dict[int, Tensor] = {}
        self.levels = [k_range.level for k_range in generator.k_ranges]
        self.generator = copy.deepcopy(generator)
        for level in self.levels:
            projections = self.generator.projections
            projection = cast(Projection, projections[level - 1])  # nn.ModuleList is not generic
            projections[level - 1] = _Node(projection, level, self.k)

    def forward(self, z: Tensor, k: list[Tensor], labels: Tensor | None = None) -> tuple[Tensor, ...]:
        self.k.update(zip(self.levels, k, strict=True))
        image, codes = self.generator(z, labels)
        self.k.clear()  # torch.export requires that attributes are unchanged
        return image, *codes, self.generator.dictionary()


def _projection_name(k: str | None) -> str:
    """Returns the name of the projection that reads the input k_1, k_2, …"""
    return f"projection_{str(k).removeprefix('k_')}"


def _make_constant_node(graph: ir.Graph, name: str) -> None:
    """Replaces an initializer by a Constant node."""
    value = graph.initializers.pop(name)
    node = ir.node("Constant", [], {"value": value.const_value}, name=f"node_{name}")
    graph.insert_before(graph[0], node)
    node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
    ir.convenience.replace_all_uses_with(value, node.outputs[0])
    node.outputs[0].name = name


def _name_batch(graph: ir.Graph) -> None:
    """Names the only dynamic axis "batch"; torch names it by a number."""
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if shape := value.shape:
            for axis, size in enumerate(shape):
                if isinstance(size, ir.SymbolicDim):
                    shape[axis] = "batch"

"""From a generator to ONNX: each projection one node, its weights in the file or in the checkpoint beside it."""

import copy
import json
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

try:
    import onnx  # noqa: TID253 (nothing here works without it)
    import onnx_ir as ir
    import onnxscript.optimizer
    import onnxscript.rewriter
    from onnx_ir.passes.common import (
        ClearMetadataAndDocStringPass,
        IdentityEliminationPass,
        RemoveUnusedNodesPass,
    )
    from onnxscript.rewriter.rules.common import collapse_slice2_rule
except ImportError as error:
    raise ImportError("exporting needs onnx and onnxscript: pip install 'sparsegen[export]'") from error

from sparsegen import __version__
from sparsegen.export import runtime
from sparsegen.zoo import bundled, noise
from sparsegen.zoo.files import atomic_write, check_writable
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.pretrained import from_pretrained
from sparsegen.zoo.projections import Projection

OPSET, IR_VERSION = 20, 10
DOMAIN = "ai.sparsegen"
TOLERANCE = 1e-5
STEPS = 3  # that `progress` hears of

# The projections in standard operators, k a runtime input. The body is replaced here and nowhere else.
# k is clamped to 1 … limit; TopK gives equal magnitudes to the lowest index, as zoo.projections does; scattering
# by index keeps exactly k entries, ties or not; zeros are made, not computed, so that inf and NaN stay where
# they are.
_SELECT = """
    one = Constant <value_ints = [1]> ()
    limit = Shape <start = 1, end = 2> (rows)
    k_1d = Reshape (k, one)
    at_least_1 = Max (k_1d, one)
    kept = Min (at_least_1, limit)
    magnitude = Abs (rows)
    largest, index = TopK <axis = 1, largest = 1, sorted = 0> (magnitude, kept)
    value = GatherElements <axis = 1> (rows, index)
    zero = Constant <value = float {0.0}> ()
    zero_like = CastLike (zero, rows)
    size = Shape (rows)
    zeros = Expand (zero_like, size)
    projected = ScatterElements <axis = 1> (zeros, index, value)
"""
FUNCTIONS = {
    "NeedleProjection": f"""
        <domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
        NeedleProjection (code, k) => (y) {{
            rows = Identity (code)
            {_SELECT}
            y = Identity (projected)
        }}
    """,
    "GlobalProjection": f"""
        <domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
        GlobalProjection (code, k) => (y) {{
            rows = Flatten <axis = 1> (code)
            {_SELECT}
            shape = Shape (code)
            y = Reshape (projected, shape)
        }}
    """,
}


@dataclass(frozen=True)
class Proof:
    """What an exported file was measured to do in onnxruntime, compared with torch.

    A selection jumps where two magnitudes at its border are equal up to rounding: torch and onnxruntime may
    then rightly keep different entries. Such a swap is counted, and accepted only at such a border.

    Attributes:
        path: The file.
        max_difference: Largest |torch - onnxruntime| of images in [-1, 1], and of codes in units of their
            largest magnitude, over the samples in which both kept the same entries.
        samples, same: Samples compared; those of them in which both kept the same entries.
        units, swapped: Needles (or whole codes) compared; those of them in which the two kept different entries.
        k: The dial settings compared, Γ1 first.
        batches: The batch sizes compared.
    """

    path: Path
    max_difference: float
    samples: int
    same: int
    units: int
    swapped: int
    k: tuple[tuple[int, ...], ...]
    batches: tuple[int, ...]


def export(
    generator: Generator,
    path: str | Path,
    *,
    embed: bool = True,
    synthesis: bool = False,
    progress: Callable[[int, str], object] | None = None,
) -> Proof:
    """Writes a generator as an ONNX file, after the file has run in onnxruntime and agreed with torch.

    Inputs of the graph: z (batch, z_dim), and k_1, k_2, …, the int64 k of each projected level, clamped to its
    range. Outputs: image, and code_1, code_2, … of every level. The arithmetic is float32.

    Args:
        embed: Whether the file holds the weights. If not, it reads those of the generator.safetensors beside
            it, which must be this generator's.
        synthesis: Whether to write also the graph from an edited Γ1 to its image: `m.synthesis.onnx` beside
            m.onnx, synthesis.onnx beside generator.onnx.
        progress: Called with the steps done, of STEPS, and what comes next.

    Raises: OSError or ValueError before any work if there can be no such file; RuntimeError if the proof fails.
        Then nothing is written.
    """
    path = Path(path)
    if path.suffix != ".onnx" or path.is_dir():
        raise ValueError(f"give the name of a file that ends in .onnx; got {path}")
    check_writable(path)
    _check_hooks(generator)
    stored = None if embed else _Stored.read(path.with_name(bundled.WEIGHTS))
    network = copy.deepcopy(generator).float().cpu().eval().requires_grad_(False)
    report = progress or (lambda done, what: None)
    with ExitStack() as files:

        def write(target: Path, model: ir.Model, graph: str) -> Path:
            if stored is not None:
                stored.place(model)
            about = describe(generator, graph, stored.digest if stored else None)
            model.metadata_props[runtime.METADATA] = json.dumps(about)
            file = files.enter_context(atomic_write(target))
            file.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
            onnx.checker.check_model(file, full_check=True)
            return file

        report(0, "tracing the generator")
        file = write(path, _trace_generator(network), "generator")
        if synthesis:
            report(1, "tracing the synthesis graph")
            _prove_synthesis(
                network, write(runtime.synthesis_path(path), _trace_synthesis(network), "synthesis")
            )
        report(2, "comparing onnxruntime with torch")
        proof = _prove(network, file, path)
    report(STEPS, "done")
    return proof


def bundle(folder: str | Path, progress: Callable[[int, str], object] | None = None) -> Proof:
    """Writes generator.onnx and synthesis.onnx into a checkpoint's folder; both read its generator.safetensors.

    Raises: as from_pretrained and export do.
    """
    folder = Path(folder).resolve()
    return export(from_pretrained(folder), folder / bundled.GRAPH, embed=False, synthesis=True, progress=progress)


def describe(generator: Generator, graph: str, weights: str | None) -> dict:
    """What an exported file says about itself; runtime.OnnxSampler reads it.

    Args:
        graph: What the file computes, "generator" or "synthesis".
        weights: SHA-256 of the safetensors file that it reads; None if it holds its weights.
    """
    return {
        "format": runtime.FORMAT,
        "graph": graph,
        "name": generator.spec.name,
        "regularizer": generator.spec.regularizer,
        "z_dim": generator.z_dim,
        "code_shapes": generator.code_shapes,
        "dials": [asdict(dial) for dial in generator.dials],  # k runs from 1 to limit, in each unit
        "weights": weights,
        "license": getattr(generator, "config", {}).get("license", "apache-2.0"),
        "sparsegen": __version__,
    }


def _check_hooks(generator: Generator) -> None:
    for name, module in generator.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(
                f"only a generator's own projections can be exported, and its layer {name!r} carries a hook: "
                "take off what sparsify put there, with remove()"
            )


class _Node(nn.Module):
    """Stands for a projection while the generator is traced: one node of our domain."""

    def __init__(self, projection: Projection, level: int, dial: dict[int, Tensor]):
        super().__init__()
        self.operator, self.level, self.dial = f"{DOMAIN}::{type(projection).__name__}", level, dial

    def forward(self, code: Tensor) -> Tensor:
        inputs = (code, self.dial[self.level])
        return torch.onnx.ops.symbolic(self.operator, inputs, dtype=code.dtype, shape=code.shape, version=1)


class _Traced(nn.Module):
    """The generator as a function of z and the k of each projected level."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.dial: dict[int, Tensor] = {}
        self.levels = [dial.level for dial in generator.dials]
        self.generator = copy.deepcopy(generator)
        for level in self.levels:
            projections = self.generator.projections
            projections[level - 1] = _Node(projections[level - 1], level, self.dial)

    def forward(self, z: Tensor, k: list[Tensor]) -> tuple[Tensor, ...]:
        self.dial.update(zip(self.levels, k, strict=True))
        image, codes = self.generator(z)
        self.dial.clear()  # torch.export wants a network as it found it
        return image, *codes


class _Synthesis(nn.Module):
    """D1 with bias and tanh as a function of Γ1, and its atoms."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(self, code_1: Tensor) -> tuple[Tensor, Tensor]:
        return self.generator.synthesize(code_1), self.generator.dictionary()


def _trace_generator(generator: Generator) -> ir.Model:
    levels = [dial.level for dial in generator.dials]
    inputs = (torch.zeros(2, generator.z_dim), [torch.tensor(dial.k) for dial in generator.dials])
    model = _trace(
        _Traced(generator).eval(),
        inputs,
        ({0: torch.export.Dim("batch")}, [None] * len(levels)),
        ["z", *(f"k_{level}" for level in levels)],
        ["image", *(f"code_{level}" for level in range(1, len(generator.code_shapes) + 1))],
    )
    for name in sorted({node.op_type for node in model.graph if node.domain == DOMAIN}):
        function = ir.from_proto(onnx.parser.parse_function(FUNCTIONS[name]))
        model.functions[function.identifier()] = function
    return model


def _trace_synthesis(generator: Generator) -> ir.Model:
    code = torch.zeros(2, *generator.code_shapes[0])
    shapes = ({0: torch.export.Dim("batch")},)
    return _trace(_Synthesis(generator).eval(), (code,), shapes, ["code_1"], ["image", "dictionary"])


def _trace(
    network: nn.Module, inputs: tuple, dynamic_shapes: tuple, input_names: list[str], output_names: list[str]
) -> ir.Model:
    """Exports a network to a graph whose initializers are its weights, named by their keys, and nothing else."""
    traced = torch.export.export(network, inputs, dynamic_shapes=dynamic_shapes)
    program = torch.onnx.export(
        traced,
        input_names=input_names,
        output_names=output_names,
        opset_version=OPSET,
        optimize=False,  # it would fold the batch norms into copies of the weights
        verbose=False,
    )
    model = program.model
    weights = set(model.graph.initializers.values())
    onnxscript.optimizer.fold_constants(
        model, should_fold=lambda node: None if node.op_type == "Shape" or weights.isdisjoint(node.inputs) else False
    )
    onnxscript.rewriter.rewrite(model, [collapse_slice2_rule])  # z[:, :, None, None] begins with a slice of all
    for node in model.graph:
        if node.op_type == "Conv" and len(node.inputs) == 3 and node.inputs[2] not in weights:
            node.resize_inputs(2)  # the exporter writes "no bias" as zeros
    for tidy in (IdentityEliminationPass(), RemoveUnusedNodesPass(), ClearMetadataAndDocStringPass()):
        tidy(model)
    for value in list(model.graph.initializers.values()):
        if value in weights:
            value.name = value.name.removeprefix("generator.")
        else:
            _make_constant_node(model.graph, value)
    _name_batch(model.graph)
    model.producer_name, model.producer_version, model.ir_version = "sparsegen", __version__, IR_VERSION
    return model


def _make_constant_node(graph: ir.Graph, value: ir.Value) -> None:
    node = ir.node("Constant", [], {"value": value.const_value}, name=f"node_{value.name}")
    del graph.initializers[value.name]
    graph.insert_before(graph[0], node)
    node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
    ir.convenience.replace_all_uses_with(value, node.outputs[0])
    node.outputs[0].name = value.name


def _name_batch(graph: ir.Graph) -> None:
    """Calls the one dynamic axis "batch", where torch numbers its symbols."""
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape(["batch" if isinstance(size, ir.SymbolicDim) else size for size in value.shape])


@dataclass(frozen=True)
class _Stored:
    """A safetensors file as a store of external data: dtype, first byte and number of bytes of each tensor."""

    name: str
    digest: str
    tensors: dict[str, tuple[ir.DataType, int, int]]

    @classmethod
    def read(cls, path: Path) -> "_Stored":
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: without embed, the graph reads its weights from there")
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, path.stat().st_size)))
            entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
            tensors = {
                key: (_DTYPES[entry["dtype"]], 8 + length + start, end - start)
                for key, entry in entries.items()
                for start, end in [entry["data_offsets"]]
                if entry["dtype"] in _DTYPES
            }
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is corrupt, truncated or no safetensors file: {error}") from None
        return cls(path.name, runtime.digest(path), tensors)

    def place(self, model: ir.Model) -> None:
        """Points the initializers into the file; what is no float32 there is cast in the graph."""
        graph, first = model.graph, model.graph[0]
        for weight in list(graph.initializers.values()):
            if weight.name not in self.tensors:
                raise ValueError(f"{self.name} holds another network: it has no {weight.name}")
            dtype, offset, length = self.tensors[weight.name]
            weight.const_value = ir.ExternalTensor(
                self.name, offset, length, dtype, shape=weight.shape, name=weight.name
            )
            if dtype != ir.DataType.FLOAT:
                cast = ir.node("Cast", [], {"to": ir.DataType.FLOAT}, name=f"node_{weight.name}", num_inputs=1)
                cast.outputs[0].name = f"{weight.name}.float32"
                cast.outputs[0].shape, cast.outputs[0].dtype = weight.shape, ir.DataType.FLOAT
                ir.convenience.replace_all_uses_with(weight, cast.outputs[0])
                cast.replace_input_with(0, weight)
                graph.insert_before(first, cast)
                weight.dtype = dtype


def _prove(generator: Generator, file: Path, path: Path) -> Proof:
    """Compares an exported file, run in onnxruntime, with the torch generator it was made from.

    Three things must hold. Each projection alone keeps exactly the entries that torch keeps, bit for bit, on
    codes full of ties. Each part between two codes, started from onnxruntime's own code, agrees with torch to
    1e-5, and each of its selections is a right one. And from z to image, all agrees to 1e-5 in each sample in
    which the two kept the same entries.

    Raises: RuntimeError if one of them does not.
    """
    for function in onnx.load(file, load_external_data=False).functions:
        _prove_function(generator, function)
    sampler = runtime.OnnxSampler(file)
    dials = generator.dials
    settings = sorted({tuple(ks) for ks in ([1] * len(dials), [d.k for d in dials], [d.limit for d in dials])})
    total, first = _Tally(), 0
    for k in settings:
        for batch in batches:
            z = noise.z(batch, generator.z_dim, seed=0, first=first)
            first += batch
            with torch.no_grad(), generator.dial(list(k) or None):
                _compare(generator, z, sampler.run(z, list(k) or None), total)
    return Proof(
        path, total.difference, total.samples, total.same, total.units, total.swapped, tuple(settings), tuple(batches)
    )


@dataclass
class _Tally:
    difference: float = 0.0
    samples: int = 0
    same: int = 0
    units: int = 0
    swapped: int = 0


def _compare(
    generator: Generator, z: np.ndarray, got: tuple[np.ndarray, tuple[np.ndarray, ...]], total: _Tally
) -> None:
    z = torch.from_numpy(z)
    image, codes = torch.from_numpy(got[0]), [torch.from_numpy(code) for code in got[1]]
    # Part by part, each from the code that onnxruntime made before it.
    code = generator.coder(z)
    for level in range(len(codes), 0, -1):
        units, swapped = _compare_selection(generator.projections[level - 1], code, codes[level - 1], level)
        total.units, total.swapped = total.units + units, total.swapped + swapped
        code = generator.stages[level - 1](codes[level - 1])
    _require_close((image - code).abs().max().item(), "the image of its own Γ1")
    # From z to image, in the samples where both kept the same entries.
    wanted_image, wanted_codes = generator(z)
    scales = [code.abs().max().clamp_min(torch.finfo().tiny) for code in wanted_codes]
    per_code = [
        ((code - wanted).abs() / scale).flatten(1).amax(1)
        for code, wanted, scale in zip(codes, wanted_codes, scales, strict=True)
    ]
    moved = [
        (((code == 0) != (wanted == 0)) & ((code - wanted).abs() > TOLERANCE * scale)).flatten(1).any(1)
        for code, wanted, scale in zip(codes, wanted_codes, scales, strict=True)
    ]
    same = ~torch.stack(moved).any(0)
    differences = torch.stack([(image - wanted_image).abs().flatten(1).amax(1), *per_code])[:, same]
    if same.any():
        _require_close(differences.max().item(), "image and codes")
        total.difference = max(total.difference, differences.max().item())
    total.samples, total.same = total.samples + len(z), total.same + int(same.sum())


def _compare_selection(projection: nn.Module, code: Tensor, got: Tensor, level: int) -> tuple[int, int]:
    """Checks onnxruntime's projected code against torch's code before the projection.

    Returns: the units compared, and those in which another entry of the same magnitude was kept.
    """
    if not isinstance(projection, Projection):
        _require_close(((got - code).abs().max() / code.abs().max().clamp_min(1e-30)).item(), f"Γ{level}")
        return 0, 0
    wanted = projection(code)
    if projection.unit == "code":
        code, wanted, got = code.flatten(1), wanted.flatten(1), got.flatten(1)
    slack = TOLERANCE * code.abs().amax()
    border = torch.where(wanted != 0, wanted.abs(), torch.inf).amin(1, keepdim=True)  # the smallest that was kept
    differs = (got - wanted).abs() > slack
    right = ((got == 0) | ((got - code).abs() <= slack)) & ((code.abs() - border).abs() <= slack)
    if (differs & ~right).any() or ((got != 0).sum(1) > projection.k).any():
        raise RuntimeError(
            f"the exported projection of Γ{level} keeps other entries than torch at k={projection.k}, and their "
            "magnitudes are not equal: the file is wrong and was not kept"
        )
    return got[:, 0].numel(), int(differs.any(1).sum())


def _prove_function(generator: Generator, function: onnx.FunctionProto) -> None:
    """Runs a model of one projection node on codes full of ties: bit for bit what torch's projection gives."""
    for dial in generator.dials:
        projection = generator.projections[dial.level - 1]
        if type(projection).__name__ != function.name:
            continue
        shape = (2, *generator.code_shapes[dial.level - 1])
        session = runtime.onnxruntime.InferenceSession(
            _one_node(function).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        rng = np.random.default_rng(0)
        codes = [
            rng.integers(-2, 3, shape).astype(np.float32),
            np.maximum(rng.standard_normal(shape, np.float32), 0),
            np.full(shape, -1, np.float32),
        ]
        for k in sorted({1, 2, dial.k, dial.limit}):
            with generator.dial([k if other == dial else other.k for other in generator.dials]):
                for code in codes:
                    (got,) = session.run(None, {"code": code, "k": np.array(k, np.int64)})
                    if got.tobytes() != projection(torch.from_numpy(code)).numpy().tobytes():
                        raise RuntimeError(
                            f"the exported {function.name} breaks ties otherwise than torch at k={k} on a code of "
                            f"shape {shape}: the file is wrong and was not kept"
                        )


def _one_node(function: onnx.FunctionProto) -> onnx.ModelProto:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(function.name, ["code", "k"], ["y"], domain=DOMAIN)],
        "projection",
        [value("code", onnx.TensorProto.FLOAT, [None] * 4), value("k", onnx.TensorProto.INT64, [])],
        [value("y", onnx.TensorProto.FLOAT, [None] * 4)],
    )
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, 1)]
    return onnx.helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=IR_VERSION)


def _prove_synthesis(generator: Generator, file: Path) -> None:
    session = runtime.open_session(file)
    code = torch.from_numpy(
        np.random.default_rng(0).standard_normal((3, *generator.code_shapes[0]), np.float32)
    )
    image, dictionary = session.run(["image", "dictionary"], {"code_1": code.numpy()})
    with torch.no_grad():
        _require_close(np.abs(image - generator.synthesize(code).numpy()).max(), "the synthesis graph")
    if not np.array_equal(dictionary, generator.dictionary().numpy()):
        raise RuntimeError("the synthesis graph holds other atoms than torch: the file is wrong and was not kept")


def _require_close(difference: float, what: str) -> None:
    if not difference <= TOLERANCE:  # NaN fails too
        raise RuntimeError(
            f"onnxruntime and torch differ by {difference:.1e} in {what}, more than {TOLERANCE}: "
            "the file is wrong and was not kept"
        )

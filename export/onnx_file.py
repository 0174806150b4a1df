"""From a generator to an ONNX file: a projection is one node, the weights lie inside or in the checkpoint."""

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
        RemoveUnusedOpsetsPass,
    )
    from onnxscript.rewriter.rules.common import collapse_slice2_rule
except ImportError as error:
    raise ImportError("exporting needs onnx and onnxscript: pip install 'sparsegen[export]'") from error

from sparsegen import __version__
from sparsegen.export import runtime
from sparsegen.zoo import bundled, noise
from sparsegen.zoo.files import atomic_write, check_writable
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.pretrained import LICENSE, from_pretrained
from sparsegen.zoo.projections import Projection

OPSET, IR_VERSION = 20, 10
DOMAIN = "ai.sparsegen"
TOLERANCE = 1e-5
BATCHES = (1, 2, 5)
STEPS = 3  # that `progress` hears of
_DTYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}

# The projections in standard operators. k, an input, is clamped to 1 … limit. TopK prefers the lowest index
# among equals, as zoo.projections does, and scattering by index keeps exactly k entries, ties or not. The
# zeros are made, not computed from the code, where an infinity would turn them into NaN. Of the bodies that
# benchmarks/projection.py compares, these are the fastest: a needle is sorted where it lies together (channels
# last) and only its mask is carried back; for a whole code the values are moved as they are.
_CLAMP = """
    one = Constant <value_ints = [1]> ()
    k_1d = Reshape (k, one)
    at_least_1 = Max (k_1d, one)
    kept = Min (at_least_1, limit)
    zero_float = Constant <value = float {0.0}> ()
    zero = CastLike (zero_float, code)
"""
FUNCTIONS = {
    "NeedleProjection": f"""
        <domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
        NeedleProjection (code, k) => (y) {{
            limit = Shape <start = 1, end = 2> (code)
            {_CLAMP}
            magnitude = Abs (code)
            needles = Transpose <perm = [0, 2, 3, 1]> (magnitude)
            largest, index = TopK <axis = -1, largest = 1, sorted = 0> (needles, kept)
            false_int = Constant <value_int = 0> ()
            false = Cast <to = 9> (false_int)
            true = Not (false)
            size = Shape (needles)
            nowhere = Expand (false, size)
            index_size = Shape (index)
            marks = Expand (true, index_size)
            mask_last = ScatterElements <axis = -1> (nowhere, index, marks)
            mask = Transpose <perm = [0, 3, 1, 2]> (mask_last)
            y = Where (mask, code, zero)
        }}
    """,
    "GlobalProjection": f"""
        <domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
        GlobalProjection (code, k) => (y) {{
            rows = Flatten <axis = 1> (code)
            limit = Shape <start = 1, end = 2> (rows)
            {_CLAMP}
            magnitude = Abs (rows)
            largest, index = TopK <axis = 1, largest = 1, sorted = 0> (magnitude, kept)
            value = GatherElements <axis = 1> (rows, index)
            size = Shape (rows)
            zeros = Expand (zero, size)
            projected = ScatterElements <axis = 1> (zeros, index, value)
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
        samples, same: Samples compared; of them, those in which both kept the same entries.
        units, swapped: Needles (or whole codes) compared; of them, those in which they kept different ones.
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

    Inputs of the graph: z (batch, z_dim), and k_1, k_2, …, the int64 k of each projected level, clamped to
    its range. Outputs: image, and code_1, code_2, … of every level. The arithmetic is float32.

    Args:
        embed: Whether the file holds the weights. If not, it reads those of the generator.safetensors beside
            it, which must be this generator's.
        synthesis: Whether to write also the graph from an edited Γ1 to its image: `m.synthesis.onnx` beside
            m.onnx, synthesis.onnx beside generator.onnx.
        progress: Called with the steps done, of STEPS, and what comes next.

    Raises: OSError or ValueError before any work if there can be no such file; RuntimeError if the proof
        fails. Then nothing is written.
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx" or path.is_dir():
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
        traced = _trace(network)
        report(1, "writing")
        made = [value.name for value in traced.outputs if value.name != "dictionary"]
        file = write(path, _part(traced, [value.name for value in traced.inputs], made), "generator")
        if synthesis:
            part = _part(traced, ["code_1"], ["image", "dictionary"])
            _prove_synthesis(network, write(runtime.synthesis_path(path), part, "synthesis"))
        report(2, "comparing onnxruntime with torch")
        proof = _prove(network, file, path)
    report(STEPS, "done")
    return proof


def bundle(folder: str | Path, progress: Callable[[int, str], object] | None = None) -> Proof:
    """Writes generator.onnx and synthesis.onnx into a checkpoint's folder, whose weights both of them read.

    Raises: as from_pretrained and export do.
    """
    folder = Path(folder).resolve()
    generator = from_pretrained(folder)
    return export(generator, folder / bundled.GRAPH, embed=False, synthesis=True, progress=progress)


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
        "license": generator.config.get("license", LICENSE),
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
    """The generator as a function of z and the k of each projected level, and the atoms of D1."""

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
        return image, *codes, self.generator.dictionary()


def _trace(generator: Generator) -> ir.Graph:
    """Traces a generator to a graph whose initializers are its weights, under their keys, and no others."""
    traced = torch.export.export(
        _Traced(generator).eval(),
        (torch.zeros(2, generator.z_dim), [torch.tensor(dial.k) for dial in generator.dials]),
        dynamic_shapes=({0: torch.export.Dim("batch")}, [None for _ in generator.dials]),
    )
    names = [f"code_{level}" for level in range(1, len(generator.code_shapes) + 1)]
    program = torch.onnx.export(
        traced,
        input_names=["z", *(f"k_{dial.level}" for dial in generator.dials)],
        output_names=["image", *names, "dictionary"],
        opset_version=OPSET,
        optimize=False,  # it would fold the batch norms into copies of the weights
        verbose=False,
    )
    model, graph = program.model, program.model.graph
    weights = set(graph.initializers.values())

    def may_fold(node: ir.Node) -> bool | None:
        return None if node.op_type == "Shape" or weights.isdisjoint(node.inputs) else False

    onnxscript.optimizer.fold_constants(model, should_fold=may_fold)
    onnxscript.rewriter.rewrite(model, [collapse_slice2_rule])  # z[:, :, None, None] begins by slicing all
    for node in graph:
        if node.op_type == "Conv" and len(node.inputs) == 3 and node.inputs[2] not in weights:
            node.resize_inputs(2)  # the exporter writes "no bias" as zeros
    for tidy in (IdentityEliminationPass(), RemoveUnusedNodesPass(), ClearMetadataAndDocStringPass()):
        tidy(model)
    for value in list(graph.initializers.values()):
        if value in weights:
            value.name = value.name.removeprefix("generator.")
        else:
            _make_constant_node(graph, value)
    _name_batch(graph)
    return graph


def _part(graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """Cuts out what makes these outputs of these inputs, a model of its own with the functions it needs."""
    part = ir.Model(
        ir.convenience.extract(graph, inputs, outputs),
        ir_version=IR_VERSION,
        producer_name="sparsegen",
        producer_version=__version__,
    )
    for name in sorted({node.op_type for node in part.graph if node.domain == DOMAIN}):
        function = ir.from_proto(onnx.parser.parse_function(FUNCTIONS[name]))
        part.functions[function.identifier()] = function
    RemoveUnusedOpsetsPass()(part)
    for name in sorted(part.graph.initializers):  # extract leaves them in an order of chance
        part.graph.initializers[name] = part.graph.initializers.pop(name)
    return part


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
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim):
                value.shape[axis] = "batch"


@dataclass(frozen=True)
class _Stored:
    """A safetensors file as a store of external data: dtype, shape, first byte and bytes of each tensor."""

    name: str
    digest: str
    tensors: dict[str, tuple[ir.DataType, list[int], int, int]]

    @classmethod
    def read(cls, path: Path) -> "_Stored":
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
            raise ValueError(f"{path} is corrupt, truncated or no safetensors file: {error}") from None
        return cls(path.name, runtime.digest(path), tensors)

    def place(self, model: ir.Model) -> None:
        """Points the initializers into the file; what is no float32 there is cast in the graph."""
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


def _prove(generator: Generator, file: Path, path: Path) -> Proof:
    """Compares an exported file, run in onnxruntime, with the torch generator it was made from.

    Three things must hold. Each projection alone keeps the entries that torch keeps, bit for bit, on codes
    full of ties. Each part between two codes, started from the code that onnxruntime made, agrees with torch
    to TOLERANCE, and each selection is a right one for what torch selects from. And from z to the image, all
    agrees to TOLERANCE in every sample in which the two kept the same entries.

    Raises: RuntimeError if one of them does not.
    """
    for function in onnx.load(file, load_external_data=False).functions:
        _prove_function(generator, function)
    sampler = runtime.OnnxSampler(file)
    least, most = [1] * len(generator.dials), [dial.limit for dial in generator.dials]
    mixed = [(1, dial.limit)[index % 2] for index, dial in enumerate(generator.dials)]
    settings = sorted({tuple(k) for k in (least, [dial.k for dial in generator.dials], most, mixed)})
    total, first = _Tally(), 0
    for k in settings:
        for batch in BATCHES:
            z = noise.z(batch, generator.z_dim, seed=0, first=first)
            first += batch
            with torch.no_grad(), generator.dial(k or None):
                _compare(generator, z, sampler.run(z, k or None), total)
    return Proof(path, **vars(total), k=tuple(settings), batches=BATCHES)


@dataclass
class _Tally:
    max_difference: float = 0.0
    samples: int = 0
    same: int = 0
    units: int = 0
    swapped: int = 0


def _compare(
    generator: Generator, z: np.ndarray, got: tuple[np.ndarray, tuple[np.ndarray, ...]], total: _Tally
) -> None:
    z, image, *codes = (torch.from_numpy(array) for array in (z, got[0], *got[1]))
    # Part by part, each from the code that onnxruntime made.
    made = generator.coder(z)
    for level in range(len(codes), 0, -1):
        units, swapped = _compare_selection(generator.projections[level - 1], made, codes[level - 1], level)
        total.units, total.swapped = total.units + units, total.swapped + swapped
        made = generator.stages[level - 1](codes[level - 1])
    _require_close((image - made).abs().max().item(), "the image of one Γ1")
    # From z to the image.
    wanted_image, wanted_codes = generator(z)
    differences = [(image - wanted_image).abs().flatten(1).amax(1)]  # (B,)
    same = torch.ones(len(z), dtype=torch.bool)
    for code, wanted in zip(codes, wanted_codes, strict=True):
        difference = (code - wanted).abs() / _scale(wanted)
        differences.append(difference.flatten(1).amax(1))
        same &= ~((difference > TOLERANCE) & ((code == 0) != (wanted == 0))).flatten(1).any(1)
    largest = torch.stack(differences)[:, same].flatten().max(0).values.item() if same.any() else 0.0
    _require_close(largest, "image and codes")
    total.max_difference = max(total.max_difference, largest)
    total.samples, total.same = total.samples + len(z), total.same + int(same.sum())


def _compare_selection(projection: nn.Module, code: Tensor, got: Tensor, level: int) -> tuple[int, int]:
    """Checks onnxruntime's Γ against what torch has before its projection.

    Returns: the units compared, and those in which others of equal magnitudes were kept.
    """
    slack = TOLERANCE * _scale(code)
    if not isinstance(projection, Projection):
        _require_close((TOLERANCE * (got - code).abs().max() / slack).item(), f"Γ{level}")
        return 0, 0
    wanted = projection(code)
    if projection.unit == "code":
        code, wanted, got = code.flatten(1), wanted.flatten(1), got.flatten(1)
    border = torch.where(wanted == 0, torch.inf, wanted.abs()).amin(1, keepdim=True)  # the smallest kept
    differs = ~((got - wanted).abs() <= slack)  # NaN differs
    came, went = differs & (wanted == 0), differs & (got == 0)
    at_border = (code.abs() - border).abs() <= slack
    right = at_border & (went | (came & ((got - code).abs() <= slack)))
    as_many = came.sum(1) == went.sum(1)
    if (differs & ~right).any() or not as_many.all() or ((got != 0).sum(1) > projection.k).any():
        raise RuntimeError(
            f"the exported projection of Γ{level} does not keep the largest magnitudes at k={projection.k}: "
            "the file was wrong and is not kept"
        )
    return as_many.numel(), int(differs.any(1).sum())


def _scale(code: Tensor) -> Tensor:
    return code.abs().max().clamp_min(torch.finfo(code.dtype).tiny)


def _prove_function(generator: Generator, function: onnx.FunctionProto) -> None:
    """Runs a model of one projection on codes full of ties: it gives what torch's does, bit for bit."""
    session = runtime.open_session(_one_node(function).SerializeToString())
    random = np.random.default_rng(0)
    for dial in generator.dials:
        projection = copy.deepcopy(generator.projections[dial.level - 1])
        shape = (2, *generator.code_shapes[dial.level - 1])
        codes = [
            random.integers(-2, 3, shape).astype(np.float32),
            np.maximum(random.standard_normal(shape, np.float32), 0),
            np.full(shape, -1, np.float32),
        ]
        for k in {1, 2, dial.k, dial.limit} if type(projection).__name__ == function.name else ():
            projection.k = k
            for code in codes:
                (got,) = session.run(None, {"code": code, "k": np.array(k, np.int64)})
                if got.tobytes() != projection(torch.from_numpy(code)).numpy().tobytes():
                    raise RuntimeError(
                        f"the exported {function.name} keeps other entries than torch's, at k={k} in a code "
                        f"of shape {shape}: the file was wrong and is not kept"
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
    session, _ = runtime.open_graph(file)
    shape = (3, *generator.code_shapes[0])
    code = np.random.default_rng(0).standard_normal(shape, np.float32)
    image, dictionary = session.run(["image", "dictionary"], {"code_1": code})
    with torch.no_grad():
        wanted = generator.synthesize(torch.from_numpy(code)).numpy()
    _require_close(np.abs(image - wanted).max(), "the synthesis graph")
    if not np.array_equal(dictionary, generator.dictionary().numpy()):
        raise RuntimeError(
            "the synthesis graph has other atoms than torch: the file was wrong and is not kept"
        )


def _require_close(difference: float, what: str) -> None:
    if not difference <= TOLERANCE:  # NaN fails too
        raise RuntimeError(
            f"onnxruntime and torch differ by {difference:.1e} in {what}, more than {TOLERANCE}: "
            "the file was wrong and is not kept"
        )

"""Exports a generator to an ONNX file. A projection is one node; weights are in the file or in the checkpoint."""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir  # noqa: TID253 (nothing here works without it)

from sparsegen import __version__
from sparsegen.common.files import atomic_write, check_utf8, check_writable
from sparsegen.export.functions import FUNCTIONS, PLAIN
from sparsegen.export.graph import cut, fold, inline, save, trace
from sparsegen.export.parity import ParityReport, verify, verify_encoding, verify_synthesis
from sparsegen.export.pursuit import trace_pursuit, unsupported
from sparsegen.export.runtime import FORMAT, encoding_path, synthesis_path
from sparsegen.export.weights import Weights, halve
from sparsegen.zoo import bundled
from sparsegen.zoo.checkpoint import from_pretrained
from sparsegen.zoo.generator import Generator

STEPS = 3  # of `progress`


def export_onnx(
    generator: Generator,
    path: str | Path,
    *,
    embed: bool = True,
    synthesis: bool = False,
    encoding: bool = False,
    plain: bool = False,
    half: bool = False,
    progress: Callable[[int, str], object] | None = None,
) -> ParityReport:
    """Writes a generator as an ONNX file, after verifying in onnxruntime that it agrees with torch.

    Inputs of the graph: z (batch, z_dim); k_1, k_2, …, the int64 k of each projected level, one number or one per image
    (batch,), clamped to its range; for a conditional generator also labels, int64 (batch,), 0 to classes - 1. The graph
    does not check labels: onnxruntime counts negative ones from the end. Outputs: image, and code_1, code_2, … of every
    level. The arithmetic is float32.

    Args:
        embed: Whether the file contains the weights. If not, it reads them from the generator.safetensors in its
            folder, which must be that of this generator.
        synthesis: Whether to write also the graph from an edited Γ1 to its image: m.synthesis.onnx for
            m.onnx, synthesis.onnx for generator.onnx.
        encoding: Whether to write also the graph that `OnnxSampler.encode` needs: m.encoding.onnx, encoding.onnx.
        plain: Whether the projections are standard operators in the graph, not functions, so that readers without local
            functions take the file. Spectral norms are computed at the export, except with half.
        half: Whether the file contains the weights in float16, cast to float32 in the graph. `ParityReport.rounded`
            counts the weights that this changes; torch has the same weights in the comparison.
        progress: Called with the number of finished steps, 0 to `STEPS`, and the name of the next one.

    Raises:
        TypeError: On encoding, if the generator has other norms or activations than the architectures here.
        ValueError: On plain or half without embed; on half if a weight exceeds float16.
        OSError: Or ValueError before any work if the file cannot be written.
        RuntimeError: And nothing is written, if onnxruntime and torch disagree.
    """
    path = Path(path)
    check_target(path, ".onnx")
    check_hooks(generator)
    if not embed and (plain or half):
        raise ValueError(
            "plain and half need embed=True: the graphs of a folder read the weights of its checkpoint"
        )
    weights = None if embed else Weights.read(path.with_name(bundled.WEIGHTS))
    network = copy.deepcopy(generator).float().cpu().eval().requires_grad_(False)
    rounded = round_to_half(network) if half else 0
    report = progress or (lambda done, what: None)
    report(0, "tracing the generator")
    traced = trace(network)
    with ExitStack() as files:

        def write(
            target: Path, graph: str, whole: ir.Graph, inputs: Sequence[str], outputs: Sequence[str]
        ) -> Path:
            model = cut(whole, inputs, outputs, PLAIN if plain else FUNCTIONS)
            if weights is not None:
                weights.place(model)
            if half:
                halve(model)
            if plain:
                inline(model)
            if plain and not half:  # folded weights are not half-precision numbers
                fold(model)
            file = files.enter_context(atomic_write(target))
            save(model, describe(generator, graph, weights.digest if weights else None), file)
            return file

        report(1, "writing")
        outputs = [name for name in _names(traced.outputs) if name != "dictionary"]
        file = write(path, "generator", traced, _names(traced.inputs), outputs)
        if synthesis:
            parts = ["code_1"], ["image", "dictionary"]
            verify_synthesis(network, write(synthesis_path(path), "synthesis", traced, *parts))
        if encoding:
            step = trace_pursuit(network)
            parts = _names(step.inputs), _names(step.outputs)
            verify_encoding(network, write(encoding_path(path), "encoding", step, *parts))
        report(2, "comparing onnxruntime with torch")
        parity = replace(verify(network, file, path), rounded=rounded)
    report(STEPS, "done")
    return parity


def bundle(folder: str | Path, progress: Callable[[int, str], object] | None = None) -> ParityReport:
    """Writes generator.onnx, synthesis.onnx and encoding.onnx into the folder of a checkpoint; all read its weights.

    A generator with norms or activations of another package has no encoding.onnx.

    Raises:
        FileNotFoundError, ValueError: As `from_pretrained` and `export_onnx`.
    """
    folder = Path(folder).resolve()
    generator = from_pretrained(folder)
    return export_onnx(
        generator,
        folder / bundled.GRAPH,
        embed=False,
        synthesis=True,
        encoding=unsupported(generator) is None,
        progress=progress,
    )


def describe(generator: Generator, graph: str, weights: str | None) -> dict[str, Any]:
    """Returns the metadata of an exported file, which `runtime.OnnxSampler` reads.

    Args:
        graph: What the file computes, "generator", "synthesis" or "encoding".
        weights: SHA-256 of the safetensors file that it reads; None if it contains its weights.
    """
    return {
        "format": FORMAT,
        "graph": graph,
        "name": generator.spec.name,
        "regularizer": generator.spec.regularizer,
        "z_dim": generator.z_dim,
        "image_size": generator.image_size,
        "classes": generator.classes,
        "class_names": generator.class_names,
        "code_shapes": generator.code_shapes,
        "dials": [asdict(k_range) for k_range in generator.k_ranges],  # k is 1 to limit in each unit
        "weights": weights,
        "license": generator.config.get("license"),
        "sparsegen": __version__,
    }


def check_target(path: Path, suffix: str) -> None:
    """Checks before any work that a file with this suffix can be written.

    Raises:
        OSError, ValueError: Naming the path.
    """
    if path.suffix.lower() != suffix or path.is_dir():
        raise ValueError(f"the path must be that of a file and end in {suffix}; got {path}")
    check_utf8(path)
    check_writable(path)


def _names(values: Sequence[ir.Value]) -> list[str]:
    return [value.name for value in values if value.name]


def round_to_half(network: Generator) -> int:
    """Rounds the weights of a network to float16 values, in place; returns the number of weights that this changes.

    Raises:
        ValueError: If one exceeds the largest float16.
    """
    changed = 0
    for name, weight in network.state_dict().items():  # tensors of the network itself
        if weight.is_floating_point():
            rounded = weight.half().float()
            if not rounded.isfinite().all():
                raise ValueError(
                    f"{name} has a weight of {weight.abs().max():.3g}, above 65504, the largest float16: export "
                    "without half"
                )
            changed += int((rounded != weight).sum())
            weight.copy_(rounded)
    return changed


def check_hooks(generator: Generator) -> None:
    """Raises: ValueError if a layer has a hook, which an export cannot contain."""
    for name, module in generator.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(
                f"hooks cannot be exported, only the generator's own projections; the layer {name!r} has a hook: "
                "remove it, e.g. with the remove() of what sparsify returned"
            )

"""Exports a generator as a program of torch.export, which PyTorch runs without this package."""

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsegen.common.files import atomic_write
from sparsegen.export.onnx_file import STEPS, check_hooks, check_target, describe
from sparsegen.export.parity import ParityReport, compare
from sparsegen.zoo.generator import Generator

METADATA = "sparsegen.json"  # the extra file with the JSON of `describe`


def export_program(
    generator: Generator, path: str | Path, *, progress: Callable[[int, str], object] | None = None
) -> ParityReport:
    """Writes a generator as a .pt2 file, after verifying that the file agrees with the generator.

        program = torch.export.load("m.pt2").module()
        image, (code_1, code_2) = program(z, k=torch.tensor([[16, 32]]))  # with labels=... if it is conditional

    Only PyTorch is needed to run it: the projections are standard operators. The inputs are z, labels for a
    conditional generator, and k for one with projections, all of any batch size. k is clamped to its range; labels are
    not checked. The extra file sparsegen.json has the metadata of an ONNX file.

    Shape: z float32 (B, z_dim), labels int64 (B,), k int64 (B, levels) -> image (B, 3, H, W) in [-1, 1], codes.

    Args:
        path: The file, which ends in .pt2.
        progress: As in `export_onnx`.

    Raises:
        OSError: Or ValueError before any work if the file cannot be written.
        RuntimeError: And nothing is written, if program and generator disagree.
    """
    path = Path(path)
    check_target(path, ".pt2")
    check_hooks(generator)
    report = progress or (lambda done, what: None)
    network = copy.deepcopy(generator).float().cpu().eval().requires_grad_(False)
    report(0, "tracing the generator")
    program = _trace(network)
    report(1, "writing")
    with atomic_write(path) as file:
        stream = io.BytesIO()
        torch.export.save(
            program, stream, extra_files={METADATA: json.dumps(describe(generator, "generator", None))}
        )
        file.write_bytes(stream.getvalue())
        report(2, "comparing the program with the generator")
        with file.open("rb") as written:
            parity = compare(network, _Runner(network, torch.export.load(io.BytesIO(written.read()))), path)
    report(STEPS, "done")
    return parity


def _trace(network: Generator) -> torch.export.ExportedProgram:
    network = copy.deepcopy(network)
    for tensor in [*network.parameters(), *network.buffers()]:  # the file cannot hold other memory formats
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    given: dict[str, Tensor] = {}
    if network.classes:
        given["labels"] = torch.zeros(2, dtype=torch.int64)
    if network.k_ranges:
        given["k"] = torch.tensor([[k_range.k for k_range in network.k_ranges]] * 2)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(
        _Clamped(network),
        (torch.zeros(2, network.z_dim),),
        given,
        dynamic_shapes={name: batch for name in ("z", *given)},
    )
    for node in program.graph.nodes:  # paths of this machine, and classes that a reader does not have
        for name in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(name, None)
    return program


class _Clamped(nn.Module):
    """The generator, with k of at least 1; more than the largest k keeps everything anyway."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.generator = generator

    def forward(
        self, z: Tensor, labels: Tensor | None = None, k: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.generator(z, labels, None if k is None else k.clamp(min=1))


class _Runner:
    """Runs a program with arrays, as `OnnxSampler.run` does."""

    def __init__(self, generator: Generator, program: torch.export.ExportedProgram):
        self.levels, self.module = len(generator.k_ranges), program.module()

    @torch.no_grad()
    def __call__(
        self, z: np.ndarray, k: Any, labels: np.ndarray | None = None
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        given = {} if labels is None else {"labels": torch.from_numpy(labels)}
        if self.levels:
            given["k"] = torch.from_numpy(np.broadcast_to(np.array(k), (len(z), self.levels)).copy())
        image, codes = self.module(torch.from_numpy(z), **given)
        return image.numpy(), tuple(code.numpy() for code in codes)

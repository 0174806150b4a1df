"""Speed of sampling images in torch and in onnxruntime, and the share of the projections.

    python -m benchmarks.sampling [--quick]

Measures untrained networks of full width (the arithmetic is the same) on one thread. The candidates run in turns, and
the median of the ratios of each turn is reported. Writes records/sampling.json unless --quick is given.
"""

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from benchmarks.machine import processor, versions
from benchmarks.projection import compare, naive, show
from sparsegen.common.files import write_json
from sparsegen.export import onnx_file
from sparsegen.export.runtime import OnnxSampler
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.projections import GlobalProjection, Projection
from sparsegen.zoo.spec import create_model

RECORDS = Path(__file__).parent / "records" / "sampling.json"


class Naive(nn.Module):
    """A projection by topk and scatter, for comparison."""

    def __init__(self, k: int, whole: bool) -> None:
        super().__init__()
        self.k, self.whole = k, whole

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        return naive(code, self.k, self.whole)


def variants(column: str, folder: Path) -> dict[str, Callable[[np.ndarray], Any]]:
    """The candidates that draw a batch of images from the generator of a column."""
    ours, bare, usual, last = (create_model("dcgan", column).eval() for _ in range(4))
    last.to(memory_format=torch.channels_last)
    for index, projection in enumerate(ours.projections):
        if isinstance(projection, Projection):
            usual.projections[index] = Naive(projection.k, isinstance(projection, GlobalProjection))
            bare.projections[index] = nn.Identity()

    def in_torch(generator: Generator) -> Callable[[np.ndarray], Any]:
        return torch.inference_mode()(lambda z: generator(torch.from_numpy(z)))

    onnx_file.export_onnx(ours, folder / "ours.onnx")
    sampler = OnnxSampler(folder / "ours.onnx", device="cpu")
    onnx_file.export_onnx(create_model("dcgan", "baseline"), folder / "bare.onnx")
    without = OnnxSampler(folder / "bare.onnx", device="cpu")
    return {
        "torch, topk + scatter": in_torch(usual),
        "torch": in_torch(ours),
        "torch, channels_last": in_torch(last),
        "torch, no projection": in_torch(bare),
        "onnxruntime": lambda z: sampler.run(z, codes=False),
        "onnxruntime, no projection": lambda z: without.run(z, codes=False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three turns instead of nine, without a record")
    repeats = 3 if parser.parse_args().quick else 9
    torch.set_num_threads(1)
    rows = []
    for column in ("l0_inf", "l0", "ml"):
        with TemporaryDirectory() as folder:
            candidates = variants(column, Path(folder))
            for batch in (1, 64):
                z = np.random.default_rng(0).standard_normal((batch, 128), np.float32)
                bound = {name: partial(run, z) for name, run in candidates.items()}
                for name, result in compare(bound, repeats).items():
                    rows.append({"model": f"dcgan.{column}", "batch": batch, "candidate": name, **result})
    show(Console(), "sampling", rows)
    if repeats > 3:
        head = {"date": datetime.now(UTC).date().isoformat(), "hardware": processor(), "threads": 1}
        write_json(RECORDS, {**head, "versions": versions(), "turns": repeats, "sampling": rows})


if __name__ == "__main__":
    main()

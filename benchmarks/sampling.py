"""Speed of drawing images in torch and in onnxruntime, and the share of the projections.

    python -m benchmarks.sampling
    python -m benchmarks.sampling --quick

Measures the best bundled model of each architecture with its trained weights, since the time of a sort depends on the
values. Each call gets other noise. The candidates run in turns, and the median of the ratios of each turn is reported,
in real time: stop other work. "Without projections" is the divided graph whose codes pass unchanged; the share of
the projections is what it saves. Writes records/sampling.json unless --quick is given.
"""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from torch import nn

from benchmarks.encoding import best_models
from benchmarks.machine import processor, versions
from benchmarks.projection import naive, show
from sparsegen.common.files import write_json
from sparsegen.export import parts
from sparsegen.export.runtime import OnnxSampler
from sparsegen.zoo import noise
from sparsegen.zoo.bundled import GRAPH, MODELS
from sparsegen.zoo.checkpoint import from_pretrained
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.projections import GlobalProjection, Projection

RECORDS = Path(__file__).parent / "records" / "sampling.json"
BATCHES, THREADS, TURNS = (1, 16, 64), (1, 2), 9
DRAWS = 8  # different batches of noise
BASE, COMPILED = "torch, topk + scatter", "torch.compile"
DIVIDED, BARE = "onnxruntime, divided", "onnxruntime, divided, without projections"

Draw = Callable[[np.ndarray, np.ndarray | None], Any]


class Naive(nn.Module):
    """A projection by topk and scatter, for comparison."""

    def __init__(self, projection: Projection) -> None:
        super().__init__()
        self.k, self.whole = projection.k, isinstance(projection, GlobalProjection)

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        return naive(code, self.k, self.whole)


def candidates(name: str, threads: int) -> dict[str, Draw]:
    """What draws a batch of images of a model, by name; the first is the base of the ratios."""
    usual, ours, last = (from_pretrained(name).eval() for _ in range(3))
    for index, projection in enumerate(usual.projections):
        if isinstance(projection, Projection):
            usual.projections[index] = Naive(projection)
    last.to(memory_format=torch.channels_last)
    whole, divided, bare = (OnnxSampler(MODELS / name / GRAPH, threads, "cpu") for _ in range(3))
    divided.divide()
    if not bare.divide():
        raise SystemExit("this benchmark needs numba and onnx: install the extra fast")
    engine = bare._run.__self__  # type: ignore[attr-defined]  # a bound method
    assert isinstance(engine, parts.Parts)
    engine._project = lambda code, k, whole: code  # type: ignore[method-assign]
    return {
        BASE: in_torch(usual),
        "torch": in_torch(ours),
        "torch, channels_last": in_torch(last),
        COMPILED: in_torch(torch.compile(ours)),  # type: ignore[arg-type]  # it has the same methods
        "onnxruntime": in_onnxruntime(whole),
        DIVIDED: in_onnxruntime(divided),
        BARE: in_onnxruntime(bare),
    }


def in_torch(generator: Generator) -> Draw:
    @torch.inference_mode()
    def draw(z: np.ndarray, labels: np.ndarray | None) -> Any:
        return generator(torch.from_numpy(z), None if labels is None else torch.from_numpy(labels))

    return draw


def in_onnxruntime(sampler: OnnxSampler) -> Draw:
    return lambda z, labels: sampler.run(z, codes=False, labels=labels)


def compare(draws: dict[str, Draw], name: str, batch: int, turns: int) -> dict[str, dict[str, float]]:
    """Returns the median milliseconds of each candidate, and the median of its speedups over the first one."""
    generator = from_pretrained(name)
    labels = noise.labels(batch, generator.classes, 0)
    inputs = cycle([noise.z(batch, generator.z_dim, seed) for seed in range(DRAWS)])
    seconds: dict[str, list[float]] = {each: [] for each in draws}
    for turn in range(turns + 1):
        z = next(inputs)
        for each, draw in draws.items():
            began = time.perf_counter()
            draw(z, labels)
            if turn:  # the first one compiles
                seconds[each].append(time.perf_counter() - began)
    base = seconds[BASE]
    return {
        each: {
            "ms": round(1e3 * median(times), 2),
            "speedup": round(median(b / t for b, t in zip(base, times, strict=True)), 2),
        }
        for each, times in seconds.items()
    }


def main(quick: Annotated[bool, typer.Option(help="Three turns, without a record.")] = False) -> None:
    """Measures all models, batches and numbers of threads."""
    turns = 3 if quick else TURNS
    rows = []
    for threads in THREADS[: os.cpu_count()]:
        torch.set_num_threads(threads)
        for name, _ in best_models():
            draws = candidates(name, threads)
            for batch in BATCHES:
                found = compare(draws, name, batch, turns)
                share = 1 - found[BARE]["ms"] / found[DIVIDED]["ms"]
                what = {"model": name, "threads": threads, "batch": batch, "share": round(share, 3)}
                rows.append(what | {each: result["speedup"] for each, result in found.items()})
                rows[-1]["base ms"] = found[BASE]["ms"]
            torch.compiler.reset()
            show(Console(width=200), "sampling", rows[-len(BATCHES) :])
    if not quick:
        head = {"date": datetime.now(UTC).date().isoformat(), "hardware": processor()}
        write_json(RECORDS, {**head, "versions": versions(), "turns": turns, "sampling": rows})


if __name__ == "__main__":
    typer.run(main)

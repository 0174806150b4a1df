"""Distances of bundled models whose k is changed after training, at factors of their k.

    python -m benchmarks.k_sweep --data train.parquet --test test.parquet
    python -m benchmarks.k_sweep --data train.parquet --models dcgan.ml --factors 0.125,0.25

Each line of records/k_sweep.jsonl is the Fréchet distance of `--count` samples of one seed to all images of `--data`,
with the k of all levels multiplied by one factor. Existing lines are skipped. With --test, the distance between two
sets of real images is measured too, as a lower limit for generators.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer

import sparsegen
from sparsegen.cli.console import progress
from sparsegen.common.files import append_line, read_lines
from sparsegen.reproduce.tables import Record
from sparsegen.training.data import open_images
from sparsegen.training.evaluation import draw, evaluate_samples
from sparsegen.training.features import open_features
from sparsegen.training.metrics import frechet_distance
from sparsegen.training.reference import Reference
from sparsegen.zoo.bundled import MODELS
from sparsegen.zoo.checkpoint import read_config
from sparsegen.zoo.k_range import KRange

RECORDS = Path(__file__).parent / "records" / "k_sweep.jsonl"
FACTORS = (0.25, 0.5, 1.0, 2.0)
KEY = ("model", "steps", "factor", "count", "seed", "metric", "reference")
REAL = "real images"


def main(
    data: Annotated[
        str, typer.Option(help="The reference: a parquet file, a folder or a Hub id.")
    ] = "cifar10",
    test: Annotated[str | None, typer.Option(help="Other real images, measured like samples.")] = None,
    models: Annotated[str, typer.Option(help="Bundled models with a projection (default: all).")] = "",
    factors: Annotated[str, typer.Option(help="Factors of the k that a model was trained with.")] = ",".join(
        map(str, FACTORS)
    ),
    count: Annotated[int, typer.Option(help="Number of samples.")] = 5000,
    seed: Annotated[int, typer.Option()] = 0,
    threads: Annotated[int, typer.Option()] = 1,
    records: Annotated[Path, typer.Option()] = RECORDS,
) -> None:
    """Measures cells without a record."""
    torch.set_num_threads(threads)
    images, features = open_images(data), open_features()
    real = Reference(features, images, bar=progress).statistics
    protocol = {"count": count, "seed": seed, "metric": features.metric, "reference": images.fingerprint}
    for name in models.split(",") if models else sparsegen.list_models():
        generator = sparsegen.from_pretrained(name)
        trained, steps = generator.k_ranges, read_config(MODELS / name)["training"]["steps"]
        for factor in map(float, factors.split(",") if trained else []):
            about = {"model": name, "steps": steps, "factor": factor, **protocol}
            if is_done(records, about):
                continue
            generator.set_k(scaled(trained, factor))
            with progress(f"{name} at {factor:g} k", count) as show:
                samples = draw(generator, [features], count, seed, progress=lambda done, _: show(done))
            evaluation = evaluate_samples(samples, {features.metric: real})
            append_line(
                records, about | {"k": [k_range.k for k_range in generator.k_ranges]} | asdict(evaluation)
            )
    if test:
        others = open_images(test)
        about = protocol | {"model": REAL, "steps": 0, "factor": 1.0, "count": len(others), "seed": 0}
        if not is_done(records, about):
            distance = frechet_distance(Reference(features, others, bar=progress).statistics, real)
            append_line(records, about | {"k": [], "distance": distance})


def scaled(k_ranges: Sequence[KRange], factor: float) -> tuple[int, ...]:
    """The k of each level times a factor, clamped to 1 and its limit."""
    return tuple(min(max(1, round(factor * k_range.k)), k_range.limit) for k_range in k_ranges)


def is_done(records: Path, about: Record) -> bool:
    return any(all(record[name] == about[name] for name in KEY) for record in read_lines(records))


if __name__ == "__main__":
    typer.run(main)

"""Table 1 at the scale that a CPU affords: a resumable matrix of architecture x regularizer x k x seed.

    python -m benchmarks.table1 --data cifar10.parquet --atoms 32 --steps 4000 --seeds 0,1,2
    python -m benchmarks.table1 --data cifar10.parquet --columns ml --densities 0.0625,0.125,0.5 --seeds 0
    python -m benchmarks.table1 --print

A run that has its record is skipped; one that was broken off goes on from its last checkpoint. Each finished
run appends one line to records/table1.jsonl. The distance is that of the averaged generator after the last
step (no best checkpoint is picked), between `--count` samples and all images of `--data`.
"""

import platform
from collections import defaultdict
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from sparsegen.__main__ import progress
from sparsegen.training.data import Images, open_images
from sparsegen.training.evaluation import evaluate, reference_statistics
from sparsegen.training.features import open_features
from sparsegen.training.run import Plan, Run, Schedule, append_line, read_lines
from sparsegen.zoo.interrupt import stop_on_interrupt
from sparsegen.zoo.table1 import ARCHITECTURES, PAPER_FID, REGULARIZERS, ModelSpec

RECORDS = Path(__file__).parent / "records" / "table1.jsonl"
KEY = (
    "architecture",
    "regularizer",
    "k",
    "atoms",
    "steps",
    "batch_size",
    "seed",
    "precision",
    "count",
    "metric",
    "fingerprint",
)
PROTOCOL = ("architecture", "atoms", "steps", "batch_size", "precision", "count", "metric", "fingerprint")


def main(
    data: Annotated[str, typer.Option(help="The images: a parquet file, a folder or a Hub id.")] = "cifar10",
    rows: Annotated[str, typer.Option(help="Architectures.")] = "dcgan",
    columns: Annotated[str, typer.Option(help="Regularizers.")] = ",".join(REGULARIZERS),
    densities: Annotated[
        str, typer.Option(help="Budgets k/limit of the projections; the columns' own by default.")
    ] = "",
    seeds: Annotated[str, typer.Option()] = "0,1,2",
    atoms: Annotated[int, typer.Option(help="Width of both networks.")] = 32,
    steps: Annotated[int, typer.Option()] = 4000,
    batch_size: Annotated[int, typer.Option()] = 64,
    precision: Annotated[str, typer.Option(help="no or bf16.")] = "bf16",
    count: Annotated[int, typer.Option(help="Samples that are measured.")] = 5000,
    threads: Annotated[int, typer.Option()] = 1,
    runs: Annotated[Path, typer.Option(help="Where unfinished runs keep their checkpoints.")] = Path(
        "runs/table1"
    ),
    records: Annotated[Path, typer.Option()] = RECORDS,
    only_print: Annotated[bool, typer.Option("--print", help="Print the table of the records.")] = False,
) -> None:
    """Trains what is missing of the matrix, then prints Table 1 with mean ± s.d. next to the paper's."""
    if not only_print:
        torch.set_num_threads(threads)
        images = open_images(data)
        features = open_features()
        with progress("reference statistics", len(images)) as show:
            reference = reference_statistics(
                images.numpy(), images.fingerprint, features, progress=lambda done, _: show(done)
            )
        budgets = [float(text) for text in densities.split(",")] if densities else [None]
        cells = dict.fromkeys(  # two budgets may give one cell, and a list may name one twice
            (seed, cell(row, column, atoms, budget))
            for seed in map(int, seeds.split(","))
            for budget in budgets
            for row in rows.split(",")
            for column in columns.split(",")
        )
        done = {key(record) for record in read_lines(records)}
        for seed, spec in cells:
            protocol = {"steps": steps, "batch_size": batch_size, "seed": seed, "precision": precision}
            measured = {"count": count, "metric": features.metric, "fingerprint": images.fingerprint}
            about = {**asdict(spec), **protocol, **measured}
            if key(about) in done:
                continue
            folder = runs / f"{spec.name}-k{'_'.join(map(str, spec.k))}-{steps}-{precision}-seed{seed}"
            record = {**about, **measure(spec, images, reference, features, protocol, count, folder)}
            records.parent.mkdir(parents=True, exist_ok=True)
            append_line(records, record)
    show_table(read_lines(records))


def cell(row: str, column: str, atoms: int, density: float | None) -> ModelSpec:
    """The cell of Table 1 with its k written out, at the column's own density or at another."""
    spec = ModelSpec.of(row, column, atoms)
    dials = spec.generator().dials
    return replace(
        spec, k=tuple(dial.k if density is None else max(1, round(density * dial.limit)) for dial in dials)
    )


def measure(
    spec: ModelSpec, images: Images, reference, features, protocol: dict, count: int, folder: Path
) -> dict:
    """Trains one cell, or what is left of it, and measures it."""
    steps = protocol["steps"]
    plan = Plan(
        spec.name,
        spec.k,
        images.name,
        images.fingerprint,
        protocol["seed"],
        protocol["batch_size"],
        protocol["precision"],
    )
    run = Run(
        folder, plan, images, Schedule(steps, judge_every=steps, save_every=500), resume=True, device="cpu"
    )
    with (
        stop_on_interrupt() as interrupted,
        progress(f"{spec.name} seed {plan.seed}", steps, run.step) as show,
    ):
        rates = []
        for step, metrics in run:
            show(step)
            if metrics:
                rates.append(metrics["images_per_second"])
            if interrupted():
                run.save()
                raise typer.Exit(130)
    with progress(f"{spec.name} seed {plan.seed}: distance", count) as show:
        verdict = evaluate(
            run.networks.averaged, reference, features, count, progress=lambda done, _: show(done)
        )
    return {
        **asdict(verdict),
        "seed": plan.seed,
        "sample_seed": verdict.seed,
        "train_images_per_second": round(float(np.median(rates)), 1) if rates else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread",
        "torch": torch.__version__,
    }


def key(record: dict) -> tuple:
    return tuple(tuple(value) if isinstance(value := record[name], list) else value for name in KEY)


def show_table(records: list[dict]) -> None:
    """Prints, for each protocol, a line per column and k with mean ± s.d. over the seeds, and the paper's FID."""
    protocols = defaultdict(lambda: defaultdict(list))
    for record in records:
        protocol = tuple(record[name] for name in PROTOCOL)
        protocols[protocol][record["regularizer"], tuple(record["k"])].append(record)
    console = Console(width=110)
    for protocol, cells in protocols.items():
        about = dict(zip(PROTOCOL, protocol, strict=True))
        full = ARCHITECTURES[about["architecture"]].atoms
        table = Table(
            "regularizer", "k", "seeds", about["metric"], "density Γ1", "density Γ2", "paper's FID", box=None
        )
        for (column, k), found in sorted(
            cells.items(), key=lambda item: (list(REGULARIZERS).index(item[0][0]), item[0][1])
        ):
            distances = [record["distance"] for record in found]
            spread = f" ± {stdev(distances):.2f}" if len(distances) > 1 else ""
            density = np.mean([record["density"] for record in found], axis=0)
            table.add_row(
                column,
                ", ".join(map(str, k)) or "-",
                ", ".join(str(record["seed"]) for record in sorted(found, key=lambda record: record["seed"])),
                f"{mean(distances):.2f}{spread}",
                *(f"{value:.3f}" for value in density),
                f"{PAPER_FID[about['architecture']][column]:.2f}",
            )
        console.print(
            f"\n{about['architecture']}, {about['atoms']} of {full} atoms, {about['steps']} steps of "
            f"{about['batch_size']} ({about['precision']}), {about['count']} samples, data {about['fingerprint']}"
        )
        console.print(table)


if __name__ == "__main__":
    typer.run(main)

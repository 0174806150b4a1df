"""Tables 1 and 2, at a small scale for CPUs or at the paper's: a resumable matrix of architecture x regularizer x k x
seed.

    python -m benchmarks.table1 --data cifar10.parquet --seeds 0,1,2
    python -m benchmarks.table1 --data cifar10.parquet --rows dcgan --columns ml --densities 0.0625,0.125,0.5
    python -m benchmarks.table1 --data cifar10.parquet --rows biggan,diffcr_biggan --shares 0.1,0.2
    python -m benchmarks.table1 --data cifar10.parquet --scale paper --device cuda --dry-run
    python -m benchmarks.table1 --data cifar10.parquet --scale paper --device cuda --count 50000
    python -m benchmarks.table1 --data /shared/cifar10.parquet --runs /shared/runs --device cuda --gpus 0.5 --on ray
    python -m benchmarks.table1 --print

Runs with a record are skipped; an interrupted run continues from its last checkpoint. Each finished run appends one
line to reproduce/records/table1.jsonl. The distance is that of the averaged generator after the last step (not of the
best checkpoint), between `--count` samples and all images of `--data`, also if it was trained on a part of them. It is
an FID where Inception's weights are.

`--scale paper` trains the full width for the steps of the recipes. `--dry-run` measures a few steps of each cell and
prints the hours and the memory of the campaign. `--on` runs the cells on a Ray cluster or as jobs of Slurm, see
docs/reproducing.md.
`sparsegen reproduce table1` prints the records and the numbers of the paper.
"""

import resource
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, replace
from enum import StrEnum
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.campaign import run_campaign, start
from benchmarks.machine import circumstances
from sparsegen.cli.console import progress
from sparsegen.common.devices import AUTO, find_device
from sparsegen.common.engines import HERE, ON_HELP, Needs, gpus_of, open_engine
from sparsegen.common.hardware import has_bfloat16
from sparsegen.common.interrupt import stop_on_interrupt
from sparsegen.reproduce import paper
from sparsegen.reproduce.tables import RECORDS, Record, read_records
from sparsegen.training.data import ImageLoader, Images, open_images
from sparsegen.training.evaluation import draw, evaluate_samples
from sparsegen.training.features import FeatureNetwork, open_features
from sparsegen.training.loop import Networks, train
from sparsegen.training.metrics import Statistics
from sparsegen.training.plan import RunPlan, Schedule
from sparsegen.training.processes import open_accelerator
from sparsegen.training.recipes import recipe_of
from sparsegen.training.reference import Reference
from sparsegen.training.run import open_run
from sparsegen.zoo.architectures import ARCHITECTURES
from sparsegen.zoo.regularizers import REGULARIZERS
from sparsegen.zoo.spec import ModelSpec


class Scale(NamedTuple):
    """Width and number of steps of a row, and a factor of the learning rates of its recipe."""

    atoms: int
    steps: int
    rate: float = 1.0


# A quarter of the full width (an eighth for residual rows) and 4,000 updates of the discriminator; the recipe sets
# their number per step. A narrow discriminator without normalization hardly learns in this time at the learning rate of
# the recipe.
SCALES = {
    "dcgan": Scale(32, 4000),
    "cgan": Scale(32, 4000),
    "wgan_gp": Scale(16, 800, 4.0),
    "msgan": Scale(32, 4000),
    "sngan": Scale(16, 4000),
    "sagan": Scale(32, 800),
    "ssgan": Scale(16, 2000, 4.0),
    "biggan": Scale(32, 1000),
    "diffcr_biggan": Scale(32, 1000),
}
SAMPLED = 4  # steps of a dry run; the first is not counted


class Size(StrEnum):
    small = "small"
    paper = "paper"


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
    "share",
    "rate",
)
PROTOCOL = tuple(name for name in KEY if name not in ("regularizer", "k", "seed"))


class Cell(NamedTuple):
    """A run to train and measure.

    Attributes:
        protocol: Steps, batch size, seed, precision, share and rate.
        name: Of its folder.
    """

    spec: ModelSpec
    protocol: dict[str, Any]
    name: str


class Setting(NamedTuple):
    """What all cells of a campaign share; every process opens the data and the features by itself.

    Attributes:
        metric, fingerprint: Of the features and of the data of the process that starts the campaign.
        real: Statistics of the features of the data.
        runs: Folder for the checkpoints.
    """

    data: str
    device: str
    threads: int
    count: int
    metric: str
    fingerprint: str
    real: Statistics
    runs: Path
    save_every: int
    compiled: bool = False


def main(
    data: Annotated[str, typer.Option(help="The images: a parquet file, a folder or a Hub id.")] = "cifar10",
    scale: Annotated[
        Size, typer.Option(help="Default widths and steps: small, for CPUs, or those of the paper.")
    ] = Size.small,
    rows: Annotated[str, typer.Option(help="Architectures.")] = ",".join(SCALES),
    columns: Annotated[str, typer.Option(help="Regularizers.")] = ",".join(REGULARIZERS),
    densities: Annotated[
        str, typer.Option(help="Densities k/limit of the projections (default: those of the columns).")
    ] = "",
    seeds: Annotated[str, typer.Option()] = "0,1,2",
    shares: Annotated[str, typer.Option(help="Shares of the images used for training.")] = "1",
    atoms: Annotated[
        int | None, typer.Option(help="Width of the networks (default: that of the row).")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps (default: that of the row).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Batch size (default: that of the recipe).")] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Factor of the learning rates of the recipe (default: that of the row)."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="no or bf16 (default: the faster one on this device).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, mps or xpu.")] = "cpu",
    count: Annotated[int, typer.Option(help="Number of samples.")] = 5000,
    threads: Annotated[int, typer.Option(help="CPU threads of a cell.")] = 1,
    on: Annotated[str, typer.Option(help=ON_HELP)] = HERE,
    gpus: Annotated[
        float | None,
        typer.Option(help="GPUs of a cell for --on, e.g. 0.25 (default: 1, or 0 without a GPU)."),
    ] = None,
    memory: Annotated[
        float, typer.Option(help="Memory of a cell in GB for --on; --dry-run measures it; 0: not reserved.")
    ] = 4,
    save_every: Annotated[
        int, typer.Option(help="Steps between two checkpoints, from which a lost cell is resumed.")
    ] = 500,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the generators by torch.compile; for GPUs.")
    ] = False,
    runs: Annotated[Path, typer.Option(help="Folder for the checkpoints of unfinished runs.")] = Path(
        "runs/table1"
    ),
    records: Annotated[Path, typer.Option()] = RECORDS / "table1.jsonl",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print hours and memory of each cell, from a few measured steps."),
    ] = False,
    only_print: Annotated[bool, typer.Option("--print", help="Print the table of the records.")] = False,
) -> None:
    """Trains the runs without a record, then prints table 1 with mean ± s.d. and the numbers of the paper."""
    if only_print:
        return show_table(read_records(records))
    engine = open_engine(on)
    torch.set_num_threads(threads)
    device, share_of_gpu = gpus_of(device, gpus, engine.here)
    try:
        place = find_device(device)
    except ValueError:
        if engine.here:
            raise
        place = find_device(AUTO)  # only the nodes have the device
        if precision is None:
            raise typer.BadParameter(
                f"this machine has no {device} to choose --precision by: give no or bf16"
            ) from None
    precision = precision or ("bf16" if has_bfloat16(place.type) else "no")
    data = str(Path(data).absolute()) if Path(data).exists() else data
    _open.cache_clear()
    images, features = _open(data, str(place))
    scales = SCALES if scale is Size.small else {row: paper_scale(row) for row in SCALES}
    budgets = [float(text) for text in densities.split(",")] if densities else [None]
    cells = dict.fromkeys(  # without duplicates, e.g. from two densities that give the same k
        (seed, share, cell(row, column, atoms or scales[row].atoms, budget))
        for seed in map(int, seeds.split(","))
        for share in map(float, shares.split(","))
        for budget in budgets
        for row in rows.split(",")
        for column in columns.split(",")
    )
    if dry_run:
        specs = [spec for _, _, spec in cells]
        return show_costs(specs, scales, steps, batch_size, images, precision, place, compiled)
    real = Reference(features, images, bar=progress).statistics
    setting = Setting(
        data,
        device,
        threads,
        count,
        features.metric,
        images.fingerprint,
        real,
        runs.absolute(),
        save_every,
        compiled,
    )

    def todo() -> Iterator[Cell]:
        for seed, share, spec in cells:
            protocol = {
                "steps": steps or scales[spec.architecture].steps,
                "batch_size": batch_size or recipe_of(spec, share).batch_size,
                "seed": seed,
                "precision": precision,
                "share": share,
                "rate": rate or scales[spec.architecture].rate,
            }
            part = f"-share{share:g}" if share < 1 else ""
            part += f"-rate{protocol['rate']:g}" if protocol["rate"] != 1 else ""
            k = "_".join(map(str, spec.k or ()))
            name = f"{spec.name}-k{k}-{protocol['steps']}-{precision}-seed{seed}{part}"
            found = Cell(spec, protocol, name)
            known = map(key, read_records(records))  # read again, since another process may add records
            if key(_about(found, setting)) not in known:
                yield found

    needs = Needs(threads, share_of_gpu, int(memory * 1e9))
    complete = run_campaign(
        engine, partial(measure, setting), todo(), lambda _: needs, records, attrgetter("name"), [runs]
    )
    show_table(read_records(records))
    if not complete:
        sys.exit(1)


@lru_cache(maxsize=1)
def _open(data: str, device: str) -> tuple[Images, FeatureNetwork]:
    """The data and the features, opened once in each process."""
    return open_images(data), open_features(device=find_device(device))


def _about(cell: Cell, setting: Setting) -> Record:
    """What identifies the record of a cell."""
    measured = {name: getattr(setting, name) for name in ("count", "metric", "fingerprint")}
    return {**asdict(cell.spec), **cell.protocol, **measured}


def paper_scale(row: str) -> Scale:
    """The full width and the steps of the recipe."""
    spec = ModelSpec.of(row, "baseline")
    return Scale(spec.atoms, recipe_of(spec).steps)


def show_costs(
    specs: list[ModelSpec],
    scales: dict[str, Scale],
    steps: int | None,
    batch_size: int | None,
    images: Images,
    precision: str,
    device: torch.device,
    compiled: bool = False,
) -> None:
    """Prints the time of the training and the memory of each cell, from a few steps on this device."""
    table = Table("cell", "steps", "batch", "ms per step", "hours", "memory in GB", box=None)
    total = 0.0
    for spec in dict.fromkeys(specs):
        recipe = recipe_of(spec)
        batch, length = batch_size or recipe.batch_size, steps or scales[spec.architecture].steps
        loader = ImageLoader(images, batch, seed=0)
        accelerator = open_accelerator(device, precision)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        times = []
        with progress(f"measuring {spec.name}", SAMPLED) as show:
            since = perf_counter()
            networks = Networks(spec, recipe, 0, device)
            if compiled:
                networks.compile()
            for step, _ in train(
                networks, recipe, loader, accelerator, seed=0, start=0, steps=SAMPLED, measure_every=1
            ):  # measuring waits for the device
                times.append(perf_counter() - since)
                show(step)
                since = perf_counter()
        seconds = float(np.median(times[1:]))
        hours = seconds * length / 3600
        total += hours
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident()
        table.add_row(
            spec.name, f"{length:,}", str(batch), f"{1000 * seconds:.1f}", f"{hours:.2f}", f"{peak / 1e9:.2f}"
        )
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{total:.1f} hours for one seed of each cell on {device} in {precision}, without evaluation. "
        f"The memory is {'allocated on the device' if device.type == 'cuda' else 'that of this process'}."
    )


def _resident() -> int:
    """The largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cell(row: str, column: str, atoms: int, density: float | None) -> ModelSpec:
    """The cell of table 1 with explicit k, at the density of the column or at another."""
    spec = ModelSpec.of(row, column, atoms)
    k_ranges = spec.k_ranges
    return replace(
        spec,
        k=tuple(
            k_range.k if density is None else max(1, round(density * k_range.limit)) for k_range in k_ranges
        ),
    )


def measure(setting: Setting, cell: Cell) -> Record:
    """Trains a cell, from its last checkpoint if there is one, and measures it.

    Raises:
        ValueError: If this process has other data or other features than the one that started the campaign.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when the checkpoint is saved.
    """
    torch.set_num_threads(setting.threads)
    device = find_device(setting.device)
    images, features = _open(setting.data, str(device))
    for what, own, theirs in (
        ("data with the fingerprint", images.fingerprint, setting.fingerprint),
        ("features with the metric", features.metric, setting.metric),
    ):
        if own != theirs:
            raise ValueError(f"the campaign has {what} {theirs}, and {setting.data} gives {own} here")
    spec, protocol = cell.spec, cell.protocol
    steps = protocol["steps"]
    plan = RunPlan(
        spec.name,
        spec.k,
        images.name,
        images.fingerprint,
        protocol["seed"],
        protocol["batch_size"],
        protocol["precision"],
        share=protocol["share"],
        rate=protocol["rate"],
        compiled=setting.compiled,
    )
    run = open_run(
        setting.runs / cell.name,
        plan,
        images.part(plan.share),
        Schedule(steps, eval_every=steps, save_every=setting.save_every),
        resume=True,
        device=str(device),
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
                raise KeyboardInterrupt
    with progress(f"{spec.name} seed {plan.seed}: distance", setting.count) as show:
        samples = draw(run.networks.averaged, [features], setting.count, progress=lambda done, _: show(done))
    evaluation = evaluate_samples(samples, {features.metric: setting.real})
    return {
        **_about(cell, setting),
        **asdict(evaluation),
        "seed": plan.seed,
        "sample_seed": evaluation.seed,
        "train_images_per_second": round(float(np.median(rates)), 1) if rates else None,
        **circumstances(),
    }


def key(record: Record) -> tuple[Any, ...]:
    return tuple(tuple(value) if isinstance(value := record[name], list) else value for name in KEY)


def show_table(records: list[Record]) -> None:
    """Prints, per protocol, one line per column and k: mean ± s.d. over the seeds, and the FID of the paper."""
    protocols: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Record]]] = defaultdict(
        lambda: defaultdict(list)
    )
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
        fids = paper.FID.get(about["architecture"], {})  # empty for rows that are not in the paper
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
                "-" if (fid := fids.get(column)) is None else f"{fid:.2f}",
            )
        console.print(
            f"\n{about['architecture']}, {about['atoms']} of {full} atoms, {about['steps']} steps of "
            f"{about['batch_size']} ({about['precision']}), {about['count']} samples, {about['share']:.0%} of "
            f"data {about['fingerprint']}"
        )
        console.print(table)


if __name__ == "__main__":
    start("benchmarks.table1")

"""Speed of the preset `fast` compared with the original Deep Image Prior: ratios of CPU seconds on one thread.

    python -m benchmarks.dip --images ../shared/data/set9 --only lena,house --size 128
    python -m benchmarks.dip --print

Both fit the same noisy crop. The original is the preset `paper` without sparsity: the network, the optimizer and the
padding of Ulyanov et al. (2018), in float32. Its best averaged PSNR, computed with the clean picture, is the goal; the
fit ends `PAST` iterations after it. This takes up to an hour, and the PSNR does not depend on the speed of the machine,
so it is measured once per crop: later settings of `fast` read the goal and its iteration from the records. The CPU
seconds of an iteration of the original are measured each time, in the process that measures `fast`; its total is this
number times its iterations. Three ratios:

    to the goal     CPU seconds of the original to its best average / of `fast` to an equally good average
    in normal use   CPU seconds of 3,000 iterations of the original / of `fast` until the stopping rule ends it
    per iteration   CPU seconds of an iteration of the original / of `fast`, with all of its members

With the environment variables

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 NUMBA_CPU_NAME=haswell

both run without AVX-512 and bfloat16, as on most laptops; such records are separate.

Crops with a record are skipped. Prints the records of the present settings, and draws the curves of each crop to
--curves.
"""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.machine import circumstances
from benchmarks.table3 import FOLLOWED, PAST, Trace, crop, follow, observe, tensor
from sparsegen.cli.console import progress
from sparsegen.common.files import append_line, atomic_write
from sparsegen.common.hardware import has_bfloat16
from sparsegen.reproduce.tables import Record, read_records
from sparsegen.restoration.restore import make_fit
from sparsegen.restoration.settings import PRESETS, Task

RECORDS = Path(__file__).parent / "records" / "dip.jsonl"
SIGMA = 25
NORMAL_USE = PRESETS["paper"].iterations
GOAL = ("image", "size", "noise", "seed", "original_settings")
KEY = (*GOAL, "settings", "instructions")
EVERY = 10  # iterations between two points of a curve
WARM_UP, TIMED = 3, 30  # iterations


def original(clean: torch.Tensor, noisy: torch.Tensor, seed: int, label: str) -> dict:
    """The best average of the original, its iteration, and the curve over the iterations."""
    best, at, curve = -1.0, 0, []
    with progress(f"{label} original", NORMAL_USE) as show:
        for trace in follow(make_fit(_original(seed), noisy), clean):
            if trace.average > best:
                best, at = trace.average, trace.iteration
            if trace.iteration % EVERY == 0:
                curve.append((trace.iteration, round(trace.average, 3)))
                show(trace.iteration, f"{label} original {trace.average:.2f} dB")
            if trace.iteration >= at + PAST:
                break
    return {"best": best, "best_iteration": at, "curve": curve}


def seconds_per_iteration(clean: torch.Tensor, noisy: torch.Tensor, seed: int) -> float:
    """Measures the CPU seconds of one iteration of the original."""
    traces = list(islice(follow(make_fit(_original(seed), noisy), clean), WARM_UP + TIMED))
    return (traces[-1].cpu - traces[WARM_UP - 1].cpu) / TIMED


def instructions() -> str:
    """The widest vector instructions of torch on this machine, and whether `fast` computes in bfloat16."""
    return torch.backends.cpu.get_cpu_capability() + ", bfloat16" * has_bfloat16("cpu")


def _original(seed: int) -> Task:
    return Task.of(preset="paper", regularizer="baseline", seed=seed)


def ours(clean: torch.Tensor, noisy: torch.Tensor, seed: int, goal: float, label: str) -> dict:
    """When `fast` reaches the goal, when the stopping rule ends it, and its result."""
    fit = make_fit(Task.of(sigma=SIGMA, seed=seed), noisy)
    best, best_iteration, curve = -1.0, 0, []
    reached: Trace | None = None
    stop: Trace | None = None
    fit.preset = replace(fit.preset, stops=False)
    with progress(f"{label} fast", fit.preset.iterations) as show:
        for trace in follow(fit, clean):
            if trace.average > best:
                best, best_iteration = trace.average, trace.iteration
            if reached is None and trace.average >= goal:
                reached = trace
            if stop is None and trace.iteration >= min(fit.best.patience_ends, fit.preset.iterations):
                stop = trace
            if trace.iteration % EVERY == 0:
                curve.append((round(trace.cpu, 2), round(trace.average, 3)))
                show(trace.iteration, f"{label} fast {trace.average:.2f} dB")
            if stop and trace.iteration >= FOLLOWED * best_iteration + 100:
                break
    if stop is None:
        raise RuntimeError("the fit ended before its last iteration")
    return {
        "best": best,
        "best_iteration": best_iteration,
        "reached_iteration": reached and reached.iteration,
        "reached_cpu": reached and reached.cpu,
        "stopped_at": stop.iteration,
        "stop_cpu": stop.cpu,
        "returned": stop.returned,
        "iteration_cpu": trace.cpu / trace.iteration,
        "curve": curve,
    }


def main(
    images: Annotated[Path, typer.Option(help="Folder of clean pictures.")] = Path("../shared/data/set9"),
    only: Annotated[
        str, typer.Option(help="Names of the pictures, separated by commas (default: all).")
    ] = "",
    size: Annotated[int, typer.Option(help="Side of the central crop in pixels.")] = 128,
    seeds: Annotated[str, typer.Option()] = "0",
    records: Annotated[Path, typer.Option()] = RECORDS,
    curves: Annotated[Path | None, typer.Option(help="Folder for a plot of the curves of each crop.")] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the table of the records.")] = False,
) -> None:
    """Measures crops without a record, then prints the ratios."""
    torch.set_num_threads(1)
    names = only.split(",") if only else sorted(path.stem for path in images.glob("*.png"))
    present = {
        "noise": f"gaussian:{SIGMA}",
        "original_settings": repr(PRESETS["paper"]),
        "settings": repr(PRESETS["fast"]),
        "instructions": instructions(),
    }
    known = read_records(records)
    done = {_key(record, KEY) for record in known}
    goals = {_key(record, GOAL): record["original"] for record in known}
    for seed in [] if only_print else map(int, seeds.split(",")):
        for name in names:
            cell: Record = {"image": name, "size": size, "seed": seed, **present}
            if _key(cell, KEY) in done:
                continue
            picture = crop(images / f"{name}.png", size)
            clean, noisy = tensor(picture), tensor(observe(picture, cell["noise"], seed))
            label = f"{name} {size}"
            theirs = goals.get(_key(cell, GOAL)) or original(clean, noisy, seed, label)
            theirs |= {"iteration_cpu": seconds_per_iteration(clean, noisy, seed)}
            mine = ours(clean, noisy, seed, theirs["best"], label)
            records.parent.mkdir(parents=True, exist_ok=True)
            append_line(
                records,
                {**cell, "original": theirs, "fast": mine, **circumstances()},
            )
    found = [record for record in read_records(records) if present.items() <= record.items()]
    show_table(found)
    if curves:
        for record in found:
            draw(record, curves / f"{record['image']}-{record['size']}-{record['seed']}.png")


def _key(record: Record, names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(record[name] for name in names)


def ratios(record: dict) -> tuple[float | None, float, float]:
    """The ratios to the goal (None if `fast` does not reach it), in normal use, and per iteration."""
    theirs, mine = record["original"], record["fast"]
    to_goal = best_cpu(theirs) / mine["reached_cpu"] if mine["reached_cpu"] else None
    used = NORMAL_USE * theirs["iteration_cpu"] / mine["stop_cpu"]
    return to_goal, used, theirs["iteration_cpu"] / mine["iteration_cpu"]


def best_cpu(theirs: dict) -> float:
    """CPU seconds of the original to its best average."""
    return theirs["best_iteration"] * theirs["iteration_cpu"]


def show_table(records: list[dict]) -> None:
    """Prints one line per crop, and the means per size."""
    table = Table(
        "crop", "seed", "original: best average", "fast: best, returned", "to the goal", "in normal use",
        "per iteration", box=None,
    )  # fmt: skip
    sizes: dict[int, list[tuple]] = {}
    for record in records:
        theirs, mine = record["original"], record["fast"]
        to_goal, used, each = ratios(record)
        sizes.setdefault(record["size"], []).append((to_goal, used, each))
        table.add_row(
            f"{record['image']} {record['size']}²",
            str(record["seed"]),
            f"{theirs['best']:.2f} at {theirs['best_iteration']}, {best_cpu(theirs):.0f} s",
            f"{mine['best']:.2f} at {mine['best_iteration']}, {mine['returned']:.2f} at {mine['stop_cpu']:.0f} s",
            f"{to_goal:.1f}" if to_goal else "not reached",
            f"{used:.0f}",
            f"{each:.1f}",
        )
    console = Console(width=130)
    console.print(table)
    for size, rows in sizes.items():
        for place, what in enumerate(("to the goal", "in normal use", "per iteration")):
            values = [row[place] for row in rows if row[place]]
            deviation = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            if values:
                console.print(
                    f"{size}²: {what} {mean(values):.1f}{deviation} times ({len(values)} of {len(rows)})"
                )


def draw(record: dict, path: Path) -> None:
    """Plots the PSNR of both averages over CPU seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    theirs, mine = record["original"], record["fast"]
    iterations, average = zip(*theirs["curve"], strict=True)
    cpu = [iteration * theirs["iteration_cpu"] for iteration in iterations]
    axes.plot(cpu, average, color="tab:gray", label="original")
    axes.plot(*zip(*mine["curve"], strict=True), color="tab:green", label="fast")
    axes.axhline(theirs["best"], color="tab:gray", linewidth=0.8, linestyle=":")
    axes.plot(mine["stop_cpu"], mine["returned"], "o", color="tab:green", label="fast: stopped")
    axes.set(
        xscale="log", xlabel="CPU seconds, one thread", ylabel="PSNR of the average, dB",
        title=f"{record['image']}, {record['size']} x {record['size']}",
    )  # fmt: skip
    axes.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


if __name__ == "__main__":
    typer.run(main)

"""Overhead of training with two processes instead of one, with the same global batch and one thread per process.

    python -m benchmarks.processes
    python -m benchmarks.processes --model biggan-64.ml --steps 20

Needs an idle machine with at least two cores. Runs alternate between one and two processes. The speed is measured after
the first steps of each run. Prints a JSON record: images per second of each run, and the ratio of the medians; 2 would
be a perfect division of the work.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated

import torch
import typer

from benchmarks.machine import circumstances, versions
from sparsegen.training.data import ImageLoader, Images
from sparsegen.training.loop import Networks, train
from sparsegen.training.processes import is_first_process, join_processes, open_accelerator
from sparsegen.training.recipes import recipe_of
from sparsegen.zoo.spec import ModelSpec

WARM_UP = 3  # steps
COUNTS = (1, 2)
WORKER = "--worker"


def speed(model: str, steps: int, batch_size: int) -> float:
    """Returns images per second of all processes together."""
    torch.set_num_threads(1)
    join_processes("cpu")
    accelerator = open_accelerator(torch.device("cpu"), "no")
    spec = ModelSpec.parse(model)
    recipe = recipe_of(spec)
    pixels = torch.randint(
        0, 256, (8 * batch_size, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    images = Images(pixels, torch.arange(len(pixels)) % 10, "noise", "0")
    rank, count = accelerator.process_index, accelerator.num_processes
    batches = ImageLoader(images, batch_size, 0, True, rank, count)
    networks = Networks(spec, recipe, 0)
    loop = train(networks, recipe, batches, accelerator, seed=0, start=0, steps=WARM_UP + steps)
    for _ in range(WARM_UP):
        next(loop)
    accelerator.wait_for_everyone()
    start = perf_counter()
    for _ in loop:
        pass
    accelerator.wait_for_everyone()
    return steps * batch_size / (perf_counter() - start)


def launched(count: int, model: str, steps: int, batch_size: int) -> float:
    """Returns the speed of a run with a number of processes, each started anew."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}"]
    command = [*torchrun, "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m", "benchmarks.processes"]
    options = [WORKER, "--model", model, "--steps", str(steps), "--batch-size", str(batch_size)]
    done = subprocess.run(
        [*command, *options],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"a run with {count} process(es) failed: {done.stderr[-2000:]}")
    return float(done.stdout)


def main(
    model: Annotated[str, typer.Option(help="Name of the model.")] = "dcgan-64.ml",
    steps: Annotated[int, typer.Option(min=1, help="Measured steps per run.")] = 20,
    batch_size: Annotated[int, typer.Option(min=2, help="Images per step of all processes.")] = 64,
    turns: Annotated[int, typer.Option(min=1, help="Runs of each kind.")] = 5,
    worker: Annotated[bool, typer.Option(WORKER, hidden=True)] = False,
) -> None:
    if worker:
        measured = speed(model, steps, batch_size)
        if is_first_process():
            print(measured)
        return
    speeds: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(turns):
        for count in COUNTS:
            speeds[count].append(launched(count, model, steps, batch_size))
    one, two = (median(speeds[count]) for count in COUNTS)
    record = {"model": model, "batch_size": batch_size, "steps": steps, "images_per_second": speeds}
    print(json.dumps({**circumstances(), **versions(), **record, "ratio": two / one}, indent=2))


if __name__ == "__main__":
    typer.run(main)

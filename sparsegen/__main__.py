"""The command line: one thin function a command. `python -m sparsegen` is the same."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import click
import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

import sparsegen

app = typer.Typer(
    help="Image generators whose inner representation is a sparse code.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
out, err = Console(), Console(stderr=True)

Model = Annotated[
    str, typer.Argument(help="A bundled model, a checkpoint's folder, or owner/name on the Hub.")
]
Seed = Annotated[int, typer.Option(help="Fixes the noise: 0 to 2^64 - 1.")]
K = Annotated[
    str | None,
    typer.Option(help="The sparsity dial: non-zeros kept; one number, or one a level, Γ1 first, as 16,32."),
]
Data = Annotated[str, typer.Option(help="Images: a Hub dataset id, a parquet file, or a folder of images.")]


class Rate(ProgressColumn):
    """Steps a second, averaged over the last of them."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g}/s" if task.speed else "")


@contextmanager
def progress(what: str, total: int | None, done: int = 0) -> Iterator:
    """Shows a bar with rate and time left; yields a function that takes what is done by now."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=not err.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda now, description=what: bar.update(task, completed=now, description=description)


def parse_k(k: str | None) -> int | list[int] | None:
    if k is None:
        return None
    try:
        values = [int(part) for part in k.split(",")]
    except ValueError:
        raise ValueError(f"--k is one number, or one a level as 16,32; got {k!r}") from None
    return values[0] if len(values) == 1 else values


@app.command(name="list", epilog="Example: sparsegen list 'dcgan*'")
def list_models(pattern: Annotated[str, typer.Argument(help="Shell pattern.")] = "*") -> None:
    """Lists the bundled models."""
    from sparsegen.zoo.pretrained import MODELS, read_config

    names = sparsegen.list_models(pattern)
    if not names:
        raise ValueError(
            f"no bundled model matches {pattern!r}; there are {', '.join(sparsegen.list_models()) or 'none'}"
        )
    table = Table("model", "k", "steps", "Fréchet distance", "metric", box=None)
    for name in names:
        config = read_config(MODELS / name)
        verdict = config.get("evaluation", {})
        table.add_row(
            name,
            ", ".join(map(str, config["k"])) or "-",
            str(config.get("training", {}).get("steps", "-")),
            f"{verdict['distance']:.1f}" if verdict else "-",
            verdict.get("metric", "-"),
        )
    out.print(table)


@app.command(epilog="Example: sparsegen sample dcgan.ml --count 16 --seed 7 --k 16 --out grid.png")
def sample(
    model: Model,
    count: Annotated[int, typer.Option(help="Number of images.")] = 16,
    seed: Seed = 0,
    k: K = None,
    truncation: Annotated[
        float | None, typer.Option(help="Bound of the truncated normal of z; none by default.")
    ] = None,
    out_path: Annotated[
        Path, typer.Option("--out", help="A .png grid, a .npy array, or a folder for single PNGs.")
    ] = Path("samples.png"),
    scale: Annotated[int, typer.Option(min=1, max=16, help="Enlarges each pixel of a grid.")] = 2,
) -> None:
    """Draws images from a model."""
    import numpy as np

    from sparsegen.zoo import images, noise
    from sparsegen.zoo.files import atomic_write, check_writable

    noise.check_count(count)
    noise.check_seed(seed)
    check_writable(out_path)
    generator = sparsegen.from_pretrained(model)
    pixels = generator.sample(count, seed=seed, k=parse_k(k), truncation=truncation)
    if out_path.suffix == ".npy":
        with atomic_write(out_path) as file, file.open("wb") as stream:
            np.save(stream, pixels)
    elif out_path.suffix == ".png":
        with atomic_write(out_path) as file:
            file.write_bytes(images.png(images.grid(pixels), scale))
    else:
        out_path.mkdir(exist_ok=True)
        for index, image in enumerate(pixels):
            with atomic_write(out_path / f"{seed}-{index:05d}.png") as file:
                file.write_bytes(images.png(image))
    out.print(f"{count} images of {model} in {out_path}", highlight=False)


@app.command(epilog="Example: sparsegen train dcgan.ml --data cifar10.parquet --out runs/ml --steps 20000")
def train(
    model: Annotated[
        str, typer.Argument(help="architecture[-atoms].regularizer, as dcgan.ml or dcgan-64.l0.")
    ],
    data: Data,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the run.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Length; the recipe's by default.")] = None,
    k: K = None,
    seed: Seed = 0,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images in a step; the recipe's by default.")
    ] = None,
    start_from: Annotated[
        str | None, typer.Option("--from", help="Fine-tune this model: a bundled one, a folder or a Hub id.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    precision: Annotated[str, typer.Option(help="no (float32) or bf16.")] = "no",
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first images only.")] = None,
    judge_every: Annotated[int, typer.Option(min=1, help="Steps between Fréchet distances.")] = 2_000,
    judge_count: Annotated[int, typer.Option(min=0, help="Images drawn for one; 0 for none.")] = 2_000,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    device: Annotated[str | None, typer.Option(help="cpu; by default a GPU where there is one.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of torch.")] = None,
) -> None:
    """Trains a model, or fine-tunes one (--from); Ctrl-C saves, and --resume goes on."""
    import torch

    from sparsegen.training.data import open_images
    from sparsegen.training.interrupt import stop_on_interrupt
    from sparsegen.training.recipes import recipe_of
    from sparsegen.training.run import Plan, Run, Schedule
    from sparsegen.zoo.table1 import ModelSpec

    noise_k = parse_k(k)
    spec = ModelSpec.parse(model)
    if noise_k is not None:
        spec = spec.with_k(tuple(spec.generator().resolve_k(noise_k)))
    recipe = recipe_of(spec)
    if threads:
        torch.set_num_threads(threads)
    images = open_images(data, limit=limit)
    plan = Plan(
        model=spec.name,
        k=spec.k,
        data=images.name,
        fingerprint=images.fingerprint,
        seed=seed,
        batch_size=batch_size or recipe.batch_size,
        precision=precision,
        start_from=start_from,
    )
    judge = _judge(images, judge_count) if judge_count else None
    schedule = Schedule(steps=steps or recipe.steps, judge_every=judge_every, save_every=save_every)
    run = Run(out_folder, plan, images, schedule, judge, resume, device)
    with stop_on_interrupt() as interrupted, progress(spec.name, schedule.steps, run.step) as show:
        for step, metrics in run:
            losses = metrics and "  ".join(f"{name} {loss:.2f}" for name, loss in metrics["losses"].items())
            show(step, **({"description": f"{spec.name}  {losses}"} if losses else {}))
            if interrupted():
                run.save()
                err.print(
                    f"stopped and saved at step {step}: the same command with --resume goes on",
                    highlight=False,
                )
                raise typer.Exit(130)
    best = (
        f"; best {run.best['metric']} {run.best['distance']:.2f} at step {run.best['step']}"
        if run.best
        else ""
    )
    out.print(f"{spec.name} trained for {run.step} steps in {out_folder}{best}", highlight=False)


def main() -> None:
    """Runs the command line: bad input ends with exit code 2 and one line, never a traceback."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=err, show_time=False, show_path=False)],
    )
    try:
        code = app(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        _fail(error.format_message())
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("SPARSEGEN_TRACEBACK"):
            raise
        _fail(str(error))
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    print(f"sparsegen: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()

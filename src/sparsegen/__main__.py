"""The command line: one thin function a command. `python -m sparsegen` is the same."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

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
from rich.table import Column, Table
from rich.text import Text

import sparsegen
from sparsegen.cli import restoring
from sparsegen.cli.reporting import say

app = typer.Typer(
    help="Image generators whose inner representation is a sparse code.",
    add_completion=False,
    rich_markup_mode=None,
)
out, err = Console(), Console(stderr=True)
FORESEEN = (ValueError, TypeError, OSError, ImportError, RuntimeError, FloatingPointError)

Model = Annotated[
    str, typer.Argument(help="A bundled model, a checkpoint's folder, or owner/name on the Hub.")
]
Seed = Annotated[int, typer.Option(help="Fixes the noise: 0 to 2^64 - 1.")]
K = Annotated[
    str | None,
    typer.Option(help="The sparsity dial: non-zeros kept; one number, or one a level, Γ1 first, as 16,32."),
]


def _place(jobs: str | None) -> str | None:
    """Refuses a password as an argument."""
    from sparsegen.service.places import has_password, public

    if jobs and has_password(jobs) and jobs != os.environ.get("SPARSEGEN_JOBS"):
        raise typer.BadParameter(
            f"{public(jobs)} may hold a password, and every user of this machine can read arguments: set the "
            "environment variable SPARSEGEN_JOBS to the URL instead"
        )
    return jobs


Jobs = Annotated[
    str | None,
    typer.Option(
        envvar="SPARSEGEN_JOBS",
        callback=_place,
        help="Where restorations are kept: a file, or redis://… for several machines. A file of yours by default.",
    ),
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
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=done)
        yield lambda now, description=what, total=total: bar.update(
            task, completed=now, description=description, total=total
        )


def parse_labels(labels: str | None) -> str | list[str] | None:
    """One class or a list of them, each by its number or its name."""
    parts = [part.strip() for part in labels.split(",")] if labels is not None else []
    return parts if len(parts) > 1 else labels


def parse_k(k: str | None) -> int | list[int] | None:
    if k is None:
        return None
    try:
        values = [int(part) for part in k.split(",")]
    except ValueError:
        raise ValueError(f"--k is one number, or one a level as 16,32; got {k!r}") from None
    return values[0] if len(values) == 1 else values


@app.command(name="list", epilog="Example: sparsegen list 'dcgan*'")
def list_models(
    pattern: Annotated[str, typer.Argument(help="Shell pattern.")] = "*",
    plain: Annotated[bool, typer.Option("--plain", help="Bare names, which a pipe gets anyway.")] = False,
) -> None:
    """Lists the bundled models: as a table on a terminal, as bare names in a pipe."""
    names = sparsegen.list_models(pattern)
    if not names:
        raise ValueError(
            f"no bundled model matches {pattern!r}; there are {', '.join(sparsegen.list_models()) or 'none'}"
        )
    if plain or not out.is_terminal:
        print(*names, sep="\n")
        return
    from sparsegen.zoo.bundled import MODELS
    from sparsegen.zoo.checkpoint import read_config

    facts = {name: _summary(read_config(MODELS / name)) for name in names}
    columns = list(next(iter(facts.values())))
    found = {column: {about[column] for about in facts.values()} - {"-"} for column in COMMON}
    same = {column: values.pop() for column, values in found.items() if len(values) == 1}
    table = Table(Column("model", no_wrap=True), box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        if column not in same:
            # A narrow terminal gets it in several lines, and all of it.
            table.add_column(column, overflow="fold")
    for name, about in facts.items():
        table.add_row(name, *(about[column] for column in columns if column not in same))
    out.print(table)
    for column, value in same.items():
        out.print(f"{column}: {value}{COMMON[column]}", style="dim", highlight=False)


# What is told once, below the table, where all models have it in common, and a remark to it.
COMMON = {"trained on": "", "distance by": ", lower is better", "license": ""}


def _summary(config: dict) -> dict[str, str]:
    """A bundled model in the columns of the list."""
    from sparsegen.zoo.architectures import ARCHITECTURES

    row = ARCHITECTURES[config["architecture"]]
    training, verdict = config.get("training", {}), config.get("evaluation", {})
    return {
        "classes": str(row.classes or "-"),
        "atoms": f"{config['atoms']}/{row.atoms}",
        "k": ", ".join(map(str, config["k"])) or "-",
        "steps": f"{training['steps']:,}" if training else "-",
        "seed": str(training.get("seed", "-")),
        "distance": f"{verdict['distance']:.1f}" if verdict else "-",
        "density": ", ".join(f"{share:.2f}" for share in verdict.get("density", ())) or "-",
        "trained on": str(training.get("data", "-")),
        "distance by": verdict.get("metric", "-"),
        "license": config["license"],
    }


@app.command(epilog="Example: sparsegen sample dcgan.ml --count 16 --seed 7 --k 16 --out grid.png")
def sample(
    model: Model,
    count: Annotated[
        int | None, typer.Option(help="Number of images; by default 16, or as many as --labels lists.")
    ] = None,
    seed: Seed = 0,
    k: K = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Of a conditional model the class of all images, or of each: its number or name (what is both is the "
            "name), as cat or 3,5,dog; drawn by default. `sparsegen info` lists them."
        ),
    ] = None,
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

    from sparsegen.common.files import atomic_write
    from sparsegen.pictures import images
    from sparsegen.zoo import noise

    if count is not None:
        noise.check_count(count)
    noise.check_seed(seed)
    suffix = _target(out_path, ".png", ".npy", folder=True)
    generator = sparsegen.from_pretrained(model)
    chosen = parse_labels(labels)
    if count is None:
        count = len(chosen) if isinstance(chosen, list) else 16
    with progress(model, count) as show:
        pixels = generator.sample(count, seed, parse_k(k), chosen, truncation, progress=show)
    if suffix == ".npy":
        with atomic_write(out_path) as file, file.open("wb") as stream:
            np.save(stream, pixels)
    elif suffix == ".png":
        with atomic_write(out_path) as file:
            file.write_bytes(images.png(images.grid(pixels), scale))
    else:
        for index, image in enumerate(pixels):
            with atomic_write(out_path / f"{seed}-{index:05d}.png") as file:
                file.write_bytes(images.png(image))
    out.print(f"{count} images of {model} in {out_path}", highlight=False)


class Precision(StrEnum):
    no = "no"
    bf16 = "bf16"


@app.command(epilog="Example: sparsegen train dcgan.ml --data cifar10.parquet --out runs/ml --steps 20000")
def train(
    model: Annotated[
        str,
        typer.Argument(
            help="architecture[-atoms].regularizer[.recipe], e.g. dcgan.ml, dcgan-64.l0 or biggan-64.ml.projected."
        ),
    ],
    data: Data,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the run.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Length; the recipe's by default.")] = None,
    k: Annotated[
        str | None,
        typer.Option(
            help="Non-zeros kept: one number, or one a level, Γ1 first, as 16,32; by default those of --from, if it "
            "has the same regularizer, or of the regularizer's density."
        ),
    ] = None,
    seed: Seed = 0,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images in a step; the recipe's by default.")
    ] = None,
    start_from: Annotated[
        str | None, typer.Option("--from", help="Fine-tune this model: a bundled one, a folder or a Hub id.")
    ] = None,
    warm_up: Annotated[
        int, typer.Option(min=0, help="Steps that a new discriminator gets to catch up, if --from has none.")
    ] = 500,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    precision: Annotated[Precision, typer.Option(help="float32 (no), or bfloat16 where it may be.")] = "no",
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first images only.")] = None,
    share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Train on this part of the images, as 0.1, classes taken in turn."),
    ] = 1.0,
    rate: Annotated[
        float,
        typer.Option(help="Learning rates, as a multiple of the recipe's: less to fine-tune gently."),
    ] = 1.0,
    features: Annotated[
        str,
        typer.Option(
            help="Frozen network of the projected recipe: cifar10-classifier, efficientnet-lite0, or auto, which takes "
            "the first for the images that it was trained on, and the second for others."
        ),
    ] = "auto",
    judge_every: Annotated[int, typer.Option(min=1, help="Steps between Fréchet distances.")] = 2_000,
    judge_count: Annotated[int, typer.Option(help="Images drawn for one, 2 at least; 0 for none.")] = 2_000,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:N or mps; by default a GPU where there is one.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of torch.")] = None,
) -> None:
    """Trains a model, or fine-tunes one (--from); Ctrl-C saves, and --resume goes on."""
    import torch

    from sparsegen.common.checks import check_integer
    from sparsegen.common.interrupt import stop_on_interrupt
    from sparsegen.training.data import check_share
    from sparsegen.training.projected import find_frozen, frozen_for
    from sparsegen.training.recipes import recipe_of
    from sparsegen.training.run import (
        Plan,
        Run,
        Schedule,
        check_folder,
        checkpoints,
        find_device,
        find_source,
    )
    from sparsegen.zoo import noise
    from sparsegen.zoo.spec import ModelSpec

    spec = _at(ModelSpec.parse(model), k)
    check_share(share)
    frozen = find_frozen(spec, features)  # before the images are decoded, which may take long
    noise.check_seed(seed)
    check_folder(out_folder)
    if resume and not checkpoints(out_folder):
        raise ValueError(f"{out_folder} holds no run to go on with: leave --resume out, or give its folder")
    if judge_count:
        check_integer("--judge-count", judge_count, 2, noise.MAX_COUNT, "0, or the images drawn")
    device = str(find_device(device))
    if start_from and not resume:  # a resumed run has all it needs
        find_source(spec, start_from)
    if threads:
        torch.set_num_threads(threads)
    images = _open(data, limit=limit)
    part = images.part(share)
    if frozen is None and spec.recipe == "projected":
        frozen = frozen_for(images.fingerprint)
    recipe = recipe_of(spec, share, frozen).faster(rate)
    plan = Plan(
        model=spec.name,
        k=spec.k,
        data=part.name,
        fingerprint=part.fingerprint,
        seed=seed,
        batch_size=batch_size or recipe.batch_size,
        precision=str(precision),
        share=share,
        rate=rate,
        start_from=start_from,
        warm_up=warm_up if start_from else 0,
        features=frozen and frozen.name,
    )

    def judged(done: int, count: int) -> None:
        show(run.step, f"{spec.name}  judged by {done} of {count} images")

    schedule = Schedule(steps=steps or recipe.steps, judge_every=judge_every, save_every=save_every)
    run = Run(out_folder, plan, part, schedule, resume=resume, device=device)
    if judge_count:  # by all images, so that distances of models that were trained on shares of them compare
        run.judge = _judge(images, judge_count, device, plan.features, judged)

    def tell() -> None:
        if run.accelerator.is_main_process:
            say(err, "stopping after this step, and saving; Ctrl-C again stops at once")

    with stop_on_interrupt(tell) as interrupted, progress(spec.name, schedule.steps, run.step) as show:
        try:
            _follow(run, interrupted, show)
        except KeyboardInterrupt:  # the second one, which does not wait until all is saved
            saved = checkpoints(run.folder)
            goes_on = (
                f"--resume goes on from step {int(saved[-1].name)}" if saved else "nothing was saved before"
            )
            say(err, f"interrupted at step {run.step} and not saved: {goes_on}")
            sys.exit(130)
    best = (
        f"; best {run.best['metric']} {run.best['distance']:.2f} at step {run.best['step']}"
        if run.best
        else ""
    )
    out.print(f"{spec.name} trained for {run.step} steps in {out_folder}{best}", highlight=False)


@app.command(epilog="Example: sparsegen evaluate dcgan.ml --data cifar10 --neighbors near.png")
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A bundled model, a checkpoint's folder, or owner/name on the Hub; or the word real: then the test "
            "images are measured like samples, as the yardstick."
        ),
    ],
    data: Data,
    test: Annotated[
        str | None, typer.Option(help="Real test images (default: the split `test` of --data).")
    ] = None,
    count: Annotated[
        int, typer.Option(help="Images measured; compare figures over equal counts only.")
    ] = 10_000,
    seed: Seed = 0,
    k: K = None,
    features: Annotated[
        str,
        typer.Option(
            help="Feature networks, separated by commas: inception (FID), efficientnet-lite0, cifar10-classifier. By "
            "default (auto) inception if its weights are there, else efficientnet-lite0; on CIFAR-10 the classifier, "
            "too. The headline figure is that of the first network that was not in the model's discriminator."
        ),
    ] = "auto",
    weights: Annotated[Path | None, typer.Option(help="Inception's weights as a file.")] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Leave out class accuracy, precision, recall and memorization: only distances."
        ),
    ] = False,
    neighbors: Annotated[
        Path | None,
        typer.Option(
            "--neighbors",
            "--neighbours",
            help="A .png file: the first 16 samples beside their nearest training images.",
        ),
    ] = None,
    out_path: Annotated[Path | None, typer.Option("--out", help="Also write the figures as JSON.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Also write them into the config of the checkpoint's folder.")
    ] = False,
) -> None:
    """Measures a model against real images: Fréchet distances, class accuracy of conditional samples, precision and
    recall, memorization; the density of its codes, samples a second.

    The first time takes longer, since the features of the real images are computed and kept.
    """
    from sparsegen.common.checks import check_integer
    from sparsegen.common.files import atomic_write, check_writable, write_json
    from sparsegen.pictures import images as pixels
    from sparsegen.training.evaluation import draw, evaluate
    from sparsegen.training.features import headline_first, named_networks, open_features, second_networks
    from sparsegen.training.quality import LEAST, measure_quality, neighbor_picture, real_samples
    from sparsegen.training.reference import Reference
    from sparsegen.zoo import noise
    from sparsegen.zoo.bundled import CONFIG

    is_real = model == REAL
    check_integer("--count", count, 2 if quick else LEAST, noise.MAX_COUNT, "the number of images to measure")
    noise.check_seed(seed)
    if out_path:
        check_writable(out_path)
        if out_path.is_dir():
            raise IsADirectoryError(f"--out takes the name of a JSON file; {out_path} is a folder")
    if neighbors:
        _target(neighbors, ".png", option="--neighbors")
    if is_real and (record or k):
        raise ValueError(
            f"{REAL} stands for the test images, not for a model: leave --record and --k out, or give the path of a "
            f"folder of this name as ./{REAL}"
        )
    if record:
        if not Path(model).is_dir():
            raise ValueError(f"--record writes into a checkpoint's folder of yours; {model} is none")
        check_writable(Path(model) / CONFIG)
    generator = None if is_real else sparsegen.from_pretrained(model)
    if generator:
        trained = generator.dials
        generator.set_k(parse_k(k))
        if record and generator.dials != trained:
            raise ValueError("--record writes the figures of a model as it is: leave --k out, or --record")
    networks = {  # before the images are decoded, which may take long
        name: open_features(name, weights if name == "inception" else None)
        for name in named_networks(features, weights)
    }
    images = _open(data)
    test_images = _open_test(data, test, images, needed=is_real)
    if features == "auto":
        networks |= {name: open_features(name) for name in second_networks(images.fingerprint)}
    discriminator = generator and generator.config.get("training", {}).get("features")
    names, independent = headline_first(networks, discriminator)
    references = [Reference(networks[name], images, test_images, progress) for name in names]
    statistics = {real.network.metric: real.statistics for real in references}
    if generator:
        with progress(f"{model}: {', '.join(statistics)}", count) as show:
            samples = draw(
                generator, list(networks.values()), count, seed, progress=lambda done, _: show(done)
            )
    else:
        samples = real_samples(references, count)
    verdict = evaluate(samples, statistics)
    figures = {
        "k": [dial.k for dial in generator.dials] if generator else [],
        "data": Path(images.name).name,
        **asdict(verdict),
        "independent": independent,
    }
    if not quick:
        quality, remarks = measure_quality(samples, references[0], progress)
        figures |= asdict(quality)
        for remark in remarks:
            say(err, remark)
    if not independent:
        say(
            err, f"{verdict.metric} was in the discriminator of {model}, so it flatters it: no other is given"
        )
    _show({"model": model, **figures})
    if neighbors:
        with atomic_write(neighbors) as file:
            file.write_bytes(pixels.png(neighbor_picture(samples, references[0]), 2))
    if out_path:
        write_json(out_path, {"model": model, **figures})
    if record:
        write_json(Path(model) / CONFIG, {**generator.config, "evaluation": figures})


REAL = "real"  # for a model: the test images


@app.command(epilog="Example: sparsegen export dcgan.ml --out dcgan-ml.onnx --synthesis")
def export(
    model: Model,
    out_path: Annotated[
        Path, typer.Option("--out", help="An .onnx file; or a folder, for a model that `serve` can serve.")
    ],
    synthesis: Annotated[bool, typer.Option(help="Also write the graph from Γ1 to its image.")] = False,
    discriminator: Annotated[
        bool, typer.Option(help="Also put the discriminator (and encoder) into the folder, for fine-tuning.")
    ] = False,
) -> None:
    """Writes a model as ONNX with k as an input, and proves that it does what torch does.

    A folder gets the weights in half precision and two small graphs that read them.
    """
    import torch

    from sparsegen.common.files import atomic_folder
    from sparsegen.export.folder import check_bundle
    from sparsegen.export.onnx_file import STEPS, bundle, export
    from sparsegen.zoo.bundled import GRAPH
    from sparsegen.zoo.checkpoint import find_checkpoint, save_companions

    suffix, source = _target(out_path, ".onnx", folder=True), find_checkpoint(model)
    if suffix and discriminator:
        raise ValueError(
            f"--discriminator puts it into a folder, and {out_path} is a file: give a folder as --out"
        )
    if not suffix:
        check_bundle(out_path, source)
    generator = sparsegen.from_pretrained(model)
    with progress(model, STEPS) as show:

        def report(done: int, what: str) -> None:
            show(done, f"{model}: {what}")

        if suffix:
            proof = export(generator, out_path, synthesis=synthesis, progress=report)
        else:
            with atomic_folder(out_path) as folder:
                generator.save_pretrained(folder, dtype=torch.float16)
                if discriminator:
                    save_companions(source, folder, generator.spec, torch.float16)
                proof = replace(bundle(folder, progress=report), path=out_path / GRAPH)
    _show(asdict(proof))


@app.command(epilog="Example: sparsegen serve --port 3000")
def serve(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    models: Annotated[
        Path | None, typer.Option(help="Folder of models, each as `export --out FOLDER` writes it.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, max=61, help="Processes beside the server that restore pictures.")
    ] = 1,
    jobs: Jobs = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="Token that clients have to present, 16 characters or more. Other users of this machine see "
            "arguments: SPARSEGEN_TOKEN or --token-file hide it.",
            show_default=False,
        ),
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File that holds the token.")] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that requests may address the server by, beside localhost and --host; * is any."
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin, such as https://example.org, whose pages may use the API; * is any."),
    ] = None,
    allow_frame: Annotated[
        list[str] | None, typer.Option(help="Origin whose pages may show the page in a frame; * is any.")
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or network of a proxy whose X-Forwarded-For is believed (default: this machine)."
        ),
    ] = None,
) -> None:
    """Serves the bundled models, or your own, and restorations, over HTTP, with the page at /ui.

    The options from --token on may be given as variables, too: SPARSEGEN_TOKEN, SPARSEGEN_ALLOW_HOST, …
    """
    from sparsegen.service.exposure import Exposure
    from sparsegen.service.serve import serve

    if token and token_file:
        raise ValueError("--token and --token-file both give the token: leave one of them out")
    exposure = Exposure.from_environment(
        host=host,
        token=read_token(token_file) if token_file else token,
        hosts=tuple(allow_host or ()),
        origins=tuple(allow_origin or ()),
        frames=tuple(allow_frame or ()),
        proxies=tuple(proxy or ()),
    )
    os.environ.update(exposure.environment())
    if models:
        os.environ["SPARSEGEN_MODELS"] = str(models.resolve())
    sys.exit(serve(host, port, workers, jobs))


def read_token(path: Path) -> str:
    """Reads a token from the file that holds it.

    Raises: ValueError if the file cannot be read, which shows nothing of it.
    """
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"the token cannot be read from {path} ({why}): give a readable file") from None


@app.command(epilog="Example: sparsegen worker --jobs redis://queue.example:6379")
def worker(
    jobs: Jobs = None,
    once: Annotated[bool, typer.Option("--once", help="End after one job, or if there is none.")] = False,
) -> None:
    """Does the restorations that servers take on: one at a time, on this or any other machine."""
    from sparsegen.service.logs import set_up_logs
    from sparsegen.service.worker import work

    set_up_logs()
    sys.exit(work(jobs, once=once))


class TableName(StrEnum):
    table1 = "table1"
    table2 = "table2"
    table3 = "table3"


@app.command(epilog="Example: sparsegen reproduce table1")
def reproduce(table: Annotated[TableName, typer.Argument(help="Of the paper.")]) -> None:
    """Prints a table of the paper beside what was measured here, at a smaller scale, which it states."""
    from sparsegen.reproduce.tables import TABLES, read_records

    records, show = TABLES[table]
    show(Console(width=max(out.width, 118)), read_records(records))


class Picture(StrEnum):
    atoms = "atoms"
    density = "density"
    samples = "samples"
    tradeoff = "tradeoff"


@app.command(epilog="Example: sparsegen plot density dcgan.baseline dcgan.l0_inf --out density.png")
def plot(
    what: Annotated[
        Picture,
        typer.Argument(
            help="atoms of D1 and D1 D2 (fig. 5), density of Γ1's needles (3b), samples; tradeoff: density against "
            "distance of the runs of table 1 (3a, 6)."
        ),
    ],
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Models, one or several; of tradeoff architectures, all by default."),
    ] = None,
    out_path: Annotated[
        Path | None, typer.Option("--out", help="The .png file; WHAT.png by default.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Draws a picture of what a model has learned."""
    from sparsegen.common.files import atomic_write
    from sparsegen.pictures import images
    from sparsegen.reproduce import plots

    out_path, models = out_path or Path(f"{what}.png"), models or []
    _target(out_path, ".png")
    if what is Picture.tradeoff:
        from sparsegen.reproduce.figures import tradeoff
        from sparsegen.reproduce.tables import TABLES, read_records

        picture = plots.png(tradeoff(read_records(TABLES["table1"][0]), models))
    else:
        if not models:
            raise ValueError(f"{what} wants a model, as dcgan.ml")
        generators = {model: sparsegen.from_pretrained(model) for model in models}
        if what is Picture.samples and len(models) == 1:  # as pixels, without a frame
            picture = images.png(images.grid(generators[models[0]].sample(64, seed)), 2)
        elif what is Picture.samples:
            picture = plots.png(plots.samples(generators, seed=seed))
        elif what is Picture.atoms:
            picture = plots.png(plots.atoms(generators))
        else:
            picture = plots.png(plots.density(generators, seed=seed))
    with atomic_write(out_path) as file:
        file.write_bytes(picture)
    out.print(f"{what}{' of ' * bool(models)}{', '.join(models)} in {out_path}", highlight=False)


@app.command(epilog="Example: sparsegen push runs/ml/best me/my-dcgan --private")
def push(
    model: Model,
    hub_id: Annotated[str, typer.Argument(help="owner/name on the Hub.")],
    private: Annotated[bool, typer.Option(help="Create it private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
) -> None:
    """Pushes a model to the Hugging Face Hub, with its card."""
    from sparsegen.zoo.checkpoint import find_checkpoint, upload

    with err.status(f"pushing {model} to {hub_id}"):
        url = upload(find_checkpoint(model), hub_id, private=private, revision=revision)
    out.print(url, highlight=False)


@app.command(epilog="Example: sparsegen info dcgan.ml")
def info(model: Model) -> None:
    """Shows what a model is: its shape, its classes, its dial, how it was trained and measured."""
    from sparsegen.zoo import noise

    generator = sparsegen.from_pretrained(model)
    classes = enumerate(noise.titles(generator.classes, generator.class_names))
    dictionaries = {
        f"D{level}": " x ".join(map(str, generator.dictionary(level).shape))
        for level in range(1, len(generator.stages) + 1)
    }
    dials = {
        f"k of Γ{dial.level}": f"{dial.k} of {dial.limit} in each {dial.unit}" for dial in generator.dials
    }
    _show(
        {
            "model": generator.spec.name,
            "parameters": f"{sum(p.numel() for p in generator.parameters()):,}",
            "z": generator.z_dim,
            "classes": ", ".join(f"{label} {called}" for label, called in classes) or "none",
            **{f"Γ{level}": " x ".join(map(str, s)) for level, s in enumerate(generator.code_shapes, 1)},
            **dictionaries,
            "D_eff": " x ".join(map(str, generator.effective_dictionary().shape)),
            **(dials or {"k": "no projection"}),
            **{
                f"{part}.{name}": value
                for part in ("training", "evaluation")
                for name, value in generator.config.get(part, {}).items()
            },
            "license": generator.config["license"],
        }
    )


app.add_typer(restoring.app)


def _target(path: Path, *suffixes: str, folder: bool = False, option: str = "--out") -> str:
    """Checks before any work that `path` can be written; returns its suffix, in lower case, "" for a folder.

    A new folder may be called as a model, so that `serve` finds a dcgan.ml; another suffix is a mistake.
    """
    from sparsegen.common.files import check_writable
    from sparsegen.zoo.regularizers import REGULARIZERS

    check_writable(path)
    suffix = path.suffix.lower()
    if suffix in suffixes and not path.is_dir():
        return suffix
    named_as_one = suffix.removeprefix(".") in ("", *REGULARIZERS) and not path.is_file()
    if folder and (path.is_dir() or named_as_one):
        return ""
    or_folder = ", or a folder, its name without a dot or a model's" if folder else ""
    raise ValueError(f"{option} takes {' or '.join(suffixes)}{or_folder}; got {path}")


def _open(data: str, split: str = "train", limit: int | None = None):
    """Opens images with a bar, and says which of them were skipped."""
    from sparsegen.training.data import open_images

    with progress(f"decoding {data}", None) as show:
        return open_images(data, split, limit=limit, progress=lambda done, total: show(done, total=total))


def _open_test(data: str, test: str | None, images, needed: bool):
    """The test images of --test or --data; None if --data has none besides its training images.

    Raises: ValueError if there are none and they are needed.
    """
    from sparsegen.training.sources import NoSplitError

    try:
        found = _open(test) if test else _open(data, split="test")
        if found.fingerprint != images.fingerprint:
            return found
        why = f"those of {data} are its training images"
    except NoSplitError as error:
        why = f"there are none: {error}"
    if needed:
        raise ValueError(f"{REAL} measures test images, and {why}; give some by --test")
    return None


def reference(images, network):
    """The statistics of the features of real images, computed with a bar unless they are in the cache."""
    from sparsegen.training.reference import Reference

    return Reference(network, images, bar=progress).statistics


def _at(spec, k: str | None):
    """A cell of Table 1 at this k; None leaves it open."""
    from sparsegen.zoo.dial import resolve

    return spec if k is None else replace(spec, k=tuple(resolve(parse_k(k), spec.dials)))


def _judge(images, count: int, device: str, discriminator: str | None, progress: Callable[[int, int], None]):
    """Measures the Fréchet distance of a fixed draw, to pick the best checkpoint by.

    The feature network is not the one in the discriminator, if another is of use on these images; else the record says
    that it is not independent.
    """
    from sparsegen.training.evaluation import draw, evaluate
    from sparsegen.training.features import headline_first, named_networks, open_features, second_networks

    names = named_networks("auto") + second_networks(images.fingerprint)
    (name, *_), independent = headline_first(names, discriminator)
    network = open_features(name, device=device)
    real = {network.metric: reference(images, network)}

    def measure(generator) -> dict:
        verdict = evaluate(draw(generator, [network], count, progress=progress), real)
        return {**asdict(verdict), "independent": independent}

    return measure


def _follow(run, interrupted: Callable[[], bool], show: Callable[[int, str], None]) -> None:
    """Trains to the end, or until it is interrupted: then all is saved.

    Raises: SystemExit where it was interrupted.
    """
    main_process, losses = run.accelerator.is_main_process, ""
    for step, metrics in run:
        if metrics:
            losses = "  ".join(f"{name} {loss:.2f}" for name, loss in metrics["losses"].items())
            if main_process and not err.is_terminal:
                pace = _pace(run, metrics)
                err.print(f"step {step} of {run.schedule.steps}  {losses}  {pace}", soft_wrap=True)
        show(step, f"{run.plan.model}  {losses}")
        if run.agree(interrupted()):
            run.save()
            if main_process:
                say(err, f"stopped and saved at step {step}: the same command with --resume goes on")
            sys.exit(130)


def _pace(run, metrics: dict) -> str:
    """How fast a run is, and how long it takes yet at this rate, judging aside."""
    rate = metrics["images_per_second"]
    images = (run.schedule.steps - run.step) * run.batches.whole
    return f"{rate:.0f} images/s  {timedelta(seconds=round(images / rate))} left"


def _show(record: dict) -> None:
    table = Table(show_header=False, box=None)
    for name, value in record.items():
        table.add_row(name, Text(_told(value)))
    out.print(table)


def _told(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_told(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_told, value)) or "none"
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Runs the command line; whatever fails is told in one line, a traceback only on SPARSEGEN_TRACEBACK.

    Exit codes: 2 for bad input and what else is foreseen, 1 for a bug of ours, 130 for Ctrl-C.
    """
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=err, show_time=False, show_path=False)],
    )
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except typer.Abort:
        _fail("interrupted", 130)
    except typer.TyperException as error:
        _fail(error.format_message())
    except Exception as error:
        if os.environ.get("SPARSEGEN_TRACEBACK"):
            raise
        if isinstance(error, FORESEEN):
            _fail(str(error))
        bug = f"{type(error).__name__}: {error}"
        _fail(f"a bug of sparsegen ({bug}); with SPARSEGEN_TRACEBACK=1 it shows where", 1)
    if code == 130:  # as typer tells of Ctrl-C where no command was ready for it
        _fail("interrupted", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"sparsegen: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()

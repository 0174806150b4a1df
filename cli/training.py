"""The commands that train and measure models."""

import sys
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import sparsegen
from sparsegen.cli.console import err, out, progress, say, show_record
from sparsegen.cli.options import Data, Device, K, Seed, check_target, parse_k
from sparsegen.common.devices import AUTO
from sparsegen.common.extras import require
from sparsegen.common.hardware import use_threads
from sparsegen.common.interrupt import stop_on_interrupt

if TYPE_CHECKING:
    from sparsegen.training.run import Run

app = typer.Typer()


class Precision(StrEnum):
    no = "no"
    bf16 = "bf16"


@app.command(epilog="Example: sparsegen train dcgan.ml --data cifar10.parquet --out runs/ml --steps 20000")
def train(
    data: Data,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder of the run.")],
    model: Annotated[
        str | None,
        typer.Argument(
            help="architecture[-atoms].regularizer[.recipe], e.g. dcgan.ml, dcgan-64.l0 or biggan-64.ml.projected "
            "(default: that of --from). Without a recipe in the name, it is the projected recipe for fewer than 5,000 "
            "images, else that of the paper; dcgan.ml.paper names the latter."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of steps (default: the recipe's; 2,000 for fewer than 5,000 images)."
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Side of the square images in pixels: 32, 64 or 128 (default: that of the model's name)."
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of labels of a conditional model, 0 for none (default: that of the data; data without labels "
            "are one class if --from is conditional).",
        ),
    ] = None,
    k: Annotated[
        str | None,
        typer.Option(
            help="Sparsity (k), the non-zeros kept: one number, or one per level, Γ1 first, e.g. 16,32 (default: that "
            "of --from if it has the same regularizer, else the regularizer's)."
        ),
    ] = None,
    seed: Seed = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Images per step, of all processes together (default: the recipe's, at most all images).",
        ),
    ] = None,
    start_from: Annotated[
        str | None, typer.Option("--from", help="Fine-tune this model: a bundled one, a folder or a Hub id.")
    ] = None,
    warm_up: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Steps in which only a new discriminator is trained, if --from has none (default: 500, or 100 for "
            "fewer than 5,000 images; at most a quarter of the run).",
        ),
    ] = None,
    augment: Annotated[
        bool | None,
        typer.Option(
            help="Show the discriminator augmented images, DiffAugment (default: for fewer than 5,000 images)."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,
    precision: Annotated[
        Precision, typer.Option(help="no (float32) or bf16 (mixed precision).")
    ] = Precision.no,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of images read, equal per class (default: all).")
    ] = None,
    share: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of the images used for training, above 0 to 1, equal for each class."
        ),
    ] = 1.0,
    rate: Annotated[
        float,
        typer.Option(help="Factor of the recipe's learning rates; below 1 for careful fine-tuning."),
    ] = 1.0,
    features: Annotated[
        str,
        typer.Option(
            help="Frozen network of the projected recipe: cifar10-classifier, efficientnet-lite0, or auto: that of "
            "--from if it has heads on one, the classifier for the images that it was trained on, else "
            "efficientnet-lite0."
        ),
    ] = "auto",
    eval_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps between evaluations of the distance (default: 2,000, at least five in a run; twenty for fewer "
            "than 5,000 images).",
        ),
    ] = None,
    eval_count: Annotated[
        int, typer.Option(help="Images drawn for an evaluation, at least 2; 0: no evaluation.")
    ] = 2_000,
    patience: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="End after this number of evaluations in a row without a smaller distance, 0: never (default: 5 for "
            "fewer than 5,000 images, else never).",
        ),
    ] = None,
    judge_every: Annotated[int | None, typer.Option(min=1, hidden=True)] = None,
    judge_count: Annotated[int | None, typer.Option(hidden=True)] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    device: Device = AUTO,
    trackers: Annotated[
        str | None,
        typer.Option(
            help="Send measurements and sample grids to tensorboard, wandb or both, separated by a comma; the first "
            "writes to the folder tensorboard of --out (default: none)."
        ),
    ] = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="Use deterministic algorithms only, to repeat a run on a GPU bit for bit. Slower. On a CPU, runs are "
            "repeatable without it.",
        ),
    ] = False,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the generator by torch.compile in the first step; not faster on CPUs.",
        ),
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of torch, per process.")] = None,
) -> None:
    """Trains a model, or fine-tunes one (--from). Ctrl-C saves the run; --resume continues it.

    Several processes, e.g. one per GPU: torchrun --nproc-per-node 2 -m sparsegen train ...
    """
    require("train", "training", "accelerate", "torch")
    from sparsegen.training.plan import checkpoints
    from sparsegen.training.run import KERNEL
    from sparsegen.training.start import TrainConfig, start

    use_threads(threads)
    config = TrainConfig(
        model=model,
        data=data,
        out=out_folder,
        steps=steps,
        image_size=size,
        classes=classes,
        k=parse_k(k),
        seed=seed,
        batch_size=batch_size,
        start_from=start_from,
        warm_up=warm_up,
        augment=augment,
        resume=resume,
        precision=str(precision),
        limit=limit,
        share=share,
        rate=rate,
        features=features,
        eval_every=_renamed("--judge-every", judge_every, "--eval-every", eval_every),
        eval_count=_renamed("--judge-count", judge_count, "--eval-count", eval_count),
        patience=patience,
        save_every=save_every,
        trackers=[name.strip() for name in trackers.split(",")] if trackers else (),
        device=device,
        deterministic=deterministic,
        compiled=compiled,
    )

    def on_evaluation(done: int, count: int) -> None:
        show(run.step, f"{run.plan.model}  evaluation: {done} of {count} images")

    def announce_stop() -> None:
        if shows:
            say(err, "stopping and saving after this step; press Ctrl-C again to stop at once")

    run = start(config, progress, on_evaluation)
    name, total = run.plan.model, run.schedule.steps
    shows = run.accelerator.is_main_process
    with stop_on_interrupt(announce_stop) as interrupted, progress(name, total, run.step, shows) as show:
        try:
            _follow(run, interrupted, show)
        except KeyboardInterrupt:  # the second Ctrl-C, before the checkpoint was saved
            saved = checkpoints(run.folder)
            remedy = (
                f"--resume continues from step {int(saved[-1].name)}" if saved else "there is no checkpoint"
            )
            say(err, f"interrupted at step {run.step} and not saved: {remedy}")
            sys.exit(130)
    if run.stopped:
        if shows:
            say(err, f"stopped and saved at step {run.step}: the same command with --resume continues")
        sys.exit(130)
    if not shows:
        return
    if run.ended_early:
        say(
            err,
            f"ended at step {run.step} of {total}: no smaller distance in {run.schedule.patience} evaluations "
            f"(--resume --patience 0 goes on)",
        )
    if run.best:
        figure = f"{run.best['metric']} {run.best['distance']:.2f}"
        if KERNEL in run.best:  # which selected it
            figure = f"kernel distance {run.best[KERNEL]:.3f} ({figure})"
        found = f"the best model, {figure} at step {run.best['step']}, is {out_folder / 'best'}"
        if run.best["step"] == 0:
            found += "; it is the starting model, because no later one was nearer to the images"
    else:
        found = f"the model is {checkpoints(run.folder)[-1]}"
    say(out, f"{name} trained for {run.step} steps: {found}")


def _renamed(old: str, old_value: int | None, new: str, value: int | None) -> Any:
    """Returns the value of an option that may still be given by its old name, with a warning."""
    if old_value is None:
        return value
    say(err, f"{old} is deprecated and will be removed in the next version: use {new}")
    return old_value


def _follow(run: "Run", interrupted: Callable[[], bool], show: Callable[..., object]) -> None:
    """Trains and shows the losses in the progress bar, or without a terminal in one line per measurement."""
    losses = ""
    for step, metrics in run.until(interrupted):
        if metrics:
            losses = "  ".join(f"{name} {loss:.2f}" for name, loss in metrics["losses"].items())
            if run.accelerator.is_main_process and not err.is_terminal:
                pace = _pace(run, metrics)
                say(err, f"step {step} of {run.schedule.steps}  {losses}  {pace}")
        show(step, f"{run.plan.model}  {losses}")


def _pace(run: "Run", metrics: dict[str, Any]) -> str:
    """Returns the speed of a run and the time left; evaluations come on top."""
    rate = metrics["images_per_second"]
    images = (run.schedule.steps - run.step) * run.batches.batch_size
    return f"{rate:.0f} images/s  {timedelta(seconds=round(images / rate))} of training left"


@app.command(epilog="Example: sparsegen evaluate dcgan.ml --data cifar10 --neighbors near.png")
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A bundled model, a checkpoint folder, or owner/name on the Hub; or the word real, which measures the "
            "test images for comparison."
        ),
    ],
    data: Data,
    test: Annotated[
        str | None, typer.Option(help="Real test images (default: the split `test` of --data).")
    ] = None,
    count: Annotated[
        int, typer.Option(help="Number of images measured; compare only figures of equal counts.")
    ] = 10_000,
    seed: Seed = 0,
    k: K = None,
    features: Annotated[
        str,
        typer.Option(
            help="Feature networks, separated by commas: inception (FID), efficientnet-lite0, cifar10-classifier; or "
            "auto: inception if its weights are on this machine, else efficientnet-lite0, and on CIFAR-10 also the "
            "classifier. The headline figure is that of the first network that was not in the model's discriminator."
        ),
    ] = "auto",
    weights: Annotated[
        Path | None, typer.Option(help="File of Inception's weights (default: torch.hub's folder).")
    ] = None,
    size: Annotated[
        int, typer.Option(help="Side of the real images in pixels, if MODEL is the word real.")
    ] = 32,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Measure distances only: no class accuracy, precision, recall and memorization."
        ),
    ] = False,
    neighbors: Annotated[
        Path | None,
        typer.Option(
            "--neighbors",
            "--neighbours",
            help="Write the first 16 samples with their nearest training images to a .png file.",
        ),
    ] = None,
    out_path: Annotated[Path | None, typer.Option("--out", help="Write the figures to a .json file.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write the figures to the config.json of the checkpoint folder.")
    ] = False,
    device: Device = AUTO,
) -> None:
    """Measures a model against real images: Fréchet distances, class accuracy of conditional samples, precision and
    recall, memorization; also the density of its codes and its speed.

    The first run takes longer, because the features of the real images are computed and cached.
    """
    from sparsegen.common.files import atomic_write, check_writable, write_json

    require("train", "an evaluation", "torch", "torchvision")
    from sparsegen.pictures import images
    from sparsegen.training.measure import REAL, MeasureConfig, measure
    from sparsegen.training.quality import neighbor_picture
    from sparsegen.zoo.bundled import CONFIG

    is_real = model == REAL
    use_threads()
    config = MeasureConfig(data, test, count, seed, features, weights, size, quick, device)
    if out_path:
        check_writable(out_path)
        if out_path.is_dir():
            raise IsADirectoryError(f"--out must be a JSON file; {out_path} is a folder")
    if neighbors:
        check_target(neighbors, ".png", option="--neighbors")
    if is_real and (record or k):
        raise ValueError(
            f"{REAL} measures the test images, not a model: omit --record and --k, or give ./{REAL} for a folder of "
            f"this name"
        )
    if record:
        if not Path(model).is_dir():
            raise ValueError(f"--record needs the folder of a checkpoint; {model} is not a folder")
        check_writable(Path(model) / CONFIG)
    generator = None if is_real else sparsegen.from_pretrained(model, device=device)
    if generator:
        trained = generator.k_ranges
        generator.set_k(parse_k(k))
        if record and generator.k_ranges != trained:
            raise ValueError("--record needs the k of the checkpoint: omit --k, or --record")
    found = measure(generator, config, model, progress)
    for remark in found.remarks:
        say(err, remark)
    show_record({"model": model, **found.figures})
    if neighbors:
        with atomic_write(neighbors) as file:
            file.write_bytes(images.png(neighbor_picture(found.samples, found.reference), 2))
    if out_path:
        write_json(out_path, {"model": model, **found.figures})
    if record and generator:
        write_json(Path(model) / CONFIG, {**generator.config, "evaluation": found.figures})

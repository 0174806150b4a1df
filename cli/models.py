"""The commands on trained models: list, info, sample, export, push."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

import sparsegen
from sparsegen.cli.console import err, out, progress, say, show_record
from sparsegen.cli.options import Device, K, Model, Seed, check_target, parse_k, parse_labels
from sparsegen.common.devices import AUTO, find_device
from sparsegen.common.extras import is_installed, require
from sparsegen.common.hardware import processors, use_threads

if TYPE_CHECKING:
    from sparsegen.export.runtime import OnnxSampler
    from sparsegen.zoo.generator import Generator

app = typer.Typer()


@app.command(name="list", epilog="Example: sparsegen list 'dcgan*'")
def list_models(
    pattern: Annotated[str, typer.Argument(help="Shell pattern, e.g. dcgan* (default: all).")] = "*",
    plain: Annotated[bool, typer.Option("--plain", help="Print only the names.")] = False,
) -> None:
    """Lists the bundled models: a table on a terminal, names only in a pipe."""
    names = sparsegen.list_models(pattern)
    if not names:
        raise ValueError(
            f"no bundled model matches {pattern!r}; there are {', '.join(sparsegen.list_models()) or 'none'}"
        )
    if plain or not out.is_terminal:
        print(*names, sep="\n")
        return
    from sparsegen.zoo.bundled import MODELS
    from sparsegen.zoo.config import read_entries

    facts = {name: _summary(read_entries(MODELS / name)) for name in names}
    columns = list(next(iter(facts.values())))
    found = {column: {about[column] for about in facts.values()} - {"-"} for column in COMMON}
    same = {column: values.pop() for column, values in found.items() if len(values) == 1}
    table = Table(Column("model", no_wrap=True), box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        if column not in same:
            # On a narrow terminal a cell has several lines; nothing is cut off.
            table.add_column(column, overflow="fold")
    for name, about in facts.items():
        table.add_row(name, *(about[column] for column in columns if column not in same))
    out.print(table)
    for column, value in same.items():
        out.print(f"{column}: {value}{COMMON[column]}", style="dim")


# Columns printed once below the table, with a unit or remark, if all models have the same value.
COMMON = {"size": " pixels", "trained on": "", "distance by": ", lower is better", "license": ""}


def _summary(config: dict[str, Any]) -> dict[str, str]:
    """Returns the row of a bundled model in the table, by column."""
    training, evaluation = config.get("training", {}), config.get("evaluation", {})
    return {
        "size": str(config["image_size"]),
        "classes": str(config["classes"] or "-"),
        "atoms": str(config["atoms"]),
        "k": ", ".join(map(str, config["k"])) or "-",
        "steps": f"{training['steps']:,}" if training else "-",
        "distance": f"{evaluation['distance']:.1f}" if evaluation else "-",
        "density": ", ".join(f"{share:.2f}" for share in evaluation.get("density", ())) or "-",
        "trained on": str(training.get("data", "-")),
        "distance by": evaluation.get("metric", "-"),
        "license": config.get("license", "-"),
    }


@app.command(epilog="Example: sparsegen info dcgan.ml")
def info(model: Model) -> None:
    """Shows the shape, classes, range of k, training and evaluation of a model, and the device that `auto` is here."""
    from sparsegen.zoo import noise

    generator = sparsegen.from_pretrained(model)
    classes = enumerate(noise.titles(generator.classes, generator.class_names))
    dictionaries = {
        f"D{level}": " x ".join(map(str, generator.dictionary(level).shape))
        for level in range(1, len(generator.stages) + 1)
    }
    k_ranges = {
        f"k of Γ{k_range.level}": f"{k_range.k} of {k_range.limit} in each {k_range.unit}"
        for k_range in generator.k_ranges
    }
    show_record(
        {
            "model": generator.spec.name,
            "parameters": f"{sum(p.numel() for p in generator.parameters()):,}",
            "z": generator.z_dim,
            "classes": ", ".join(f"{label} {called}" for label, called in classes) or "none",
            **{f"Γ{level}": " x ".join(map(str, s)) for level, s in enumerate(generator.code_shapes, 1)},
            **dictionaries,
            "D_eff": " x ".join(map(str, generator.effective_dictionary().shape)),
            **(k_ranges or {"k": "no projection"}),
            **{
                f"{part}.{name}": value
                for part in ("training", "evaluation")
                for name, value in generator.config.get(part, {}).items()
            },
            "license": generator.config.get("license", "not recorded"),
            "device": f"PyTorch {find_device()}, ONNX {_provider()}",
        }
    )


def _provider() -> str:
    try:
        from sparsegen.export.runtime import cpu_reason, expected_provider
    except ImportError:
        return "no onnxruntime"
    reason = cpu_reason()
    return expected_provider() + (f": {reason}" if reason else "")


@app.command(epilog="Example: sparsegen sample dcgan.ml --count 16 --seed 7 --k 16 --out grid.png")
def sample(
    model: Model,
    count: Annotated[
        int | None, typer.Option(help="Number of images (default: 16, or the number of --labels).")
    ] = None,
    seed: Seed = 0,
    k: K = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Classes of a conditional model, one for all images or one per image, by number or name, e.g. cat or "
            "3,5,dog (default: random). `sparsegen info` lists them."
        ),
    ] = None,
    truncation: Annotated[
        float | None,
        typer.Option(
            help="Bound of the truncated normal distribution of z, at least 0.05 (default: no truncation)."
        ),
    ] = None,
    out_path: Annotated[
        Path,
        typer.Option(
            "--out",
            help="A .png file for a grid, a .npy file for an array, or a folder for one PNG per image.",
        ),
    ] = Path("samples.png"),
    scale: Annotated[
        int, typer.Option(min=1, max=16, help="Factor by which the pictures of a grid are enlarged.")
    ] = 2,
    device: Device = AUTO,
) -> None:
    """Draws images from a model, by PyTorch; by onnxruntime where only that is installed, and from an .onnx file."""
    import numpy as np

    from sparsegen.common.files import atomic_write
    from sparsegen.pictures import images
    from sparsegen.zoo import noise

    if count is not None:
        noise.check_count(count)
    noise.check_seed(seed)
    suffix = check_target(out_path, ".png", ".npy", folder=True)
    generator: Generator | OnnxSampler
    if model.endswith(".onnx") or (
        is_installed("onnxruntime", "onnxruntime-gpu") and not is_installed("torch")
    ):
        generator = sparsegen.open_sampler(model, processors(), device=device)
    else:
        require("torch", "sampling", "torch")
        use_threads()
        generator = sparsegen.from_pretrained(model, device=device)
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
    say(out, f"{count} images of {model} in {out_path}")


@app.command(epilog="Example: sparsegen export dcgan.ml --out dcgan-ml.onnx --synthesis")
def export(
    model: Model,
    out_path: Annotated[
        Path,
        typer.Option(
            "--out",
            help="An .onnx file, an .html file for a page that draws the images in the browser, a .pt2 file for "
            "PyTorch without sparsegen, or a folder for a model that `serve` can load.",
        ),
    ],
    synthesis: Annotated[bool, typer.Option(help="Also write the graph from Γ1 to the image.")] = False,
    encoding: Annotated[
        bool, typer.Option("--encoding", help="Also write the graph that finds the code of an image.")
    ] = False,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain", help="Write projections as standard operators, for readers without ONNX functions."
        ),
    ] = False,
    half: Annotated[
        bool,
        typer.Option(
            "--half", help="Write the weights in half precision: half the size, computed in float32."
        ),
    ] = False,
    discriminator: Annotated[
        bool, typer.Option(help="Also write the discriminator (and encoder) to the folder, for fine-tuning.")
    ] = False,
    license_id: Annotated[
        str | None,
        typer.Option(
            "--license", help="License of the weights, e.g. mit (default: that of the model, if any)."
        ),
    ] = None,
    web: Annotated[
        bool, typer.Option("--web", help="Write the page as a folder of files for a web server.")
    ] = False,
) -> None:
    """Writes a model with k as an input, as ONNX or a program of torch.export, and verifies that it agrees with torch.

    A folder holds the weights in half precision and three small graphs that read them. An .html file contains the model
    and everything that runs it, and opens in a browser without a server and without a network.
    """
    require("export", "an export", "torch", "onnx", "onnxscript", "onnxruntime")
    from sparsegen.export.folder import export_folder
    from sparsegen.export.onnx_file import STEPS, export_onnx
    from sparsegen.export.program import export_program
    from sparsegen.export.web.page import check_folder, export_web
    from sparsegen.zoo.checkpoint import find_checkpoint, from_pretrained

    suffix = check_target(out_path, ".onnx", ".pt2", ".html", folder=True)
    if web:
        if suffix not in ("", ".html"):
            raise ValueError(
                f"--web writes a page, and {out_path} is a {suffix} file: give an .html file or a folder"
            )
        given = {"--synthesis": synthesis, "--encoding": encoding, "--discriminator": discriminator}
        if unused := next((option for option, value in given.items() if value), None):
            raise ValueError(f"a page takes no {unused}: omit {unused}, the page contains all that it needs")
        if not suffix:
            check_folder(out_path)
    if suffix and discriminator:
        raise ValueError(f"--discriminator needs a folder, and {out_path} is a file: give a folder as --out")
    only_files = {"--synthesis": synthesis and suffix, "--encoding": encoding and suffix}
    for option, value in (only_files | {"--plain": plain, "--half": half}).items():
        if value and suffix != ".onnx":
            raise ValueError(
                f"{option} needs an .onnx file, and {out_path} is {f'a {suffix} file' if suffix else 'a folder'}: omit "
                f"{option}, or give an .onnx file as --out"
            )
    source = find_checkpoint(model, auxiliary=discriminator)
    with progress(model, STEPS) as show:

        def report(done: int, what: str) -> None:
            show(done, f"{model}: {what}")

        if suffix or web:
            generator = from_pretrained(source)
            generator.config |= {"license": license_id} if license_id else {}
        if web or suffix == ".html":
            parity = export_web(generator, out_path, progress=report)
        elif suffix == ".onnx":
            parity = export_onnx(
                generator,
                out_path,
                synthesis=synthesis,
                encoding=encoding,
                plain=plain,
                half=half,
                progress=report,
            )
        elif suffix == ".pt2":
            parity = export_program(generator, out_path, progress=report)
        else:
            parity = export_folder(source, out_path, discriminator, report, license_id)
    say(out, f"{model} in {parity.path}")
    difference, compared = f"{parity.max_difference:.1e}", f"{parity.samples} samples"
    say(
        out,
        f"verified against torch: largest difference {difference} in {compared} with {len(parity.k)} settings of k",
    )
    if parity.swapped:
        say(
            out,
            f"{parity.swapped} of {parity.units} selections keep another entry of equal magnitude, up to rounding",
        )
    if half:
        say(
            out,
            f"{parity.rounded} weights were rounded to half precision"
            if parity.rounded
            else "half precision without a loss: all weights were half-precision numbers already",
        )
    if web or suffix == ".html":
        say(out, "open the file in a browser" if suffix else f"a server: python -m http.server -d {out_path}")
    elif suffix == ".pt2":
        say(out, f'without sparsegen: torch.export.load("{out_path}").module()')
    elif suffix:
        say(out, f'without torch: sparsegen.open_sampler("{out_path}").sample(16)')
    else:
        say(out, f"as a server: sparsegen serve --models {out_path.parent}")


@app.command(epilog="Example: sparsegen push runs/ml/best me/my-dcgan --private --license mit")
def push(
    model: Model,
    repo_id: Annotated[
        str, typer.Argument(help="Repository on the Hub: owner/name, or a name in your own namespace.")
    ],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Visibility (default: that of an existing repository, else the owner's default).",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch to push to, created if necessary (default: main).")
    ] = None,
    license_id: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="License of the weights, e.g. mit (default: that of the model or the existing card).",
        ),
    ] = None,
    onnx: Annotated[bool, typer.Option(help="Also export, verify and push the ONNX files.")] = True,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")] = False,
    message: Annotated[
        str, typer.Option(help="First line of the message of the commit.")
    ] = "Upload a sparsegen model",
) -> None:
    """Pushes a model to the Hugging Face Hub, as one commit: weights, config, ONNX files, and a card with pictures.

    Files of an earlier push are replaced. Your own text in the card is kept.
    """
    if onnx:
        require("export", "a push with ONNX files", "torch", "onnx", "onnxscript", "onnxruntime")
    from sparsegen.zoo.checkpoint import find_checkpoint, upload

    with err.status(Text(f"pushing {model} to {repo_id}")):
        url = upload(
            find_checkpoint(model, auxiliary=True),
            repo_id,
            private=private,
            revision=revision,
            license=license_id,
            onnx=onnx,
            create_pr=create_pr,
            commit_message=message,
        )
    say(out, url)

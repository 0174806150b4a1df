"""The command that finds the sparse codes of pictures: encode."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

import sparsegen
from sparsegen.cli.console import err, out, progress, say
from sparsegen.cli.options import Device, K, check_target, parse_k
from sparsegen.common.devices import AUTO
from sparsegen.common.extras import require
from sparsegen.common.hardware import use_threads
from sparsegen.common.text import escape_controls

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
COLUMNS = 8  # of the comparison

app = typer.Typer()


@app.command(
    epilog="Example: sparsegen encode pictures/ --model dcgan.ml --out codes.npz --compare grid.png --k 16"
)
def encode(
    pictures: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    model: Annotated[
        str, typer.Option(help="A bundled model, a checkpoint folder, or owner/name[@revision] on the Hub.")
    ],
    out_path: Annotated[
        Path,
        typer.Option(
            "--out", help="A .npz file: gamma1, gamma2 (the codes), reconstruction, psnr, names, model, k."
        ),
    ] = Path("codes.npz"),
    compare: Annotated[
        Path | None, typer.Option(help="A .png file: the pictures, and below each its reconstruction.")
    ] = None,
    k: K = None,
    level: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The code that is searched, counted from the image (default: the highest projected one).",
        ),
    ] = None,
    iterations: Annotated[int, typer.Option(min=1, help="Steps of the search.")] = 300,
    device: Device = AUTO,
) -> None:
    """Finds the sparse codes of pictures under the dictionaries of a model, and shows how near they come.

    The center square of a picture is resized to the size of the model.
    """
    require("torch", "encoding", "torch")
    import numpy as np

    from sparsegen.common.files import atomic_write
    from sparsegen.pictures import images

    check_target(out_path, ".npz")
    if compare:
        check_target(compare, ".png", option="--compare")
    paths = _files(pictures)
    use_threads()
    generator = sparsegen.from_pretrained(model, device=device)
    used = [k_range.k for k_range in generator.view(parse_k(k)).k_ranges]
    pixels = _read(paths, generator.image_size)
    with progress(model, len(paths)) as show:
        encoding = generator.encode(pixels, parse_k(k), level, iterations, progress=show)
    codes = {f"gamma{index}": code.numpy() for index, code in enumerate(encoding.codes, 1)}
    with atomic_write(out_path) as file, file.open("wb") as stream:
        arrays: dict[str, Any] = {
            **codes,
            "reconstruction": encoding.reconstruction,
            "psnr": encoding.psnr,
            "names": np.array([path.name for path in paths]),
            "model": np.array(model),
            "k": np.array(used),
        }
        np.savez_compressed(stream, **arrays)
    if compare:
        rows = [
            part[first : first + COLUMNS]
            for first in range(0, len(pixels), COLUMNS)
            for part in (pixels, encoding.reconstruction)
        ]
        white = np.full_like(pixels[:1], 255)
        width = min(COLUMNS, len(pixels))
        padded = [np.concatenate([row, *[white] * (width - len(row))]) for row in rows]
        with atomic_write(compare) as file:
            file.write_bytes(images.png(images.grid(np.concatenate(padded), width), 2))
    table = Table(Column("picture", overflow="fold"), Column("PSNR in dB", justify="right"), box=None)
    for path, psnr in zip(paths, encoding.psnr, strict=True):
        table.add_row(Text(escape_controls(path.name)), f"{psnr:.2f}")
    out.print(table)
    shares = ", ".join(
        f"{np.count_nonzero(code) / len(code):,.0f} non-zeros in Γ{level}"
        for level, code in enumerate(codes.values(), 1)
    )
    say(out, f"mean {encoding.psnr.mean():.2f} dB, with {shares} per picture; {out_path}")


def _files(pictures: Sequence[Path]) -> list[Path]:
    """Returns the image files, those of folders by name.

    Raises:
        FileNotFoundError, ValueError: If one does not exist, or a folder has none.
    """
    found: list[Path] = []
    for path in pictures:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: give image files or folders of them")
        inside = (
            sorted(each for each in path.iterdir() if each.suffix.lower() in SUFFIXES)
            if path.is_dir()
            else [path]
        )
        if not inside:
            raise ValueError(f"{path} has no image files ({' '.join(SUFFIXES)})")
        found += inside
    return found


def _read(paths: Sequence[Path], side: int) -> "np.ndarray":
    """Reads the center squares as uint8 (B, side, side, 3), with a notice if they were resized.

    Raises:
        ValueError: Naming the file that cannot be read.
    """
    import numpy as np

    from sparsegen.pictures.squares import decode

    pixels, resized = [], 0
    for path in paths:
        try:
            square, changed = decode(path.read_bytes(), side)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        pixels.append(square.transpose(1, 2, 0))
        resized += changed
    if resized:
        say(
            err,
            f"pictures cropped to a square and resized to {side} x {side} pixels: {resized} of {len(paths)}",
        )
    return np.ascontiguousarray(np.stack(pixels))

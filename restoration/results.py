"""Files written by a restoration: the result, previews, the history, a comparison."""

import tempfile
from collections.abc import Callable, Sequence
from math import inf, isfinite
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sparsegen.common.files import atomic_write
from sparsegen.pictures import figures, images
from sparsegen.pictures.picture import Picture, from_array, write_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sparsegen.restoration.restore import Restoration, TaskProgress
    from sparsegen.restoration.tiles import TiledProgress

    AnyProgress = TaskProgress | TiledProgress

PREVIEW_EVERY = 5.0  # seconds
PREVIEW_SHARE = 0.05  # maximum share of the time
SHEET = 384  # pixels; pictures of a comparison are enlarged to at most this side


class Preview:
    """A file with the result so far, which exists only during the work."""

    def __init__(self, path: Path, note: Callable[[str], object]) -> None:
        self.path, self.note, self.due, self.written = path, note, -inf, False

    def show(self, progress: "AnyProgress") -> None:
        """Writes the preview every `PREVIEW_EVERY` seconds; a failure to write it does not stop the work."""
        started = monotonic()
        if started < self.due:
            return
        self.written = True  # before writing, which a second Ctrl-C may interrupt
        try:
            write_picture(self.path, progress.picture())
        except (OSError, ValueError) as error:
            self.note(f"no more previews will be written: {error}")
            self.due = inf
            return
        self.due = started + max(PREVIEW_EVERY, (monotonic() - started) / PREVIEW_SHARE)

    def remove(self) -> None:
        if self.written:
            self.path.unlink(missing_ok=True)


def save(path: Path, picture: Picture) -> tuple[Path, list[str]]:
    """Writes a result; if this fails, writes it to a temporary folder, since it may have taken an hour.

    The temporary file is a PNG, or an array (H, W, C) in [0, 1] if the encoder has failed.

    Returns: The path, and a list of errors.  Raises: OSError if neither could be written.
    """
    try:
        write_picture(path, picture)
        return path, []
    except Exception as error:  # any error, since the result must not be lost
        problem, suffix = str(error), ".png" if isinstance(error, OSError) else ".npy"
    try:
        place = Path(tempfile.mkdtemp(prefix="sparsegen-")) / f"{path.stem}{suffix}"
        if suffix == ".png":
            write_picture(place, picture)
        else:
            np.save(place, picture.pixels)
    except OSError as error:
        raise OSError(
            f"{problem}; it could not be kept in the system's temporary folder either: {error}"
        ) from error
    return place, [f"{problem}; the restored picture is kept in {place}"]


def write_history(path: Path, outcome: "Restoration[Picture]") -> None:
    """Writes the rows of a history as a .csv table, or its statistic as a .png plot."""
    if path.suffix.lower() == ".png":
        _write_bytes(path, figures.png(stop_curve(outcome.history, outcome.best_iteration)))
        return
    levels = outcome.history["density"].shape[1]
    lines = [
        ",".join(["iteration", "loss", "statistic", *(f"density_{level + 1}" for level in range(levels))])
    ]
    for iteration, loss, statistic, density in outcome.history.tolist():
        values = (loss, statistic, *density)
        lines.append(
            ",".join([str(iteration), *(f"{value:.7g}" if isfinite(value) else "" for value in values)])
        )
    _write_bytes(path, "\n".join([*lines, ""]).encode())


def stop_curve(history: np.ndarray, best_iteration: int) -> "Figure":
    """Plots the statistic of the stopping rule, or without a rule the loss.

    Args:
        history: As in `Restoration`.
        best_iteration: The iteration of the result.
    """
    has_rule = np.isfinite(history["statistic"]).any()
    values = history["statistic" if has_rule else "loss"]
    figure = figures.figure(6, 3.2)
    axes = figure.subplots()
    axes.plot(history["iteration"], values, marker="." if len(values) < 20 else None)
    axes.axvline(best_iteration, color="black", linestyle="--", label=f"result: iteration {best_iteration}")
    values = values[np.isfinite(values)]
    if len(values) and (values > 0).all():
        axes.set_yscale("log")  # the first values are many times the last ones
    axes.set(xlabel="iteration", ylabel="stop statistic" if has_rule else "loss")
    axes.legend(fontsize=9)
    return figure


def enlarged(picture: Picture, like: Picture) -> Picture:
    """Enlarges a picture bicubically to the size of another."""
    height, width, channels = like.pixels.shape
    if picture.pixels.shape == like.pixels.shape:
        return picture
    planes = [
        Image.fromarray(picture.pixels[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
        for channel in range(channels)
    ]
    pixels = np.clip(np.stack([np.asarray(plane) for plane in planes], axis=2), 0, 1)
    return from_array(pixels, max_pixels=height * width)


def write_side_by_side(path: Path, pictures: Sequence[Picture]) -> None:
    """Writes a PNG of pictures of equal size side by side, without alpha; small ones are enlarged."""
    pixels = np.stack([np.rint(picture.pixels * 255).astype(np.uint8) for picture in pictures])
    sheet = images.grid(np.broadcast_to(pixels, (*pixels.shape[:3], 3)), len(pictures))
    _write_bytes(path, images.png(sheet, max(1, SHEET // max(pixels.shape[1:3]))))


def measures(before: Picture, after: Picture, clean: Picture) -> str:
    """PSNR and SSIM (Wang et al., 2004) to the clean picture, before and after."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    pair = before.pixels, after.pixels
    with np.errstate(divide="ignore"):  # the PSNR of equal pictures is infinite
        psnr = [peak_signal_noise_ratio(clean.pixels, pixels, data_range=1) for pixels in pair]
    ssim = [structural_similarity(clean.pixels, pixels, data_range=1, channel_axis=2) for pixels in pair]
    return "PSNR {:.2f} -> {:.2f} dB, SSIM {:.3f} -> {:.3f}".format(*psnr, *ssim)


def _write_bytes(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write_bytes(content)

"""How well JPEG compression is undone: PSNR, SSIM and processor seconds, against total variation and BM3D.

    pip install bm3d
    python -m benchmarks.jpeg --images FOLDER

Central crops of 128 x 128 pixels in color, with 4:2:0 chroma subsampling, the default of Pillow. The classics get the
best of several strengths for each picture, chosen with the original; `dejpeg` has no parameter. "Filter" is our
collaborative filter with the strength that `dejpeg` derives from the file, without the cells. Writes one line per
picture and quality to records/jpeg.jsonl; existing lines are skipped. Without bm3d, its column stays empty.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from time import process_time
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import structural_similarity
from skimage.restoration import denoise_tv_chambolle

import sparsegen
from benchmarks.machine import circumstances
from sparsegen.common.extras import is_installed
from sparsegen.common.files import append_line, read_lines
from sparsegen.pictures.reading import read_picture
from sparsegen.restoration.collaborative import estimates
from sparsegen.restoration.operators import Jpeg

RECORDS = Path(__file__).parent / "records" / "jpeg.jsonl"
QUALITIES, SIDE = (10, 20, 40), 128
WEIGHTS = (0.02, 0.04, 0.06, 0.08, 0.1)  # of total variation
SIGMAS = (5, 10, 15, 20, 25, 30)  # of BM3D, in gray levels

Pixels = NDArray[np.float32]  # (H, W, 3) in [0, 1]


def main(
    images: Annotated[Path, typer.Option(help="A folder of .png files.")],
    records: Annotated[Path, typer.Option()] = RECORDS,
) -> None:
    """Measures the pictures and qualities without a record."""
    torch.set_num_threads(1)
    for path in sorted(images.glob("*.png")):
        original = crop(path)
        for quality in QUALITIES:
            about = {"image": path.stem, "quality": quality}
            if any(all(line[key] == about[key] for key in about) for line in read_lines(records)):
                continue
            methods = dict(candidates(original, quality))
            append_line(records, about | {"methods": methods} | circumstances())


def crop(path: Path) -> NDArray[np.uint8]:
    """The center of a picture.  Shape: uint8 (SIDE, SIDE, 3)."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    top, left = ((side - SIDE) // 2 for side in pixels.shape[:2])
    return pixels[top : top + SIDE, left : left + SIDE]


def candidates(original: NDArray[np.uint8], quality: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields the name of a method and its figures."""
    buffer = io.BytesIO()
    Image.fromarray(original).save(buffer, "JPEG", quality=quality)
    picture, truth = read_picture(buffer.getvalue(), cells=True), original / np.float32(255)
    decoded, cells = picture.pixels, picture.cells
    assert cells is not None
    operator, sigma = Jpeg(cells), np.float32(cells.sigma / 255)

    def filtered() -> Pixels:
        *_, last = estimates(decoded, sigma, 1)
        return last.image

    def ours() -> Pixels:
        return sparsegen.restore(decoded, operator, preset="quick").image

    yield "JPEG", figures(lambda: decoded, truth)
    tv = [figures(lambda w=w: denoise_tv_chambolle(decoded, w, channel_axis=2), truth) for w in WEIGHTS]
    yield "TV", max(tv, key=lambda found: found["psnr"])
    if is_installed("bm3d"):
        from bm3d import bm3d_rgb

        found = [figures(lambda s=s: bm3d_rgb(decoded, s / 255), truth) for s in SIGMAS]
        yield "BM3D", max(found, key=lambda found: found["psnr"])
    ours()  # compiles
    yield "filter", figures(filtered, truth)
    yield "dejpeg", figures(ours, truth)


def figures(method: Callable[[], Pixels], truth: Pixels) -> dict[str, float]:
    """PSNR, SSIM and processor seconds of a method."""
    began = process_time()
    image = np.clip(method(), 0, 1)
    seconds = process_time() - began
    psnr = -10 * np.log10(np.square(image - truth).mean())
    ssim = structural_similarity(image, truth, channel_axis=2, data_range=1)
    return {"psnr": round(float(psnr), 3), "ssim": round(float(ssim), 4), "seconds": round(seconds, 3)}


if __name__ == "__main__":
    typer.run(main)

"""What a JPEG file says about the picture before compression: an interval for each coefficient of its blocks.

An encoder divides the cosine coefficients of the blocks of 8 x 8 pixels by a table and rounds them (ITU-T T.81). So
each coefficient of the picture was within half a step of the stored one. Does not import torch.
"""

import io
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sparsegen.common.extras import require
from sparsegen.pictures.orientation import orientation_of, stored, upright

BLOCK = 8
TO_YCBCR = np.array([  # of JFIF: ITU-R BT.601, full range
    [0.299, 0.587, 0.114],
    [-0.168735892, -0.331264108, 0.5],
    [0.5, -0.418687589, -0.081312411],
])  # fmt: skip
SPACES = {"JCS_GRAYSCALE": 1, "JCS_YCbCr": 3}  # of libjpeg, and their channels


@dataclass(frozen=True, eq=False)
class Component:
    """The stored coefficients of one component (Y, Cb or Cr).

    Attributes:
        coefficients: int16, in steps of the table.
        table: The steps, in gray levels.
        down, across: Pixels of the picture along a side that one pixel of the component is the mean of.

    Shape: coefficients (rows of blocks, blocks, 8, 8), table (8, 8).
    """

    coefficients: NDArray[np.int16]
    table: NDArray[np.uint16]
    down: int
    across: int

    def project(self, plane: NDArray[np.float64], width: float) -> NDArray[np.float64]:
        """Moves a plane in gray levels to the nearest one with all coefficients in `width` of their intervals.

        Shape: (H, W) of the picture, the same as the result.
        """
        small = _means(plane, self.down, self.across)
        rows, columns = self.coefficients.shape[:2]
        height, length = small.shape
        size = rows * BLOCK, columns * BLOCK
        padded = np.pad(small, ((0, size[0] - height), (0, size[1] - length)), "edge")
        matrix = cosines()
        blocks = padded.reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2)
        values = matrix @ (blocks - 128) @ matrix.T
        middle, half = self.coefficients * self.table.astype(float), width / 2 * self.table
        moved = np.clip(values, middle - half, middle + half) - values
        change = (matrix.T @ moved @ matrix).swapaxes(1, 2).reshape(size)[:height, :length]
        full = np.repeat(np.repeat(change, self.down, 0), self.across, 1)
        return plane + full[: plane.shape[0], : plane.shape[1]]


@dataclass(frozen=True, eq=False)
class Cells:
    """The set of pictures that a JPEG file may have been made of.

    Attributes:
        shape: Height and width of the upright picture.
        orientation: The EXIF orientation of the file, 1 to 8.
    """

    components: tuple[Component, ...]
    shape: tuple[int, int]
    orientation: int = 1

    @property
    def sigma(self) -> float:
        """The standard deviation of Gaussian noise that is removed best together with the projection, in gray levels.

        Fitted to the nine pictures of the paper at the qualities 10, 20 and 40; it depends on the steps of the lowest
        frequencies, whose errors are uniform.
        """
        steps = self.components[0].table[:3, :3].astype(float)
        return float(4.6 * np.sqrt(np.square(steps).mean() / 12) ** 0.615)

    def project(self, image: NDArray[np.float32], width: float = 1.0) -> NDArray[np.float32]:
        """Moves an upright image to the nearest one that the file may have been made of.

        Blocks beyond the right and lower border are filled by repeating the last pixels, as encoders do; there, the
        result is only approximately in the cells.

        Args:
            width: Share of each interval that is allowed, above 0 to 1; the middle is the stored coefficient.

        Shape: (H, W, C) in [0, 1], C = 1 or 3; the result may exceed this range.

        Raises:
            ValueError: On another shape.
        """
        channels = len(self.components)
        if image.shape != (*self.shape, channels):
            raise ValueError(
                f"the image must have the shape {(*self.shape, channels)}, that of the JPEG file; got {image.shape}"
            )
        planes = 255.0 * stored(image, self.orientation)
        mixed = planes if channels == 1 else planes @ TO_YCBCR.T + np.array([0, 128, 128])
        moved = [
            component.project(mixed[..., index], width) for index, component in enumerate(self.components)
        ]
        result = np.stack(moved, -1)
        if channels > 1:
            result = (result - np.array([0, 128, 128])) @ np.linalg.inv(TO_YCBCR).T
        return np.ascontiguousarray(upright(result / 255, self.orientation), np.float32)


def read_cells(source: bytes | Path, name: str | None = None) -> Cells:
    """Reads the coefficients and tables of a JPEG file.

    Args:
        source: A path, or the content of a file.
        name: The name in errors; by default the path.

    Raises:
        ImportError: If jpeglib is not installed.
        OSError: Of the file system.
        ValueError: Of one line, if it is not a JPEG file in gray or YCbCr, or is damaged.
    """
    require("restore", "reading the coefficients of JPEG files", "jpeglib")
    content, name = (
        (source, name or "the image") if isinstance(source, bytes) else (source.read_bytes(), str(source))
    )
    if content[:2] != b"\xff\xd8":
        raise ValueError(f"{name} is not a JPEG file: its compression cannot be undone; use denoise instead")
    with tempfile.NamedTemporaryFile(suffix=".jpg", delete=False) as file:  # jpeglib opens paths only
        path = Path(file.name)
        file.write(content)
    try:
        return _read(path, name, content)
    finally:
        path.unlink()


def _read(path: Path, name: str, content: bytes) -> Cells:
    import jpeglib

    try:
        found = jpeglib.read_dct(str(path))
        with Image.open(io.BytesIO(content)) as image:
            orientation = orientation_of(image)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is damaged, or its kind of JPEG is not supported") from error
    space = str(getattr(found.jpeg_color_space, "name", found.jpeg_color_space))
    if space not in SPACES:
        raise ValueError(
            f"{name} has the colors {space.removeprefix('JCS_')}: only gray and YCbCr are supported"
        )
    planes = (found.Y, found.Cb, found.Cr)[: SPACES[space]]
    sampling = np.asarray(found.samp_factor).reshape(-1, 2)
    most = sampling.max(0)
    components = []
    for plane, factors, number in zip(planes, sampling, found.quant_tbl_no, strict=True):
        table = np.asarray(found.qt[number], np.uint16)
        if not table.all():
            raise ValueError(f"{name} has a quantization table with steps of 0: it is damaged")
        if (most % factors).any():
            raise ValueError(
                f"{name} samples its colors by {most.tolist()} to {factors.tolist()}: not supported"
            )
        down, across = (int(each) for each in most // factors)
        components.append(Component(np.asarray(plane, np.int16), table, down, across))
    size = int(found.height), int(found.width)
    return Cells(tuple(components), size if orientation < 5 else size[::-1], orientation)


@cache
def cosines() -> NDArray[np.float64]:
    """The orthonormal cosine transform of 8 values, one basis function per row."""
    frequency, place = np.mgrid[:BLOCK, :BLOCK]
    matrix: NDArray[np.float64] = np.sqrt(2 / BLOCK) * np.cos(np.pi / BLOCK * frequency * (place + 0.5))
    matrix[0] /= np.sqrt(2)
    return matrix


def _means(plane: NDArray[np.float64], down: int, across: int) -> NDArray[np.float64]:
    """The means of rectangles of pixels, as encoders reduce colors; the last row and column are repeated."""
    height, width = plane.shape
    padded = np.pad(plane, ((0, -height % down), (0, -width % across)), "edge")
    rows, columns = padded.shape[0] // down, padded.shape[1] // across
    means: NDArray[np.float64] = padded.reshape(rows, down, columns, across).mean((1, 3))
    return means

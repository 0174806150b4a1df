"""Requests to encode a picture: their definition and checks, and the search for its sparse code. Without torch."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from sparsegen.pictures import images
from sparsegen.pictures.picture import Picture
from sparsegen.pictures.squares import square
from sparsegen.service.errors import Refused
from sparsegen.service.jobs.orders import Mask, Upload, read_upload
from sparsegen.service.models import Model
from sparsegen.service.requests import RequestModel, clip
from sparsegen.service.sampling import find_model
from sparsegen.zoo.fitting import Encoding
from sparsegen.zoo.k_range import resolve

ITERATIONS, MAX_ITERATIONS = 200, 500
MAX_PIXELS = 20_000_000  # the pictures of most phones
READ_PIXELS = 1_000_000  # to which they are reduced
LARGER = "`sparsegen encode` reads larger pictures"
FORMATS = {
    "json": "JSON with the PSNR, the non-zeros of each code, and two base64 PNGs",
    "png": "the image of the code",
    "npz": "a NumPy archive: gamma1, gamma2 (the codes), reconstruction, psnr, model, k",
}


class EncodeArguments(RequestModel):
    """The picture, the model and the settings of the search."""

    image: Upload = Field(
        description=f"An image file of up to {MAX_PIXELS:,} pixels. Its center square is resized to the images of the "
        "model."
    )
    model: str = Field(description="A name from GET /models.")
    k: str | None = Field(
        None,
        description="Sparsity (k): the non-zeros kept, one number for all projected levels or one per level with a "
        "comma between, e.g. 16 or 16,32; by default the k of training.",
    )
    iterations: int = Field(ITERATIONS, ge=1, le=MAX_ITERATIONS, description="Steps of the search.")
    mask: Mask | None = None


class EncodeRequest(EncodeArguments):
    """A request in one of the FORMATS."""

    format: Literal["json", "png", "npz"] = Field(
        "json", description="; ".join(f"{name}: {meaning}" for name, meaning in FORMATS.items()) + "."
    )


@dataclass(frozen=True)
class EncodeOrder:
    """A checked request; `k` has one number per projected level.

    Shape: pixels uint8 (1, H, W, 3), known bool (1, H, W), or None if all pixels are known.
    """

    model: Model
    k: tuple[int, ...]
    iterations: int
    pixels: NDArray[np.uint8]
    known: NDArray[np.bool_] | None

    def run(self) -> "Encoded":
        """Searches the code; takes seconds.

        Raises:
            Refused: With 422 if the model was exported without its encoding graph.
        """
        try:
            found = self.model.sampler.encode(
                self.pixels, list(self.k) or None, self.iterations, mask=self.known
            )
        except FileNotFoundError:
            raise Refused(
                422, f"{self.model.name} was exported without its encoding graph: export it again"
            ) from None
        return Encoded(self, found)


@dataclass(frozen=True)
class Encoded:
    """The code of a picture."""

    order: EncodeOrder
    encoding: Encoding[NDArray[np.float32]]

    def describe(self) -> dict[str, Any]:
        """The answer as JSON."""
        codes = self.encoding.codes
        psnr = float(self.encoding.psnr[0])
        return {
            "model": self.order.model.name,
            "k": list(self.order.k),
            "psnr": round(psnr, 2) if np.isfinite(psnr) else None,
            "nonzeros": [int(np.count_nonzero(code)) for code in codes],
            "density": [round(float(np.count_nonzero(code) / code.size), 4) for code in codes],
            "image": base64.b64encode(images.png(self.order.pixels[0])).decode(),
            "reconstruction": base64.b64encode(self.png()).decode(),
        }

    def png(self) -> bytes:
        """The image of the code."""
        return images.png(self.encoding.reconstruction[0])

    def npz(self) -> bytes:
        """The arrays that `sparsegen encode` writes."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {f"gamma{level}": code for level, code in enumerate(self.encoding.codes, 1)}
        arrays |= {"reconstruction": self.encoding.reconstruction, "psnr": self.encoding.psnr}
        arrays |= {"model": np.array(self.order.model.name), "k": np.array(self.order.k)}
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()


def order(given: Mapping[str, object], models: Mapping[str, Model]) -> EncodeOrder:
    """Checks a request and reads its picture.

    Args:
        given: The values of `EncodeArguments`; numbers may be texts.

    Raises:
        Refused: With 400 or 415 for a picture that cannot be read, 404 for an unknown model, else with 422.
        DecodersBusy: If too many pictures wait to be read.
    """
    asked = EncodeArguments.parse(given)
    model = find_model(asked.model, models)
    try:
        k = tuple(resolve(_k(asked.k), model.sampler.k_ranges))
    except (TypeError, ValueError) as error:
        raise Refused(422, clip(str(error), 300)) from None
    side = model.sampler.image_size
    picture = _read("image", asked.image)
    pixels = _pixels(picture)
    if asked.mask is None:
        return EncodeOrder(model, k, asked.iterations, np.asarray(square(pixels, side))[None], None)
    holes = _holes(_read("mask", asked.mask), picture)
    return EncodeOrder(model, k, asked.iterations, *_without_holes(np.asarray(pixels), holes, side))


def _read(name: str, content: bytes) -> Picture:
    """Reads a picture, reduced to READ_PIXELS, which are far more than the images of the models have."""
    return read_upload(name, content, LARGER, MAX_PIXELS, reduce_to=READ_PIXELS)


def _k(text: str | None) -> int | list[int] | None:
    """Reads one number, or several with commas between them.  Raises: Refused if it is something else."""
    if text is None or not text.strip():
        return None
    listed = text[:100].strip()
    if listed.startswith("[") and listed.endswith("]"):  # a list, as BentoML's client sends it
        listed = listed[1:-1]
    try:
        values = [int(part) for part in listed.split(",")]
    except ValueError:
        raise Refused(
            422, f"k must be one number, or one per level such as 16,32; got {clip(repr(text), 60)}"
        ) from None
    return values if len(values) > 1 else values[0]


def _pixels(picture: Picture) -> Image.Image:
    """The picture on white."""
    pixels = picture.pixels
    if picture.alpha is not None:
        opaque = (picture.alpha / np.iinfo(picture.alpha.dtype).max).astype(np.float32)[..., None]
        pixels = opaque * pixels + (1 - opaque)
    return Image.fromarray(np.rint(255 * np.broadcast_to(pixels, (*pixels.shape[:2], 3))).astype(np.uint8))


def _holes(mask: Picture, picture: Picture) -> NDArray[np.bool_]:
    """The pixels of the picture that are not known, white in the mask.  Shape: (H, W).

    Raises:
        Refused: If the mask has another size.
    """
    if mask.pixels.shape[:2] != picture.pixels.shape[:2]:
        (height, width), (rows, columns) = mask.pixels.shape[:2], picture.pixels.shape[:2]
        raise Refused(
            422,
            f"the mask must have the size of the image, {columns} x {rows} pixels; got {width} x {height} (as read: "
            f"pictures above {READ_PIXELS / 1e6:g} megapixel are reduced)",
        )
    holes: NDArray[np.bool_] = mask.pixels.mean(-1) >= 0.5
    return holes


def _without_holes(
    pixels: NDArray[np.uint8], holes: NDArray[np.bool_], side: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Resizes the center square to the means of its known pixels, so that holes do not change their neighbors.

    A resized pixel is known if at least half of its area is.

    Shape: (H, W, 3), (H, W) -> (1, side, side, 3), (1, side, side).

    Raises:
        Refused: If no pixel is known.
    """

    def resized(values: NDArray[Any]) -> NDArray[np.float32]:
        image = Image.fromarray(values.astype(np.float32))
        return np.asarray(square(image, side, Image.Resampling.BOX))

    share = resized(~holes)
    known: NDArray[np.bool_] = share >= 0.5
    if not known.any():
        raise Refused(422, "the mask has no known pixel: it must be black where the picture is known")
    sums = np.stack([resized(np.where(holes, 0, channel)) for channel in np.moveaxis(pixels, -1, 0)], -1)
    means = np.where(known[..., None], sums / np.where(known, share, 1)[..., None], 0)
    return np.rint(means).clip(0, 255).astype(np.uint8)[None], known[None]

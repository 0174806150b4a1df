"""What the Sample tab shows: the chosen settings, their address, and the calls that give the same pixels elsewhere."""

import json
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import gradio as gr  # noqa: TID253 (the page is Gradio; the endpoint imports it when the server starts)
import numpy as np

from sparsegen.common.hardware import processors
from sparsegen.service.models import Model
from sparsegen.service.page import link
from sparsegen.service.prefix import prefix_of
from sparsegen.zoo import noise

LEAST = 4  # images of a part that runs in a thread of its own
POOL = ThreadPoolExecutor(processors(), "page")


@dataclass(frozen=True)
class Choice:
    """The settings of the page: `count` images of a seed; the image at `index` is inspected.

    `label` is the class of all images; None: drawn from the seed, or the model is unconditional.
    """

    model: Model
    seed: int
    count: int
    k: list[int]
    index: int
    label: int | None = None

    def run(self, first: int, count: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Draws images with their codes; parts of them run in parallel, which does not change the values.

        Shape: float32 (count, 3, H, W) in [-1, 1]; codes as of `OnnxSampler.run`.
        """
        sampler = self.model.sampler
        z, labels = noise.z(count, sampler.z_dim, self.seed, first), self._labels(first, count)
        size = max(LEAST, -(-count // processors()))
        parts = [slice(start, start + size) for start in range(0, count, size)]

        def run(part: slice) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
            return sampler.run(z[part], self.k or None, labels=None if labels is None else labels[part])

        drawn, codes = zip(*(POOL.map(run, parts) if len(parts) > 1 else map(run, parts)), strict=True)
        return np.concatenate(drawn), tuple(map(np.concatenate, zip(*codes, strict=True)))

    def classes(self, first: int, count: int) -> list[str]:
        """The name of the class of each image; "" if the model is unconditional."""
        labels = self._labels(first, count)
        return [""] * count if labels is None else [self.model.classes[label] for label in labels]

    @property
    def file(self) -> str:
        """The name of a file with these images, without its extension."""
        k = "".join(f"-k{value}" for value in dict.fromkeys(self.k))
        return f"{self.model.name}-seed{self.seed}{k}"

    def called(self) -> str:
        """Its model and k, for people."""
        k = ", ".join(map(str, dict.fromkeys(self.k)))
        return f"{self.model.name}, k = {k}" if k else self.model.name

    def _labels(self, first: int, count: int) -> np.ndarray | None:
        sampler = self.model.sampler
        return noise.labels(count, sampler.classes, self.seed, self.label, sampler.class_names, first)


def link_to(sides: Sequence[Choice]) -> str:
    """The part of an address that opens the page with these settings; see `Handlers.open`."""
    shown = sides[0]
    settings: dict[str, object] = {
        "model": shown.model.name,
        "seed": shown.seed,
        "k": ",".join(map(str, dict.fromkeys(shown.k) if len(set(shown.k)) == 1 else shown.k)) or None,
        "class": shown.label,
        "count": shown.count,
        "image": shown.index or None,
    }
    for other in sides[1:]:
        settings |= {"with": other.model.name, "with_k": other.k[0] if other.k else None}
    return link.fragment("sample", settings)


def address(request: gr.Request) -> str:
    """The address of this server, as used by the browser."""
    headers = request.headers
    server = headers.get("origin") or f"http://{headers.get('host', '127.0.0.1:3000')}"
    return server + prefix_of(headers)


def python_call(shown: Choice) -> str:
    k = f", k={shown.k}" if shown.k else ""
    labels = "" if shown.label is None else f", labels={shown.label}"
    size = shown.model.sampler.image_size
    return (
        "import sparsegen\n\n"
        f"pixels = sparsegen.open_sampler({shown.model.source!r}).sample({shown.count}, seed={shown.seed}{k}{labels})"
        f"  # uint8 ({shown.count}, {size}, {size}, 3)"
    )


def client_call(shown: Choice, server: str) -> str:
    """The call of the endpoint /sample of the page."""
    given = {"model": shown.model.name, "count": shown.count, "seed": shown.seed}
    given |= {"k": shown.k} if shown.k else {}
    given |= {} if shown.label is None else {"labels": shown.label}
    arguments = ", ".join(f"{name}={value!r}" for name, value in given.items())
    return (
        "from gradio_client import Client\n\n"
        f'files = Client({server + "/"!r}).predict({arguments}, api_name="/sample")'
    )


def curl_call(shown: Choice, server: str, asks_token: bool) -> str:
    set_here = {"k": shown.k or None, "labels": shown.label}
    body = {
        "model": shown.model.name,
        "count": shown.count,
        "seed": shown.seed,
        **{name: value for name, value in set_here.items() if value is not None},
        "format": "npy",
    }
    token = "  -H 'Authorization: Bearer TOKEN' \\\n" if asks_token else ""
    return (
        f"curl {shlex.quote(server + '/sample')} -H 'Content-Type: application/json' \\\n{token}"
        f"  -d {shlex.quote(json.dumps(body))} -o pixels.npy"
    )

"""A push of a model to the Hub: one commit with weights, config, ONNX files, pictures and the card."""

import re
import shutil
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from sparsegen.common.files import write_json
from sparsegen.pictures import images
from sparsegen.zoo import hub
from sparsegen.zoo.bundled import AUXILIARY, CONFIG, WEIGHTS
from sparsegen.zoo.card import model_card
from sparsegen.zoo.config import LONGEST_LICENSE
from sparsegen.zoo.weights import load_weights

if TYPE_CHECKING:
    from sparsegen.zoo.generator import Generator

# Functions of a folder that add files to it. The ONNX files come from `export`, which this package does not import.
ENTRY_POINTS = "sparsegen.push"
COLUMNS, ROWS, SCALE, SWEEP = 8, 4, 3, 5


class PushOptions(hub.Upload, total=False):
    """Options of a push: those of `Upload`, and what is pushed.

    license: License of the weights, e.g. "mit"; default: that in config.json, else that of the existing card.
    dtype: Floating-point type of the stored weights; default: float32. Of a folder, the weights are copied.
    onnx: Whether to export and verify the ONNX files; default: true.
    """

    license: str | None
    dtype: torch.dtype
    onnx: bool


def publish(
    generator: "Generator", repo_id: str, source: Path | None = None, **options: Unpack[PushOptions]
) -> str:
    """Pushes a model, and returns the URL of its page or of the pull request.

    Args:
        repo_id: owner/name on the Hub, or a name in your own namespace.
        source: The folder that the generator was opened from; its weights and auxiliary networks are copied. None: the
            weights of the generator are written.

    Raises:
        TypeError, ValueError: On an unknown or invalid option, a repository of the other visibility, a card with broken
            metadata or another license, or an invalid file of weights; before anything is uploaded.
        ImportError: If the ONNX files cannot be written here.
        ConnectionError: If the Hub refuses or cannot be reached.
    """
    hub.check_options(options, PushOptions)
    given = options.get("license")
    if not isinstance(given, str | None):
        raise TypeError(f'a license must be a string, e.g. "mit"; got {given!r:.80}')
    if given is not None and not (
        len(given) <= LONGEST_LICENSE and re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", given)
    ):
        raise ValueError(
            f'a license must be an identifier of the Hub in lower case, e.g. "mit" or "cc-by-4.0"; got {given!r:.80}'
        )
    target = hub.find_target(repo_id, options)
    with TemporaryDirectory(prefix="sparsegen-push-") as temporary:
        folder = Path(temporary)
        config = generator.make_config() | ({"license": given} if given else {})
        if source is None:
            generator.save_pretrained(folder, options.get("dtype", torch.float32))
        else:
            _check_auxiliary(generator, source)
            for name in (WEIGHTS, *AUXILIARY.values()):
                if (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)
        write_json(folder / CONFIG, config)
        if options.get("onnx", True):
            _add_graphs(folder)
        sweep = _draw(generator, folder)
        files = [path.name for path in folder.iterdir()]
        card = model_card(generator, config, target.repo_id, files, sweep, target.card, target.config, given)
        (folder / hub.CARD).write_text(card, encoding="utf-8")
        return hub.push(target, folder, options)


def _check_auxiliary(generator: "Generator", source: Path) -> None:
    """Checks that the other files of weights hold what their names say.

    A folder from elsewhere may hold links to private files under these names. The generator's weights were read when
    it was opened.

    Raises:
        ValueError: If one is not a safetensors file, or holds another network.
    """
    networks = generator.spec.auxiliary_networks()
    for name, file in AUXILIARY.items():
        if not (path := source / file).is_file():
            continue
        if name in networks:
            load_weights(networks[name], path)
        try:
            with safe_open(path, "numpy") as tensors:
                tensors.keys()
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file, and is not pushed: {error}") from None


def _add_graphs(folder: Path) -> None:
    points = entry_points(group=ENTRY_POINTS)
    if not points:
        raise ImportError(
            "the ONNX files of a push are written by the installed package, and sparsegen is not installed here: "
            "install it, or push without them (onnx=False, --no-onnx)"
        )
    for point in points:
        point.load()(folder)


def _draw(generator: "Generator", folder: Path) -> list[int]:
    """Writes the pictures of the card, and returns the k of each row of the second one."""

    def write(name: str, parts: list[Any]) -> None:
        sheet = images.grid(np.concatenate(parts), COLUMNS)
        (folder / name).write_bytes(images.png(sheet, SCALE))

    samples, sparsity = hub.PICTURES
    write(samples, [generator.sample(COLUMNS * ROWS)])
    if not (k_ranges := generator.k_ranges):
        return []
    limit, trained = min(each.limit for each in k_ranges), k_ranges[0].k
    halved = {max(1, limit >> step) for step in range(1, SWEEP)}
    sweep = sorted({*halved, min(limit, trained)})
    write(sparsity, [generator.sample(COLUMNS, k=k) for k in sweep])
    return sweep

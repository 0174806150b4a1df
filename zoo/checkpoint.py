"""Checkpoints: folders of config.json and generator.safetensors, bundled, on disk or on the Hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from safetensors.torch import load_file

from sparsegen.common.devices import find_device
from sparsegen.common.files import check_utf8
from sparsegen.common.names import known_names
from sparsegen.zoo import hub
from sparsegen.zoo.bundled import AUXILIARY, CONFIG, MODELS, PICKLES, WEIGHTS, list_models, warn_of_folder
from sparsegen.zoo.config import read_entries
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.publishing import PushOptions, publish
from sparsegen.zoo.spec import ModelSpec
from sparsegen.zoo.weights import load_weights, save_weights, write_tensors

EXPECTED = "a model must be the name of a bundled model, the folder of a checkpoint, or owner/name on the Hub"


def from_pretrained(
    name_or_folder_or_hub_id: str | Path,
    revision: str | None = None,
    *,
    k: int | Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = "cpu",
    **options: Unpack[hub.Download],
) -> Generator:
    """Opens a trained generator, in eval mode and frozen (`requires_grad_(True)` makes it trainable).

    Args:
        name_or_folder_or_hub_id: A bundled model (see `list_models`), a checkpoint's folder, or `owner/name`
            or `owner/name@revision` on the Hugging Face Hub, or the address of its page there.
        revision: Branch, tag or commit on the Hub; None: the default branch.
        k: Non-zeros kept, one number or one per projected level, Γ1 first; None: that of the checkpoint.
        dtype: Floating-point type of the weights in memory.
        device: Where the weights are put; "auto" or None: an accelerator if there is one.
        options: Of a download, see `zoo.hub.Download`: subfolder, cache_dir, local_files_only, token, force_download.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If the model is unknown, a file is invalid, k does not fit the model, or the device does not exist.
        FileNotFoundError: If a file is missing.
        ConnectionError: If the download fails.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point type, e.g. torch.float16; got {dtype}")
    place = find_device(device)
    folder = find_checkpoint(name_or_folder_or_hub_id, revision, **options)
    config = read_config(folder)
    generator = ModelSpec.from_config(config).generator()
    load_weights(generator, folder / WEIGHTS)
    generator.note_checkpoint(config)
    generator.set_k(k)
    # Channels last is a tenth faster on a CPU at batch 64: benchmarks/sampling.py.
    generator = generator.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return generator.to(place, dtype)


def find_checkpoint(
    name_or_folder_or_hub_id: str | Path,
    revision: str | None = None,
    *,
    auxiliary: bool = False,
    **options: Unpack[hub.Download],
) -> Path:
    """Finds the folder of a checkpoint, or downloads it from the Hub; see `from_pretrained`.

    Args:
        auxiliary: See `hub.download`.
    """
    hub.check_options(options, hub.Download)
    if not isinstance(name_or_folder_or_hub_id, str | Path):
        raise TypeError(f"{EXPECTED}; got {name_or_folder_or_hub_id!r}")
    given = str(name_or_folder_or_hub_id)
    if not given.strip():
        raise ValueError(f"{EXPECTED}; got {given!r}")
    path = Path(name_or_folder_or_hub_id).expanduser()
    if given in list_models():
        warn_of_folder(path)
        path = MODELS / given
    if path.suffix in PICKLES:
        raise ValueError(
            f"{path} is a pickle, which runs code when it is opened: sparsegen reads safetensors only. "
            "If you trust it, convert it with safetensors.torch.save_file"
        )
    if path.is_dir():
        if revision is not None:
            raise ValueError(
                f"a revision applies to owner/name on the Hub, and {path} is a local folder: "
                f"omit the revision; got {revision!r}"
            )
        check_utf8(path)
        return path / (options.get("subfolder") or "")
    if path.is_file():
        raise ValueError(f"{path} is a file; give the folder that holds {CONFIG} and {WEIGHTS}")
    if models := _models_of_run(
        next((parent for parent in path.parents if (parent / "run.json").is_file()), path)
    ):
        raise FileNotFoundError(f"there is no folder {path}: that training run has {' and '.join(models)}")
    local = len(path.parts) > 1 and path.parent.is_dir()
    if hub.may_be_id(given) and not local:
        return hub.download(given, revision, auxiliary=auxiliary, **options)
    if local:
        there = sorted(child.name for child in path.parent.iterdir() if (child / CONFIG).is_file())
        raise FileNotFoundError(
            f"there is no folder {path}: {path.parent} has models: {known_names(path.name, there)}"
        )
    raise ValueError(
        f"no model {given!r}: neither bundled, nor a folder, nor owner/name on the Hub. "
        f"Bundled: {known_names(given, list_models())}"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Reads a checkpoint's config.json and checks that it describes a known model.

    Raises:
        FileNotFoundError, ValueError: Naming the file, the entry and the expected value.
    """
    path = folder / CONFIG
    if not path.is_file():
        if models := _models_of_run(folder):
            raise FileNotFoundError(f"{folder} is a training run: give a model in it, {' or '.join(models)}")
        pickles = [file.name for file in folder.iterdir() if file.suffix in PICKLES]
        if pickles:
            raise FileNotFoundError(
                f"{folder} is not a checkpoint: it has no {CONFIG}, and sparsegen does not open pickles "
                f"({', '.join(pickles)})"
            )
    config = read_entries(folder)
    try:
        spec = ModelSpec.from_config(config)
        names, classes = config.get("class_names", []), spec.labels
        if len(names) > classes:
            raise ValueError(f"class_names must name at most the {classes} classes; got {names!r}")
        if config["model"] != spec.name:
            raise ValueError(f"model is {config['model']!r}, and the other entries make it {spec.name!r}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return config


def _models_of_run(folder: Path) -> list[str]:
    """Returns the folders of the best and the latest checkpoint of a training run; none for other folders."""
    candidates = [folder / "best", *sorted((folder / "checkpoints").glob("[0-9]*"))[-1:]]
    return [str(model) for model in candidates if (model / CONFIG).is_file()]


def save_auxiliary_networks(source: Path, folder: Path, spec: ModelSpec, dtype: torch.dtype) -> None:
    """Copies the auxiliary networks of a checkpoint to another folder, as `dtype`: the discriminator and, if
    present, the encoder and the projected heads.

    Raises:
        FileNotFoundError: If a network of the architecture is missing.
    """
    for name, network in spec.auxiliary_networks().items():
        load_weights(network, source / AUXILIARY[name])
        save_weights(network, folder / AUXILIARY[name], dtype)
    for name in AUXILIARY.keys() - spec.auxiliary_networks().keys():
        if (source / AUXILIARY[name]).is_file():
            write_tensors(load_file(source / AUXILIARY[name]), folder / AUXILIARY[name], dtype)


def upload(folder: Path, repo_id: str, **options: Unpack[PushOptions]) -> str:
    """Pushes a checkpoint's folder; see `Generator.push_to_hub`.

    Raises:
        FileNotFoundError, ValueError: If the folder is not a valid checkpoint.
        TypeError, ValueError, ImportError, ConnectionError: As `publish`.
    """
    return publish(from_pretrained(folder), repo_id, folder, **options)

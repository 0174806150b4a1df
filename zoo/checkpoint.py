"""Checkpoints: folders of config.json and generator.safetensors, bundled, on disk or on the Hub."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from sparsegen.common.files import check_utf8
from sparsegen.common.names import known_names
from sparsegen.zoo import hub
from sparsegen.zoo.bundled import COMPANIONS, CONFIG, MODELS, PICKLES, WEIGHTS, list_models, warn_of_folder
from sparsegen.zoo.card import model_card
from sparsegen.zoo.config import read_entries
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.spec import ModelSpec
from sparsegen.zoo.weights import load_weights, save_weights, write_tensors

EXPECTED = "a model is the name of a bundled one, a checkpoint's folder, or owner/name on the Hub"


def from_pretrained(name_or_folder_or_hub_id: str | Path, revision: str | None = None) -> Generator:
    """Opens a trained generator, in eval mode, in float32, frozen: `requires_grad_(True)` thaws its weights.

    Args:
        name_or_folder_or_hub_id: A bundled model (see `list_models`), a checkpoint's folder, or `owner/name`
            on the Hugging Face Hub.
        revision: Branch, tag or commit on the Hub; None for what is not from there.

    Raises: TypeError if that is no text or path, ValueError if no such model is known or a file is not what it
        should be, FileNotFoundError if one is missing, ConnectionError if the Hub does not give it.
    """
    folder = find_checkpoint(name_or_folder_or_hub_id, revision)
    config = read_config(folder)
    generator = ModelSpec.from_config(config).generator()
    load_weights(generator, folder / WEIGHTS)
    generator.config = config
    # Channels last is a tenth faster on a CPU at batch 64: benchmarks/sampling.py.
    return generator.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def find_checkpoint(name_or_folder_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """Finds the folder of a checkpoint, downloading it from the Hub where that is what is asked for."""
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
            "Convert it where you trust it, with safetensors.torch.save_file"
        )
    if path.is_dir():
        if revision is not None:
            raise ValueError(
                f"a revision chooses among those of owner/name on the Hub, and {path} is a folder here: "
                f"leave the revision out; got {revision!r}"
            )
        check_utf8(path)
        return path
    if path.is_file():
        raise ValueError(f"{path} is a file; give the folder that holds {CONFIG} and {WEIGHTS}")
    if given.count("/") == 1 and not given.startswith((".", "/", "~")):
        return hub.download(given, revision)
    raise ValueError(
        f"no model {given!r}: neither bundled, nor a folder, nor owner/name on the Hub. "
        f"Bundled: {known_names(given, list_models())}"
    )


def read_config(folder: Path) -> dict:
    """Reads a checkpoint's config.json, and checks that it is of a model that there is.

    Raises: FileNotFoundError, ValueError naming the file, the entry and what was expected.
    """
    path = folder / CONFIG
    if not path.is_file():
        models = [folder / "best", *sorted((folder / "checkpoints").glob("[0-9]*"))[-1:]]
        if models := [str(model) for model in models if (model / CONFIG).is_file()]:
            raise FileNotFoundError(f"{folder} is a training run: give a model in it, {' or '.join(models)}")
        pickles = [file.name for file in folder.iterdir() if file.suffix in PICKLES]
        if pickles:
            raise FileNotFoundError(
                f"{folder} is no checkpoint: it has no {CONFIG}; {', '.join(pickles)} there is a pickle, which "
                f"sparsegen does not open"
            )
    config = read_entries(folder)
    try:
        spec = ModelSpec.from_config(config)
        names, classes = config.get("class_names", []), spec.labels
        if len(names) > classes:
            raise ValueError(
                f"class_names are names of the {classes} classes, or of the first of them; got {names!r}"
            )
        if config["model"] != spec.name:
            raise ValueError(f"model is {config['model']!r}, and the other entries make it {spec.name!r}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return config


def save_companions(source: Path, folder: Path, spec: ModelSpec, dtype: torch.dtype) -> None:
    """Copies what the generator was trained with from one checkpoint's folder to another's, as `dtype`: the
    discriminator, the encoder and the projected heads, of the last two those that there are.

    Raises: FileNotFoundError if the checkpoint does not bring those of its architecture.
    """
    for name, network in spec.companions().items():
        load_weights(network, source / COMPANIONS[name])
        save_weights(network, folder / COMPANIONS[name], dtype)
    for name in COMPANIONS.keys() - spec.companions().keys():
        if (source / COMPANIONS[name]).is_file():
            write_tensors(load_file(source / COMPANIONS[name]), folder / COMPANIONS[name], dtype)


def upload(folder: Path, hub_id: str, private: bool = False, revision: str | None = None) -> str:
    """Pushes a checkpoint's folder, with a card made from its config, and returns the address of its page.

    Raises: FileNotFoundError, ValueError if the folder is no sound checkpoint, TypeError if `hub_id` is no text,
        ConnectionError if the Hub does not take it.
    """
    hub.check_id(hub_id)
    generator = from_pretrained(folder)  # so that nobody downloads what does not open
    return hub.push(folder, model_card(generator, generator.config), hub_id, private, revision)

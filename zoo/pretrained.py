"""Checkpoints: folders of config.json and generator.safetensors, bundled, on disk or on the Hub."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from sparsegen.common.files import atomic_write, write_json
from sparsegen.common.names import known_names
from sparsegen.zoo.bundled import COMPANIONS, CONFIG, GRAPH, MODELS, SYNTHESIS, WEIGHTS, list_models
from sparsegen.zoo.config import FORMAT, LICENSE, read_entries
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.table1 import ARCHITECTURES, ModelSpec

FILES = [CONFIG, WEIGHTS, *COMPANIONS.values(), GRAPH, SYNTHESIS, "README.md"]  # of a model on the Hub
EXPECTED = "a model is the name of a bundled one, a checkpoint's folder, or owner/name on the Hub"
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


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
    try:
        generator = ModelSpec.from_config(config).generator()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
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
    path = MODELS / given if given in list_models() else Path(name_or_folder_or_hub_id).expanduser()
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
        return path
    if path.is_file():
        raise ValueError(f"{path} is a file; give the folder that holds {CONFIG} and {WEIGHTS}")
    if given.count("/") == 1 and not given.startswith((".", "/", "~")):
        return _download(given, revision)
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
        names, classes = config.get("class_names", []), ARCHITECTURES[spec.architecture].classes
        if len(names) > classes:
            raise ValueError(
                f"class_names are names of the {classes} classes, or of the first of them; got {names!r}"
            )
        if config["model"] != spec.name:
            raise ValueError(f"model is {config['model']!r}, and the other entries make it {spec.name!r}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return config


def load_weights(network: nn.Module, path: Path) -> None:
    """Loads safetensors strictly into a network, as the network's dtype.

    Raises: FileNotFoundError, ValueError naming the file and what was expected; also of weights that hold NaN.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected the weights as safetensors")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is corrupt, truncated or no safetensors file: {error}") from None
    own = network.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(
            f"{path} holds another network: {_some('missing', missing)}, {_some('unexpected', unexpected)}"
        )
    for key, tensor in own.items():
        if tensor.shape != tensors[key].shape:
            found, expected = tuple(tensors[key].shape), tuple(tensor.shape)
            raise ValueError(f"{path} holds another width: {key} is {found}, expected {expected}")
        if tensor.is_floating_point() != tensors[key].is_floating_point():
            raise ValueError(f"{path} holds {key} as {tensors[key].dtype}; expected {tensor.dtype}")
    if broken := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"{path} holds NaN or infinity in {_some('tensors', broken)}, as after training that diverged: take an "
            f"earlier checkpoint"
        )
    network.load_state_dict(tensors)


def save_pretrained(
    generator: Generator,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    training: dict | None = None,
    evaluation: dict | None = None,
) -> Path:
    """Writes config.json and generator.safetensors, each atomically, the weights first.

    Args:
        dtype: Of the stored weights; they are used as float32 whatever it is.
        training, evaluation: What the config tells of how the weights were made and measured; without either,
            what the generator was opened with, but no measurement at another k than it has now.

    Raises: TypeError unless `dtype` is a floating one; OSError if it cannot be written.
    """
    if not dtype.is_floating_point:
        raise TypeError(f"dtype is a floating one, as torch.float16; got {dtype}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about, k = {"training": training, "evaluation": evaluation}, [dial.k for dial in generator.dials]
    if training is evaluation is None:
        about = {name: generator.config.get(name) for name in about}
        if generator.config.get("k", k) != k:
            about["evaluation"] = None
    config = {
        "format": FORMAT,
        "model": generator.spec.name,
        "architecture": generator.spec.architecture,
        "regularizer": generator.spec.regularizer,
        "recipe": generator.spec.recipe,
        "atoms": generator.spec.atoms,
        "k": k,
        "license": generator.config.get("license", LICENSE),
        **({"class_names": list(generator.class_names)} if generator.class_names else {}),
        **{name: entry for name, entry in about.items() if entry is not None},
    }
    save_weights(generator, folder / WEIGHTS, dtype)
    write_json(folder / CONFIG, config)
    return folder


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


def save_weights(network: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Writes a network's weights as safetensors, atomically."""
    write_tensors(network.state_dict(), path, dtype)


def write_tensors(
    tensors: Mapping[str, torch.Tensor],
    path: Path,
    dtype: torch.dtype,
    about: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors as safetensors, atomically, those of floating-point numbers as `dtype`; `about` as metadata."""
    packed = {
        key: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for key, tensor in tensors.items()
    }
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(packed, metadata={"format": "pt", **(about or {})}))


def upload(folder: Path, hub_id: str, private: bool = False, revision: str | None = None) -> str:
    """Pushes a checkpoint's folder, with a card made from its config, and returns the address of its page.

    Raises: FileNotFoundError, ValueError if the folder is no sound checkpoint, TypeError if `hub_id` is no text,
        ConnectionError if the Hub does not take it.
    """
    if not isinstance(hub_id, str):
        raise TypeError(f"a Hub id is owner/name; got {hub_id!r}")
    from huggingface_hub import CommitOperationAdd, HfApi

    from sparsegen.zoo.card import model_card

    files = {name: folder / name for name in FILES if (folder / name).is_file()}
    files["README.md"] = model_card(read_config(folder)).encode()
    from_pretrained(folder)  # so that nobody downloads what does not open
    hub = HfApi()
    with _one_sentence(f"the Hub did not take {hub_id!r}"):
        page = hub.create_repo(hub_id, private=private, exist_ok=True)
        if revision:
            hub.create_branch(hub_id, branch=revision, exist_ok=True)
        hub.create_commit(
            hub_id,
            [CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message="Upload a sparsegen model",
            revision=revision,
        )
    return str(page)


def check_bundle(folder: Path, source: Path) -> None:
    """Finds out before any work whether a bundle of `source` may take the place of what is at `folder`.

    Raises: FileExistsError if that is the source itself, or anything but an older bundle.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if folder.resolve() == source.resolve():
        raise FileExistsError(
            f"{folder} is the model itself, whose weights would be lost: choose another folder"
        )
    if names and not {CONFIG, GRAPH} <= names <= set(FILES):
        raise FileExistsError(f"{folder} holds other files than an exported model: choose another folder")


def _some(what: str, keys: list[str]) -> str:
    shown = ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
    return f"{len(keys)} {what}" + (f" ({shown})" if keys else "")


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    missed = f"no folder {hub_id!r} here, and the Hub did not give it"
    with _one_sentence(f"the Hub did not give {hub_id!r} at {revision!r}" if revision else missed):
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=FILES))
        missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
        there = HfApi().list_repo_files(hub_id, revision=revision) if missing else []
    if missing:
        pickles = [name for name in there if name.endswith(PICKLES)]
        found = f"; {', '.join(pickles)} there is a pickle, which sparsegen does not open" if pickles else ""
        raise FileNotFoundError(
            f"{hub_id!r} on the Hub is no sparsegen model: it has no {' and no '.join(missing)}{found}"
        )
    for path in folder.iterdir():
        _check_blob(path)
    return folder


def _check_blob(path: Path) -> None:
    """Compares a file in the Hub's cache, of whose download only the size was checked, with its SHA-256.

    A large file there is a link to one that is named by it.
    """
    blob = path.resolve()
    if len(blob.name) == 64 and hashlib.sha256(blob.read_bytes()).hexdigest() != blob.name:
        blob.unlink()
        raise ValueError(f"{path} was corrupt (its SHA-256 is not the Hub's) and is deleted: call again")


@contextmanager
def _one_sentence(what: str) -> Iterator[None]:
    """Turns whatever the Hub's client raises, in paragraphs, into `what` and why."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{what}: that is no model name, folder or Hub id, owner/name ({error})") from None
    except (HTTPError, OSError) as error:
        raise ConnectionError(f"{what}: {_why(error)}") from error


def _why(error: Exception) -> str:
    from httpx2 import TransportError
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):  # not in the cache either
        error = error.__cause__ or error
    reasons = {
        errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE is set, which leaves what is in the cache",
        errors.GatedRepoError: "it is gated: ask for access on its page, and log in (hf auth login)",
        errors.RepositoryNotFoundError: "no such model, or a private one and no login to it (hf auth login)",
        errors.RevisionNotFoundError: "it has no such branch, tag or commit",
        TransportError: f"the connection failed ({error}): call again where there is one",
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return reason
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        log_in = "; log in with a token that may do this (hf auth login)" if status in (401, 403) else ""
        return f"it answers {status} ({error.server_message or error.response.reason_phrase}){log_in}"
    return str(error)

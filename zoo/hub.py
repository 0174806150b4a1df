"""Downloads and uploads of models on the Hugging Face Hub, with one-sentence errors."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsegen.zoo.bundled import AUXILIARY, CONFIG, GRAPH, PICKLES, SYNTHESIS, WEIGHTS

CARD = "README.md"
HUB_FILES = [CONFIG, WEIGHTS, *AUXILIARY.values(), GRAPH, SYNTHESIS, CARD]  # of a model on the Hub


def download(repo_id: str, revision: str | None = None) -> Path:
    """Downloads a model's files into the Hub's cache if necessary, and returns their folder.

    Raises:
        ValueError: If the name is invalid or a file is corrupt.
        FileNotFoundError: If it is not a sparsegen model.
        ConnectionError: If the download fails.
    """
    from huggingface_hub import HfApi, snapshot_download

    missed = f"no local folder {repo_id!r}, and it cannot be downloaded from the Hub"
    with _one_sentence(
        f"{repo_id!r} at {revision!r} cannot be downloaded from the Hub" if revision else missed
    ):
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=HUB_FILES))
        missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
        there = HfApi().list_repo_files(repo_id, revision=revision) if missing else []
    if missing:
        pickles = [name for name in there if name.endswith(PICKLES)]
        found = f"; sparsegen does not open pickles ({', '.join(pickles)})" if pickles else ""
        raise FileNotFoundError(
            f"{repo_id!r} on the Hub is not a sparsegen model: it has no {' and no '.join(missing)}{found}"
        )
    for path in folder.iterdir():
        _check_blob(path)
    return folder


def push(folder: Path, card: str, repo_id: str, private: bool = False, revision: str | None = None) -> str:
    """Uploads a model's files with its card, and returns the URL of its page.

    Raises:
        TypeError: If `repo_id` is not a string.
        ConnectionError: If the upload fails.
    """
    check_id(repo_id)
    from huggingface_hub import CommitOperationAdd, HfApi

    files = {name: folder / name for name in HUB_FILES if (folder / name).is_file()} | {CARD: card.encode()}
    hub = HfApi()
    with _one_sentence(f"{repo_id!r} cannot be uploaded to the Hub"):
        page = hub.create_repo(repo_id, private=private, exist_ok=True)
        if revision:
            hub.create_branch(repo_id, branch=revision, exist_ok=True)
        hub.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message="Upload a sparsegen model",
            revision=revision,
        )
    return str(page)


def check_space(repo_id: str) -> None:
    """Checks before any work whether a Space can be pushed.

    Raises:
        ValueError: If the name is not owner/name.
        ConnectionError: If there is no token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
        valid = may_be_id(repo_id)
    except HFValidationError:
        valid = False
    if not valid:
        raise ValueError(f"a Space must be owner/name, of letters, digits, -, _ and .; got {repo_id!r}")
    if get_token() is None:
        raise ConnectionError(
            f"{repo_id!r} cannot be pushed without a token: log in with `hf auth login`, or set HF_TOKEN"
        )


def push_space(folder: Path, repo_id: str, private: bool = False) -> str:
    """Uploads a folder as a Gradio Space, and returns the URL of its page.

    Of an existing Space, the other files in the subfolders of `folder` are removed.

    Raises:
        ConnectionError: If the upload fails.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    with _one_sentence(f"the Space {repo_id!r} cannot be uploaded to the Hub"):
        page = hub.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            repo_type="space",
            commit_message="Upload a sparsegen Space",
            delete_patterns=[f"{path.name}/*" for path in folder.iterdir() if path.is_dir()],
        )
    return str(page)


def may_be_id(given: str) -> bool:
    """Whether a text that is no path may be owner/name."""
    return given.count("/") == 1 and not given.startswith((".", "/", "~"))


def check_id(repo_id: object) -> None:
    """Raises: TypeError if this cannot be owner/name."""
    if not isinstance(repo_id, str):
        raise TypeError(f"a Hub id must be owner/name; got {repo_id!r}")


def _check_blob(path: Path) -> None:
    """Compares a file in the Hub's cache with its SHA-256, because the client checks only the size.

    A large file in the cache is a link to a file whose name is its SHA-256.
    """
    blob = path.resolve()
    if len(blob.name) == 64 and hashlib.sha256(blob.read_bytes()).hexdigest() != blob.name:
        blob.unlink()
        raise ValueError(
            f"{path} was corrupt (its SHA-256 is not the Hub's) and was deleted: download it again"
        )


@contextmanager
def _one_sentence(what: str) -> Iterator[None]:
    """Converts the long errors of the Hub's client to one sentence: `what` and the reason."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{what}: not a model name, a folder or a Hub id (owner/name): {error}") from None
    except (HTTPError, OSError) as error:
        raise ConnectionError(f"{what}: {_why(error)}") from None


def _why(error: BaseException) -> str:
    from httpx2 import TransportError
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):  # not in the cache either
        error = error.__cause__ or error
    reasons = {
        errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE is set, and it is not in the cache",
        errors.GatedRepoError: "it is gated: request access on its page and log in (hf auth login)",
        errors.RepositoryNotFoundError: "the model does not exist, or it is private and needs a login (hf auth login)",
        errors.RevisionNotFoundError: "it has no such branch, tag or commit",
        TransportError: f"the connection failed ({error}): try again",
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return reason
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        log_in = (
            "; log in with a token that has this permission (hf auth login)" if status in (401, 403) else ""
        )
        return f"the Hub answered {status} ({error.server_message or error.response.reason_phrase}){log_in}"
    return str(error)

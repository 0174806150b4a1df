"""Models on the Hugging Face Hub: downloads and pushes of their files, with errors of one sentence."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsegen.zoo.bundled import AUXILIARY, CONFIG, GRAPH, PICKLES, SYNTHESIS, WEIGHTS

CARD = "README.md"
HUB_FILES = [CONFIG, WEIGHTS, *AUXILIARY.values(), GRAPH, SYNTHESIS, CARD]  # of a model on the Hub


def download(repo_id: str, revision: str | None = None) -> Path:
    """Downloads a model's files into the Hub's cache, unless they are there, and returns their folder.

    Raises: ValueError if there is no such name or a file is corrupt, FileNotFoundError if it holds no model of ours,
        ConnectionError if the Hub does not give it.
    """
    from huggingface_hub import HfApi, snapshot_download

    missed = f"no folder {repo_id!r} here, and the Hub did not give it"
    with _one_sentence(f"the Hub did not give {repo_id!r} at {revision!r}" if revision else missed):
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=HUB_FILES))
        missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
        there = HfApi().list_repo_files(repo_id, revision=revision) if missing else []
    if missing:
        pickles = [name for name in there if name.endswith(PICKLES)]
        found = f"; {', '.join(pickles)} there is a pickle, which sparsegen does not open" if pickles else ""
        raise FileNotFoundError(
            f"{repo_id!r} on the Hub is no sparsegen model: it has no {' and no '.join(missing)}{found}"
        )
    for path in folder.iterdir():
        _check_blob(path)
    return folder


def push(folder: Path, card: str, repo_id: str, private: bool = False, revision: str | None = None) -> str:
    """Pushes a model's files with its card, and returns the address of its page.

    Raises: TypeError if `repo_id` is no text, ConnectionError if the Hub does not take it.
    """
    check_id(repo_id)
    from huggingface_hub import CommitOperationAdd, HfApi

    files = {name: folder / name for name in HUB_FILES if (folder / name).is_file()} | {CARD: card.encode()}
    hub = HfApi()
    with _one_sentence(f"the Hub did not take {repo_id!r}"):
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


def check_id(repo_id: object) -> None:
    """Raises: TypeError if this cannot be owner/name."""
    if not isinstance(repo_id, str):
        raise TypeError(f"a Hub id is owner/name; got {repo_id!r}")


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

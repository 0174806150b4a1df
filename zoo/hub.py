"""Downloads and uploads of models on the Hugging Face Hub, with one-sentence errors."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

from sparsegen.common.names import known_names
from sparsegen.zoo.bundled import AUXILIARY, CONFIG, ENCODING, GRAPH, PICKLES, SYNTHESIS, WEIGHTS

log = logging.getLogger(__name__)

CARD = "README.md"
PICTURES = ("samples.png", "sparsity.png")  # of the card
HUB_FILES = [CONFIG, WEIGHTS, GRAPH, SYNTHESIS, ENCODING, CARD]  # that are downloaded
# That a push writes, and removes if they are of an earlier push.
OWN_FILES = {*HUB_FILES, *AUXILIARY.values(), *PICTURES}


class Download(TypedDict, total=False):
    """Options of a download from the Hub, with the meaning that they have in `huggingface_hub`.

    subfolder: Folder of the model within the repository.
    cache_dir: Folder of the cache.
    local_files_only: Use the cache only.
    token: Token of the Hub; default: that of `hf auth login` or HF_TOKEN.
    force_download: Download again what is in the cache.
    """

    subfolder: str | None
    cache_dir: str | Path | None
    local_files_only: bool
    token: str | bool | None
    force_download: bool


def download(
    given: str, revision: str | None = None, *, auxiliary: bool = False, **options: Unpack[Download]
) -> Path:
    """Downloads a model's files into the Hub's cache if necessary, and returns their folder.

    Args:
        given: owner/name, or owner/name@revision, or the address of its page.
        revision: Branch, tag or commit; None: the default branch.
        auxiliary: Whether to download also the discriminator and the other networks that only training needs.

    Raises:
        TypeError: If an option is unknown or of another type.
        ValueError: If the name, the revision or the token is invalid, a file is corrupt, or two revisions are given.
        FileNotFoundError: If it is not a sparsegen model.
        ConnectionError: If the download fails.
    """
    from huggingface_hub import HfApi, snapshot_download

    check_options(options, Download)
    repo_id, revision = with_revision(given, revision)
    check_token(options.get("token"))
    if not isinstance(options.get("subfolder"), str | None):
        raise TypeError(f"a subfolder must be a string, e.g. 'small'; got {options['subfolder']!r}")
    within = f"{subfolder.strip('/')}/" if (subfolder := options.get("subfolder")) else ""
    missed = f"no local folder {repo_id!r}, and it cannot be downloaded from the Hub"
    with _one_sentence(
        f"{repo_id!r} at {revision!r} cannot be downloaded from the Hub" if revision else missed
    ):
        patterns = [within + name for name in [*HUB_FILES, *(AUXILIARY.values() if auxiliary else ())]]
        snapshot = snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=patterns,
            cache_dir=options.get("cache_dir"),
            local_files_only=options.get("local_files_only", False),
            token=options.get("token"),
            force_download=options.get("force_download", False),
        )
        folder = Path(snapshot) / within
        missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
        if missing and options.get("local_files_only"):
            raise OSError("the cache does not hold it: omit local_files_only")
        there = (
            HfApi(token=options.get("token")).list_repo_files(repo_id, revision=revision) if missing else []
        )
    if missing:
        pickles = [name for name in there if name.endswith(PICKLES)]
        found = f"; sparsegen does not open pickles ({', '.join(pickles)})" if pickles else ""
        models = sorted(name.removesuffix(f"/{CONFIG}") for name in there if name.endswith(f"/{CONFIG}"))
        found += f"; it has models in subfolders: {', '.join(models[:5])}" if models else ""
        raise FileNotFoundError(
            f"{(repo_id + '/' + within).rstrip('/')!r} on the Hub is not a sparsegen model: it has no "
            f"{' and no '.join(missing)}{found}"
        )
    for path in folder.iterdir():
        if path.is_file():
            _check_blob(path)
    return folder


def with_revision(given: str, revision: str | None = None) -> tuple[str, str | None]:
    """Splits owner/name@revision, or the address of its page, into owner/name and the revision.

    Raises:
        TypeError: If the revision is not a string.
        ValueError: If a different revision is given, too, or it cannot be the name of one.
    """
    repo_id, at, named = _without_address(given).partition("@")
    if at and not named:
        raise ValueError(
            f"the revision after @ is empty: give a branch, tag or commit, or omit the @; got {given!r}"
        )
    if at and revision not in (None, named):
        raise ValueError(f"{given!r} and the revision {revision!r} name two revisions: give one of them")
    return repo_id, check_revision(named if at else revision)


def check_revision(revision: object) -> str | None:
    """Returns the name of a branch, tag or commit, or None.

    Raises:
        TypeError: If it is neither a string nor None.
        ValueError: If git does not allow it.
    """
    if not isinstance(revision, str | None):
        raise TypeError(f"a revision must be a string; got {revision!r}")
    if revision is not None and (
        not re.fullmatch(r"[\w.+@#=-]+(/[\w.+@#=-]+)*", revision) or ".." in revision or revision[0] in "-."
    ):
        raise ValueError(
            "a revision must be a branch, tag or commit: letters, digits, - _ . + and /, without '..'; "
            f"got {revision!r:.80}"
        )
    return revision


def check_options(options: Mapping[str, object], kind: type) -> None:
    """Raises: TypeError if there is an option that `kind`, a TypedDict, does not have."""
    known = sorted(kind.__optional_keys__ | kind.__required_keys__)  # type: ignore[attr-defined]
    for name in options:
        if name not in known:
            raise TypeError(f"no option {name!r}: there are {known_names(name, known)}")


def check_token(token: object = None) -> None:
    """Checks a token before it is sent. No message shows it.

    Args:
        token: As in `Download`; None and True: that of the login, if any.

    Raises:
        TypeError, ValueError: If it cannot be a token.
    """
    from huggingface_hub import get_token

    if not isinstance(token, str | bool | None):
        raise TypeError(f"a token must be a string, True, False or None; got {type(token).__name__}")
    found = token if isinstance(token, str) else get_token()
    if found is not None and not re.fullmatch(r"[!-~]+", found):
        raise ValueError(
            "the token of the Hub is empty, or has spaces or characters that are not ASCII: copy it again from "
            "https://huggingface.co/settings/tokens"
        )


@dataclass(frozen=True)
class Target:
    """A repository on the Hub that a model is pushed to, as it was before.

    Attributes:
        repo_id: owner/name.
        exists: Whether the repository exists.
        commit: The commit that the push follows; None if there is none.
        branch: Whether the requested branch exists.
        files: The files in it.
        card: Its README.md; None if there is none.
        config: Its config.json; empty if it is not that of a model.
    """

    repo_id: str
    exists: bool = False
    branch: bool = True
    commit: str | None = None
    files: tuple[str, ...] = ()
    card: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


class Upload(TypedDict, total=False):
    """Options of an upload to the Hub, with the meaning that they have in `huggingface_hub`.

    private: Visibility of the repository; default: that of an existing one, else the owner's default.
    revision: Branch to push to, which is created if necessary; default: the main branch.
    token: Token of the Hub; default: that of `hf auth login` or HF_TOKEN.
    create_pr: Open a pull request on the repository, which must exist.
    commit_message: First line of the message of the commit.
    """

    private: bool | None
    revision: str | None
    token: str | None
    create_pr: bool
    commit_message: str


def find_target(repo_id: str, options: Upload) -> Target:
    """Looks at a repository before anything is made for it.

    Args:
        repo_id: owner/name, or a name in the namespace of the token's owner.

    Raises:
        TypeError: If `repo_id` or an option is of another type.
        ValueError: If one is not valid, or the repository has the other visibility.
        ConnectionError: If the Hub refuses or cannot be reached.
    """
    check_id(repo_id)
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import validate_repo_id

    private, token = options.get("private"), options.get("token")
    if not isinstance(private, bool | None):
        raise TypeError(f"private must be True, False or None; got {private!r}")
    revision = check_revision(options.get("revision"))
    check_token(token)
    if options.get("create_pr") and revision not in (None, "main"):
        raise ValueError(f"a pull request is opened on main: omit the revision; got {revision!r}")
    hub = HfApi(token=token)
    with _one_sentence(f"{repo_id!r} cannot be uploaded to the Hub"):
        validate_repo_id(repo_id)
        if not (token or get_token()):
            raise OSError("there is no token; log in (hf auth login), or set HF_TOKEN")
        if "/" not in repo_id:
            repo_id = f"{hub.whoami()['name']}/{repo_id}"
        branch = True
        try:
            about = hub.model_info(repo_id, revision=revision)
        except RevisionNotFoundError:
            about, branch = hub.model_info(repo_id), False
        except RepositoryNotFoundError:
            if options.get("create_pr"):
                raise OSError("a pull request needs an existing repository, and there is none") from None
            return Target(repo_id, branch=revision in (None, "main"))
        files = tuple(each.rfilename for each in about.siblings or ())
        card = None
        if CARD in files:
            path = hub.hf_hub_download(repo_id, CARD, revision=about.sha)
            try:
                card = Path(path).read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
            except UnicodeDecodeError as error:
                raise OSError(f"its {CARD} is not UTF-8 ({error}): correct it on the Hub") from None
        config = (
            _read_config(hub.hf_hub_download(repo_id, CONFIG, revision=about.sha)) if CONFIG in files else {}
        )
    _check_visibility(repo_id, bool(about.private), private)
    return Target(repo_id, True, branch, about.sha, files, card, config)


def _read_config(path: str) -> Mapping[str, Any]:
    """Returns the config of an earlier push; empty if the file is another one."""
    try:
        config = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def push(target: Target, folder: Path, options: Upload) -> str:
    """Uploads the files of a folder as one commit, and returns the URL of the page or of the pull request.

    Files of an earlier push that are not in the folder are removed in the same commit. A repository that was created
    for a failed upload is deleted again.

    Raises:
        ConnectionError: If the upload fails.
    """
    from httpx2 import HTTPError
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    names = sorted(path.name for path in folder.iterdir())
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, folder / name) for name in names
    ]
    operations += [
        CommitOperationDelete(name) for name in sorted(OWN_FILES.difference(names) & set(target.files))
    ]
    hub, revision = HfApi(token=options.get("token")), options.get("revision")
    with _one_sentence(f"{target.repo_id!r} cannot be uploaded to the Hub"):
        page = f"{hub.endpoint}/{target.repo_id}"
        if not target.exists:
            hub.create_repo(target.repo_id, private=options.get("private"))
        try:
            if not target.branch and revision:
                hub.create_branch(target.repo_id, branch=revision, exist_ok=True)
            done = hub.create_commit(
                target.repo_id,
                operations,
                commit_message=options.get("commit_message") or "Upload a sparsegen model",
                revision=revision,
                create_pr=options.get("create_pr", False),
                parent_commit=target.commit,  # a change since then is an error of the Hub, and nothing is overwritten
            )
        except BaseException:
            if not target.exists:
                try:
                    hub.delete_repo(target.repo_id, missing_ok=True)
                except (HTTPError, OSError) as error:  # a warning: the first error is the one to report
                    log.warning(
                        "%r was created for this push, is empty, and could not be removed (%s): delete it on the Hub",
                        target.repo_id,
                        _why(error),
                    )
            raise
    return done.pr_url or page


def check_space(repo_id: str, private: bool | None = None) -> None:
    """Checks before any work whether a Space can be pushed.

    Raises:
        ValueError: If the name is not owner/name, or the Space has the other visibility.
        ConnectionError: If there is no token, or the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
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
    with _one_sentence(f"the Space {repo_id!r} cannot be uploaded to the Hub"):
        try:
            about = HfApi().space_info(repo_id)
        except RepositoryNotFoundError:
            return
    _check_visibility(repo_id, bool(about.private), private)


def push_space(folder: Path, repo_id: str, private: bool | None = None) -> str:
    """Uploads a folder as a Gradio Space, and returns the URL of its page.

    Of an existing Space, the other files in the subfolders of `folder` are removed.

    Args:
        private: Visibility of a new Space; None: the default of its owner.

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


def _check_visibility(repo_id: str, is_private: bool, wanted: bool | None) -> None:
    """Raises: ValueError if a visibility is wanted that an existing repository does not have."""
    if wanted is not None and is_private != wanted:
        now, asked = ("private", "public") if is_private else ("public", "private")
        raise ValueError(
            f"{repo_id!r} exists and is {now}, and the push asks for {asked}: change the visibility in its settings on "
            "the Hub, or do not ask for one; nothing was uploaded"
        )


def may_be_id(given: str) -> bool:
    """Whether a text that is no path may be owner/name, owner/name@revision, or the address of its page."""
    repo_id = _without_address(given).partition("@")[0]
    return repo_id.count("/") == 1 and not repo_id.startswith((".", "/", "~"))


def _without_address(given: str) -> str:
    """Returns owner/name[@revision] for the address of a model's page on the Hub, and another text unchanged."""
    found = re.fullmatch(
        r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<id>[^/?#@]+/[^/?#@]+)(?:/tree/(?P<revision>[^?#]+?))?/?",
        given,
    )
    if not found:
        return given
    return found["id"] + (f"@{found['revision']}" if found["revision"] else "")


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

    if isinstance(error, errors.LocalEntryNotFoundError):
        if error.__cause__ is None:
            return "the cache does not hold it: omit local_files_only"
        if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, and it is not in the cache"
        error = error.__cause__
    reasons = {
        errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE is set",
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

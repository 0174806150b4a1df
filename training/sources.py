"""Image sources: the Hub, parquet files or a folder, opened as rows of encoded images."""

import glob
import logging
import mimetypes
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsegen.common.text import escape_controls

if TYPE_CHECKING:
    import datasets
    import pyarrow.dataset

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SUFFIX_LIST = " ".join(SUFFIXES)
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation"}
ACCEPTED = "a Hub dataset id such as 'cifar10', a .parquet file, or a folder of .parquet or image files"
BLOCK = 256  # rows read at a time


class NoSplitError(ValueError):
    """The source does not have the requested split."""


@dataclass(frozen=True)
class Rows:
    """Encoded images.

    Attributes:
        count: number of rows.
        labels: int64 (count,), all >= 0, or None.
        read: from row numbers to (name, image file) of these rows, in ascending order.
        classes: the names of the labels 0, 1, …; empty if unknown.
        unlabeled: the reason why expected labels are missing; else empty.
    """

    count: int
    labels: np.ndarray | None
    read: Callable[[Collection[int]], Iterator[tuple[str, bytes]]]
    classes: tuple[str, ...] = ()
    unlabeled: str = ""


@dataclass(frozen=True)
class ImageSource:
    """A source before it is read: its name, a value that identifies its content, and a function that opens it."""

    name: str
    identity: Any
    open: Callable[[], Rows]


def find_source(source: str | Path, split: str) -> ImageSource:
    """Finds out whether a source is a file, a folder or a Hub id.

    Choice: an existing path takes precedence over a Hub id of the same name.
    """
    text = str(source)
    path = os.path.expanduser(text)
    if os.path.isfile(path):  # False, not an error, for an invalid path
        if not path.lower().endswith(".parquet"):
            raise ValueError(f"{text} is neither a .parquet file nor a folder; give {ACCEPTED}")
        return ImageSource(text, _stamps([Path(path)]), partial(_parquet_rows, [path], text))
    if os.path.isdir(path):
        return _in_folder(Path(path), split, text)
    if isinstance(source, Path) or _looks_like_path(text):
        raise FileNotFoundError(f"no file or folder {text!r}; give {ACCEPTED}")
    return _on_hub(text, split)


def _looks_like_path(text: str) -> bool:
    ends = (".parquet", "/", *SUFFIXES)
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or text.lower().endswith(ends)


def _stamps(files: list[Path]) -> list[tuple[str, int, int]]:
    """Returns path, size and modification time of each file."""
    return [(str(file.absolute()), (about := file.stat()).st_size, about.st_mtime_ns) for file in files]


# ---- folders ----


def _in_folder(folder: Path, split: str, name: str) -> ImageSource:
    if files := _files(folder, (".parquet",)):
        if others := _files(folder, SUFFIXES):
            log.warning(
                "the .parquet files of %s are read; its %d image files are ignored, e.g. %s",
                name,
                len(others),
                others[0],
            )
        return ImageSource(name, _stamps(files), lambda: _parquet_rows(_of_split(folder, split), name))
    root = _split_folder(folder, split)
    found = _files(root, ("",))
    if unread := [file for file in found if _is_unread_image(file)]:
        log.warning(
            "%d image files of %s are ignored, e.g. %s: only %s are read",
            len(unread),
            name,
            unread[0],
            SUFFIX_LIST,
        )
    if files := [file for file in found if file.name.lower().endswith(SUFFIXES)]:
        as_split = f"its folder {root.name} is read as a split" if root != folder else ""
        return ImageSource(name, _stamps(files), partial(_folder_rows, root, files, as_split))
    raise ValueError(f"no images in {root} or below it (looked for {SUFFIX_LIST} and .parquet)")


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Lists the files below a folder by suffix, sorted; follows links, ignores hidden files and folders."""
    names = sorted(Path(name).as_posix() for name in glob.iglob("**", root_dir=folder, recursive=True))
    files = (folder / name for name in names if name.lower().endswith(suffixes))
    return [file for file in files if file.is_file()]


def _is_unread_image(file: Path) -> bool:
    kind, _ = mimetypes.guess_type(file.name, strict=False)
    return kind is not None and kind.startswith("image/") and not file.name.lower().endswith(SUFFIXES)


def _split_folder(folder: Path, split: str) -> Path:
    """Returns folder/SPLIT if all subfolders are named like splits; else the folder, which is "train"."""
    inside = {child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")}
    if split in inside and inside <= SPLITS:
        return folder / split
    if split != "train":
        raise NoSplitError(f"no split {split!r} in {folder}: its images are the split 'train'")
    return folder


def _folder_rows(root: Path, files: list[Path], as_split: str) -> Rows:
    """Returns rows of image files. Labels are their folders, if all files lie one level deep in at least two folders.

    Folders are numbered by name, or by value if all names are numbers.
    """
    names = [file.relative_to(root).as_posix() for file in files]
    found = {name.partition("/")[0] for name in names if "/" in name}
    classes = sorted(found, key=(lambda name: (int(name), name)) if all(map(str.isdecimal, found)) else None)

    def read(chosen: Collection[int]) -> Iterator[tuple[str, bytes]]:
        return ((names[row], files[row].read_bytes()) for row in sorted(chosen))

    unlabeled = _why_unlabeled(names, classes, as_split)
    if unlabeled or not classes:
        return Rows(len(files), None, read, unlabeled=unlabeled)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [numbers[name.partition("/")[0]] for name in names]
    return Rows(len(files), np.array(labels, np.int64), read, tuple(map(escape_controls, classes)))


def _why_unlabeled(names: list[str], classes: list[str], as_split: str) -> str:
    """Returns the reason why folders are not classes; empty if they are, or if there are none."""
    if not classes:
        return as_split
    for name in names:
        if name.count("/") != 1:
            return f"{name} lies {'deeper than' if '/' in name else 'outside'} a class folder"
    return f"{classes[0]} is the only class folder; at least two are needed" if len(classes) == 1 else ""


# ---- parquet and the Hub ----


def _of_split(folder: Path, split: str) -> list[str]:
    """Returns the parquet files of a split, found by name; without split names all files are "train"."""
    from datasets.data_files import DataFilesDict, get_data_patterns

    literal = glob.escape(str(folder.absolute()))
    files = DataFilesDict.from_patterns(get_data_patterns(literal), literal, allowed_extensions=[".parquet"])
    if split not in files:
        raise NoSplitError(f"no split {split!r} in {folder}; it has {', '.join(map(str, files))}")
    return list(files[split])


def _parquet_rows(files: list[str], name: str) -> Rows:
    import pyarrow.dataset

    return _table_rows(pyarrow.dataset.dataset(files, format="parquet"), name)


def _on_hub(name: str, split: str) -> ImageSource:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ValueError(f"{name!r} is neither a path nor a Hub dataset id; give {ACCEPTED}") from None
    dataset = _download(name, split)
    return ImageSource(name, ["hub", name, dataset._fingerprint], partial(_hub_rows, dataset, name))


def _download(name: str, split: str) -> "datasets.Dataset":
    import datasets
    from httpx2 import TransportError
    from huggingface_hub import HfApi, constants, errors

    try:
        if not constants.HF_HUB_OFFLINE:  # `load_dataset` would retry for 23 s
            HfApi().dataset_info(name, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        return datasets.load_dataset(name, split=split)
    except (errors.RepositoryNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
        raise FileNotFoundError(
            f"{name!r} is not a file, a folder or an accessible Hub dataset "
            "(if it is private or gated, log in: hf auth login)"
        ) from error
    except (ConnectionError, TransportError) as error:
        raise ConnectionError(
            f"no file or folder {name!r}, and the Hugging Face Hub cannot be reached to look for a dataset of this "
            "name: go online, set HF_HUB_OFFLINE=1 to use an earlier download, or give a parquet file or a "
            "folder"
        ) from error
    except (ValueError, RuntimeError) as error:
        kind = NoSplitError if str(error).startswith("Unknown split") else ValueError
        raise kind(f"cannot open the Hub dataset {name!r}, split {split!r}: {error}") from error


def _hub_rows(dataset: "datasets.Dataset", name: str) -> Rows:
    import pyarrow.dataset

    return _table_rows(pyarrow.dataset.dataset(dataset.data.table), name)


def _table_rows(table: "pyarrow.dataset.Dataset", name: str) -> Rows:
    image, label, classes = _columns(table.schema, name)

    def read(chosen: Collection[int]) -> Iterator[tuple[str, bytes]]:
        wanted = set(chosen)
        batches = table.to_batches(columns=[image], batch_size=BLOCK)
        cells = (cell for batch in batches for cell in batch.column(0))
        with _damage_named(name):
            for row, cell in enumerate(islice(cells, max(wanted, default=-1) + 1)):
                if row in wanted:
                    yield _name_and_file(row, cell.as_py())

    return Rows(
        table.count_rows(),
        _labels(table, label, name) if label else None,
        read,
        tuple(map(escape_controls, classes)),
    )


def _columns(schema: "pyarrow.Schema", name: str) -> tuple[str, str | None, tuple[str, ...]]:
    """Finds the image column by its type, and the label column, if any, by type and name, with its classes."""
    import datasets

    features = datasets.Features.from_arrow_schema(schema)
    encoded = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image) or kind == encoded]
    if len(images) != 1:
        listed = ", ".join(f"{key}: {kind}" for key, kind in features.items())
        what = f"{len(images)} image columns, {', '.join(images)}" if images else "no image column"
        raise ValueError(f"{name} has {what}; it must have exactly one, of type Image. Its columns: {listed}")
    labels = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if isinstance(features.get("label"), datasets.Value) and "int" in features["label"].dtype:
        labels.append("label")
    labels.sort(key=lambda key: key != "label")
    if len(labels) > 1:
        log.info("%s has the label columns %s; using %s", name, ", ".join(labels), labels[0])
    label = labels[0] if labels else None
    return images[0], label, tuple(getattr(features.get(label), "names", None) or ())


def _labels(table: "pyarrow.dataset.Dataset", column: str, name: str) -> np.ndarray | None:
    with _damage_named(name):
        cells = table.to_table(columns=[column])[column]
    labels = cells.to_numpy()
    if cells.null_count or (labels < 0).any():  # hidden labels of test sets are null or -1
        log.warning("the labels of %s are not used: some are missing or negative", name)
        return None
    return labels.astype(np.int64)


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """Adds the name of the source to pyarrow's "Unexpected end of stream"."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error}") from error


def _name_and_file(row: int, cell: dict[str, Any] | None) -> tuple[str, bytes]:
    """Returns the row number with the recorded file name, and the image file; empty if there is none."""
    path, file = (cell["path"], cell["bytes"]) if cell else (None, None)
    if file is None and path and os.path.isfile(path):
        file = Path(path).read_bytes()
    return f"row {row} ({path})" if path else f"row {row}", file or b""

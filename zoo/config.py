"""The config.json of a checkpoint, read and checked without torch."""

import json
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NoReturn

from sparsegen.common.text import check_text
from sparsegen.zoo.bundled import CONFIG

FORMAT = 1
ENTRIES = {  # besides the format
    "model": str,
    "architecture": str,
    "regularizer": str,
    "recipe": str,
    "atoms": int,
    "k": list,
    "image_size": int,
    "classes": int,
    "license": str,
    "class_names": list,
    "training": dict,
    "evaluation": dict,
}
LONGEST_LICENSE = 60  # characters
LARGEST = 2**64  # of integers: seeds are smaller
OPTIONAL = ("recipe", "image_size", "classes", "license", "class_names", "training", "evaluation")
# Entries that cards, tables and the page read. Others may be of any type.
TRAINING = {"data": str | None, "steps": int, "start_from": str | None, "base_model": str | None}
EVALUATION = {
    "metric": str,
    "distance": Real,
    "distances": dict,
    "data": str | None,
    "count": int | None,
    "density": list | None,
}
OPTIONAL_EVALUATION = ("distances", "data", "count", "density")  # e.g. missing in older evaluations


def read_entries(folder: Path) -> dict[str, Any]:
    """Reads a checkpoint's config.json and checks the presence and types of its entries.

    Raises:
        FileNotFoundError, ValueError: Naming the file, the entry and the expected value.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a checkpoint: it has no {CONFIG}")
    try:
        config = json.loads(
            path.read_text(encoding="utf-8"),
            parse_constant=_no_number,
            parse_float=_finite,
            parse_int=_integer,
        )
        if type(version := config["format"]) is not int or version < 1:
            raise ValueError(f"its format is {version!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a sparsegen config ({error}); expected JSON with a format number"
        ) from None
    if version > FORMAT:
        raise ValueError(
            f"{path} has format {version}, this sparsegen reads up to {FORMAT}: upgrade sparsegen"
        )
    try:
        _check(config, ENTRIES, OPTIONAL)
        if config.get("evaluation"):
            _check(config["evaluation"], EVALUATION, OPTIONAL_EVALUATION, within="evaluation.")
        _check(config.get("training", {}), TRAINING, tuple(TRAINING), within="training.")
        if not all(type(k) is int for k in config["k"]):
            raise TypeError(f"k must be a list of integers, one per projected level; got {config['k']!r}")
        check_class_names(config.get("class_names", []))
        if "license" in config:
            check_license(config["license"])
        _check_texts(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return config


def check_license(license_id: object) -> str:
    """Returns the license. Raises: TypeError, ValueError unless it is a text of one line, of at most 60 characters."""
    return check_text("license", license_id, LONGEST_LICENSE)


def check_class_names(names: Sequence[object]) -> None:
    """Raises: TypeError, ValueError unless these are distinct names of one line."""
    for name in names:
        check_text("each of the class_names", name)
    if len(set(names)) < len(names):
        raise ValueError(f"class_names must be distinct names; got {names!r:.200}")


def _check_texts(value: object, within: str = "") -> None:
    """Raises: ValueError if a text, at any depth, is too long or has control characters."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            check_text(f"a name of an entry{' in ' + within if within else ''}", name)
            _check_texts(part, f"{within}.{name}" if within else name)
    elif isinstance(value, list):
        for part in value:
            _check_texts(part, within)
    elif isinstance(value, str) and value:
        check_text(within, value)


def _check(
    entries: Mapping[str, object], kinds: Mapping[str, Any], optional: Sequence[str] = (), within: str = ""
) -> None:
    for name, kind in kinds.items():
        if name not in entries:
            if name not in optional:
                raise ValueError(f"the entry {within}{name} is missing")
        elif not isinstance(value := entries[name], kind) or isinstance(value, bool):
            raise TypeError(
                f"{within}{name} must be of type {getattr(kind, '__name__', kind)}; got {value!r:.80}"
            )


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _integer(text: str) -> int:
    if len(text) > 20 or abs(number := int(text)) >= LARGEST:
        raise ValueError(f"{text:.30} is too large")
    return number


def _finite(text: str) -> float:
    return number if math.isfinite(number := float(text)) else _no_number(text)

"""Registration of architectures and regularizers of other packages, by a call or an entry point.

An installed package lists one of its modules in the entry point group `sparsegen`. The module registers its models
when it is imported; sparsegen imports it when an unknown name is requested:

    [project.entry-points.sparsegen]
    mine = "my_package.models"
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import TypeVar

from sparsegen.common.names import known_names
from sparsegen.zoo.architectures import ARCHITECTURES, Architecture
from sparsegen.zoo.regularizers import REGULARIZERS, Regularizer

GROUP = "sparsegen"
Entry = TypeVar("Entry")


def register_architecture(name: str, architecture: Architecture) -> None:
    """Adds an architecture. Its models can then be built, trained, exported, served and pushed by name.

    Args:
        name: Lower-case letters, digits and underscores.
        architecture: Its networks. Its `recipe` names the architecture whose training recipe is used; register a recipe
            of its own with `sparsegen.training.recipes.register_recipe`.

    Raises:
        TypeError, ValueError: If the name is invalid or belongs to another architecture.

    >>> import dataclasses, sparsegen
    >>> biggan = sparsegen.get_architecture("biggan")
    >>> narrow = dataclasses.replace(biggan, atoms=32, recipe="biggan")
    >>> sparsegen.register_architecture("narrow_biggan", narrow)
    >>> sparsegen.create_model("narrow_biggan", "ml").spec.name
    'narrow_biggan.ml'
    """
    _register("architecture", name, architecture, Architecture, ARCHITECTURES)


def register_regularizer(name: str, regularizer: Regularizer) -> None:
    """Adds a regularizer; see `register_architecture`.

    Register a penalty in the loss with `sparsegen.training.recipes.register_penalty`.

    Raises:
        TypeError, ValueError: If the name is invalid or belongs to another regularizer.

    >>> import sparsegen
    >>> half = sparsegen.Regularizer(sparsegen.NeedleProjection, levels=1, density=0.5)
    >>> sparsegen.register_regularizer("half", half)
    >>> sparsegen.create_model("dcgan", "half", width=8).spec.k
    (4,)
    """
    _register("regularizer", name, regularizer, Regularizer, REGULARIZERS)


def get_architecture(name: str) -> Architecture:
    """Returns an architecture by its name.

    Raises:
        ValueError: Listing the known names.
    """
    return known("architecture", name, ARCHITECTURES)


def get_regularizer(name: str) -> Regularizer:
    """Returns a regularizer by its name.

    Raises:
        ValueError: Listing the known names.
    """
    return known("regularizer", name, REGULARIZERS)


def list_architectures() -> list[str]:
    """Lists the architectures that `create_model` accepts, those of other packages last.

    >>> import sparsegen
    >>> sparsegen.list_architectures()[:3]
    ['dcgan', 'cgan', 'wgan_gp']
    """
    load_plugins()
    return list(ARCHITECTURES)


def list_regularizers() -> list[str]:
    """Lists the regularizers that `create_model` accepts, those of other packages last.

    >>> import sparsegen
    >>> sparsegen.list_regularizers()[:5]
    ['baseline', 'l0_inf', 'l0', 'l1', 'ml']
    """
    load_plugins()
    return list(REGULARIZERS)


def known(what: str, name: str, table: Mapping[str, Entry]) -> Entry:
    """Looks up a name, including those of other packages.

    Raises:
        ValueError: Listing the known names.
    """
    if name not in table:
        load_plugins()
    if name not in table:
        raise ValueError(f"no {what} {name!r}: there are {known_names(name, table)}")
    return table[name]


@cache
def load_plugins() -> None:
    """Imports the modules that other packages list in the entry point group `sparsegen`."""
    for entry in entry_points(group=GROUP):
        entry.load()


def _register(what: str, name: str, value: Entry, kind: type[Entry], table: dict[str, Entry]) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"the {what} {name!r} must be of type {kind.__name__}; got {value!r}")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"the name of a {what} consists of lower-case letters, digits and underscores and starts with a letter; "
            f"got {name!r}"
        )
    if table.setdefault(name, value) != value:
        raise ValueError(f"another {what} {name!r} exists already: choose another name")

"""Architectures and regularizers of other packages: added to the tables, by a call or by an entry point.

A package that is installed beside sparsegen names a module of its own under the entry point group `sparsegen`; the
module registers when it is imported, which is when a name is asked for that is not known yet:

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
    """Adds an architecture, so that models of it are built, trained, exported, served and pushed by its name.

    Args:
        name: Lower-case letters, digits and underscores.
        architecture: Its networks. Its `recipe` names the architecture that it is trained as; a recipe of its own is
            registered with `sparsegen.training.recipes.register_recipe`.

    Raises: TypeError, ValueError if there can be no such name, or another architecture has it.

    >>> import dataclasses, sparsegen
    >>> biggan = sparsegen.get_architecture("biggan")
    >>> narrow = dataclasses.replace(biggan, atoms=32, recipe="biggan")
    >>> sparsegen.register_architecture("narrow_biggan", narrow)
    >>> sparsegen.create_model("narrow_biggan", "ml").spec.name
    'narrow_biggan.ml'
    """
    _register("architecture", name, architecture, Architecture, ARCHITECTURES)


def register_regularizer(name: str, regularizer: Regularizer) -> None:
    """Adds a regularizer, as `register_architecture` adds an architecture.

    A penalty that it adds to the loss is registered with `sparsegen.training.recipes.register_penalty`.

    Raises: TypeError, ValueError if there can be no such name, or another regularizer has it.

    >>> import sparsegen
    >>> half = sparsegen.Regularizer(sparsegen.NeedleProjection, levels=1, density=0.5)
    >>> sparsegen.register_regularizer("half", half)
    >>> sparsegen.create_model("dcgan", "half", width=8).spec.k
    (4,)
    """
    _register("regularizer", name, regularizer, Regularizer, REGULARIZERS)


def get_architecture(name: str) -> Architecture:
    """Returns an architecture by its name.

    Raises: ValueError listing what is known.
    """
    return known("architecture", name, ARCHITECTURES)


def get_regularizer(name: str) -> Regularizer:
    """Returns a regularizer by its name.

    Raises: ValueError listing what is known.
    """
    return known("regularizer", name, REGULARIZERS)


def list_architectures() -> list[str]:
    """The names that `create_model` takes for an architecture, those of other packages last.

    >>> import sparsegen
    >>> sparsegen.list_architectures()[:3]
    ['dcgan', 'cgan', 'wgan_gp']
    """
    load_plugins()
    return list(ARCHITECTURES)


def list_regularizers() -> list[str]:
    """The names that `create_model` takes for a regularizer, those of other packages last.

    >>> import sparsegen
    >>> sparsegen.list_regularizers()[:5]
    ['baseline', 'l0_inf', 'l0', 'l1', 'ml']
    """
    load_plugins()
    return list(REGULARIZERS)


def known(what: str, name: str, table: Mapping[str, Entry]) -> Entry:
    """Looks a name up, among those of other packages, too.

    Raises: ValueError listing what is known.
    """
    if name not in table:
        load_plugins()
    if name not in table:
        raise ValueError(f"no {what} {name!r}: there are {known_names(name, table)}")
    return table[name]


@cache
def load_plugins() -> None:
    """Imports the modules that other packages name under the entry point group `sparsegen`."""
    for entry in entry_points(group=GROUP):
        entry.load()


def _register(what: str, name: str, value: Entry, kind: type[Entry], table: dict[str, Entry]) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"the {what} {name!r} is to be of {kind.__name__}; got {value!r}")
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            f"names of {what}s have lower-case letters, digits and underscores, and begin with a letter; "
            f"got {name!r}"
        )
    if table.setdefault(name, value) != value:
        raise ValueError(f"there is another {what} {name!r} already: choose another name")

"""Gives a conditional network other classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def class_mixture(names: Sequence[str], known: Sequence[str], classes: int, known_classes: int) -> Tensor:
    """Returns the old classes that each new class starts from, as weights that sum to 1.

    A class with a known name starts from the old class of that name. Of several classes, each other one takes the
    lowest unused number, those without a name first. A single class, and classes for which no number is left, start
    from the mean of all old classes.

    Args:
        names: Names of the new classes 0, 1, …, at most `classes`; empty if unknown.
        known: Names of the old classes.
        classes, known_classes: Number of new and of old classes.

    Shape: (classes, known_classes).
    """
    named = list(names) + [None] * (classes - len(names))
    found = [known.index(name) if name is not None and name in known else None for name in named]
    unnamed_first = [*range(len(known), known_classes), *range(len(known))]
    free = [number for number in unnamed_first if number not in found] if known_classes > 1 < classes else []
    mixture = torch.full((classes, known_classes), 1 / known_classes)
    for row, number in enumerate(found):
        if number is None and free:
            number = free.pop(0)
        if number is not None:
            mixture[row] = F.one_hot(torch.tensor(number), known_classes)
    return mixture


@torch.no_grad()
def transfer(source: nn.Module, network: nn.Module, mixture: Tensor) -> None:
    """Copies the weights of a conditional network into another one that differs in the number of classes only.

    Labels enter through embeddings (with singular vectors under spectral norm) or as additional input channels of the
    first convolution.

    Args:
        mixture: Of the old classes, for each new class; see `class_mixture`.

    Shape: mixture (classes of `network`, classes of `source`).
    """
    weights = dict(source.state_dict())
    embeddings = [name for name, part in network.named_modules() if isinstance(part, nn.Embedding)]
    for name in embeddings:
        for key in [key for key in weights if key.startswith(f"{name}.")]:
            if key.endswith("_u"):  # the singular vector of the classes; that of the channels remains
                mixed = mixture @ weights[key]
                weights[key] = mixed if len(mixed) == len(weights[key]) else F.normalize(mixed, dim=0)
            elif not key.endswith("_v"):
                weights[key] = mixture @ weights[key]
    if not embeddings:
        name, first = next(
            (name, part)
            for name, part in source.named_modules()
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)
        )
        axis = 0 if isinstance(first, nn.ConvTranspose2d) else 1
        inputs = weights[f"{name}.weight"].movedim(axis, 0)
        features, labels = inputs.split([len(inputs) - mixture.shape[1], mixture.shape[1]])
        mixed = torch.cat([features, torch.tensordot(mixture, labels, 1)])
        weights[f"{name}.weight"] = mixed.movedim(0, axis)
    network.load_state_dict(weights)

"""Reorders the classes of a conditional network."""

from collections.abc import Sequence

import torch
from torch import nn


def class_permutation(names: Sequence[str], known: Sequence[str], classes: int) -> list[int]:
    """Returns the old number of each new class, then the old numbers that remain.

    A class with a known name keeps its weights. Another class takes the lowest unused number, those without a name
    first.

    Args:
        names: Names of the new classes 0, 1, …, at most `classes`.
        known: Names of the old classes.

    Returns: A permutation of 0 to `classes` - 1.
    """
    found = [known.index(name) if name in known else None for name in names]
    free = [number for number in [*range(len(known), classes), *range(len(known))] if number not in found]
    order = [free.pop(0) if number is None else number for number in found]
    return order + sorted(free)


@torch.no_grad()
def renumber(network: nn.Module, order: Sequence[int]) -> None:
    """Gives class i of a conditional network the weights of its old class order[i], in place.

    Labels enter through embeddings (with singular vectors under spectral norm) or as additional input channels of the
    first convolution.
    """
    rows = torch.tensor(order)
    embeddings = [part for part in network.modules() if isinstance(part, nn.Embedding)]
    for embedding in embeddings:
        for key, tensor in embedding.state_dict().items():
            if not key.endswith("_v"):  # the singular vector of the channels
                tensor.copy_(tensor[rows])
    if not embeddings:
        first = next(part for part in network.modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d))
        inputs = first.weight.movedim(0 if isinstance(first, nn.ConvTranspose2d) else 1, 0)
        inputs[-len(order) :] = inputs[-len(order) :][rows].clone()

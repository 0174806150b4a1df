"""How a conditional network knows its classes, where they are to be called by other numbers."""

from collections.abc import Sequence

import torch
from torch import nn


def class_permutation(names: Sequence[str], known: Sequence[str], classes: int) -> list[int]:
    """For each class that there will be, and then for those that nothing is named after, what number it had.

    A class of a known name keeps what was learned of it; another takes the lowest number that is left, one without a
    name first.

    Args:
        names: Of the classes 0, 1, … that there will be, `classes` at most.
        known: Of the classes as they were.

    Returns: A permutation of 0 to `classes` - 1.
    """
    found = [known.index(name) if name in known else None for name in names]
    free = [number for number in [*range(len(known), classes), *range(len(known))] if number not in found]
    order = [free.pop(0) if number is None else number for number in found]
    return order + sorted(free)


@torch.no_grad()
def renumber(network: nn.Module, order: Sequence[int]) -> None:
    """Has a conditional network call the class i what it called order[i] until now, in place.

    Labels enter by embeddings, with their singular vectors where those are normalized, or beside the input of the
    first convolution.
    """
    order = torch.tensor(order)
    embeddings = [part for part in network.modules() if isinstance(part, nn.Embedding)]
    for embedding in embeddings:
        for key, tensor in embedding.state_dict().items():
            if not key.endswith("_v"):  # the singular vector of the channels
                tensor.copy_(tensor[order])
    if not embeddings:
        first = next(part for part in network.modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d))
        inputs = first.weight.movedim(0 if isinstance(first, nn.ConvTranspose2d) else 1, 0)
        inputs[-len(order) :] = inputs[-len(order) :][order].clone()

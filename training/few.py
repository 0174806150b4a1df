"""What a run adapts to its images; each adaptation is announced in a notice.

Few images get the projected recipe, augmentation, more evaluations and an early end.
"""

import logging
from dataclasses import replace

import torch

from sparsegen.training.data import Images, fingerprint
from sparsegen.training.recipes import Recipe
from sparsegen.zoo.spec import RECIPES, ModelSpec

logger = logging.getLogger(__name__)

FEW = 5_000  # images; a tenth of CIFAR-10, for which Zhao et al. (2020) use DiffAugment
PROJECTED = RECIPES[1]
STEPS, EVALUATIONS, PATIENCE, WARM_UP = 2_000, 20, 5, 100
LEAST_STEPS = 50  # between evaluations, since one takes as long as about 50 steps


def are_few(images: Images) -> bool:
    return len(images) < FEW


def with_recipe(spec: ModelSpec, images: Images) -> ModelSpec:
    """Returns the model with the projected recipe, which suits few images."""
    logger.warning(
        "%s has %d images, fewer than %s: they are trained by the projected recipe (%s.paper keeps the recipe of the "
        "paper)",
        *(images.name, len(images), f"{FEW:,}", spec.name),
    )
    return replace(spec, recipe=PROJECTED)


def with_one_class(images: Images, name: str) -> Images:
    """Returns images without labels as images of one class."""
    logger.warning("%s has no labels: all its images are of one class, %r", images.name, name)
    labels = torch.zeros(len(images), dtype=torch.int64)
    return replace(
        images, labels=labels, classes=(name,), unlabeled="", fingerprint=fingerprint(images.pixels, labels)
    )


def batch_size(wanted: int, images: Images, processes: int) -> int:
    """Returns the recipe's batch size, or the largest below it for these images and processes."""
    size = min(wanted, len(images)) // processes * processes
    if size == wanted or size < 2:  # the loader explains the second
        return wanted
    given = (
        f"{images.name} has {len(images)} images"
        if len(images) < wanted
        else f"there are {processes} processes"
    )
    logger.warning("%s, so a batch has %d, not %d", given, size, wanted)
    return size


def augments(images: Images, recipe: Recipe) -> bool:
    """Returns whether the discriminator's inputs are augmented, because images are few and the recipe does not."""
    if not are_few(images) or recipe == recipe.augmented():
        return False
    logger.warning(
        "%s has %d images, fewer than %s: the discriminator sees them augmented (DiffAugment)",
        *(images.name, len(images), f"{FEW:,}"),
    )
    return True

"""The training step on a device: it does not wait for the device, and it can be made deterministic."""

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from sparsegen.training.data import ImageLoader, Images
from sparsegen.training.loop import Networks, train
from sparsegen.training.projected import classifier_features
from sparsegen.training.recipes import RECIPES, recipe_of
from sparsegen.zoo.spec import ModelSpec

MODELS = [
    *(f"{architecture}-4.ml" for architecture in RECIPES),
    "dcgan-4.l1",
    "dcgan-4.l0",
    "cgan-4.ml.projected",
]


class Reads(TorchDispatchMode):
    """Counts the reads of a tensor's value by the host, each of which waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.count += 1
        return op(*args, **(kwargs or {}))


def steps_of(name: str, steps: int, measure_every: int):
    spec = ModelSpec.parse(name)
    recipe = recipe_of(spec, features=classifier_features() if spec.recipe == "projected" else None)
    pixels = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8)
    batches = ImageLoader(Images(pixels, torch.arange(24) % 10, "noise", "0"), 4, seed=0)
    networks = Networks(spec, recipe, seed=0)
    accelerator = Accelerator(cpu=True)
    return train(
        networks, recipe, batches, accelerator, seed=0, start=0, steps=steps, measure_every=measure_every
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_step_reads_nothing_from_the_device_unless_it_is_measured(name: str) -> None:
    loop = steps_of(name, steps=5, measure_every=2)
    reads = []
    for _ in range(4):
        with Reads() as counter:
            next(loop)
        reads.append(counter.count)
    assert reads[0] == reads[2] == 0, reads


def test_a_read_is_counted() -> None:
    with Reads() as counter:
        torch.ones(2).sum().item()
        bool(torch.ones(2).isfinite().all())
    assert counter.count == 2

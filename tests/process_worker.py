"""Trains tiny models with SGD. Under torchrun, `process_worker.py FOLDER NAME...` writes their states.

SGD, because Adam turns gradients that are nothing but rounding into whole steps.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sparsegen.training.data import ImageLoader, Images
from sparsegen.training.loop import Networks, TrainingStep, train
from sparsegen.training.processes import is_first_process, join_processes, open_accelerator
from sparsegen.training.projected import classifier_features
from sparsegen.training.recipes import recipe_of
from sparsegen.zoo.spec import ModelSpec

BATCH, STEPS = 4, 3
# Learning rates, at which each model is far from diverging, so that rounding errors do not grow.
RATES = {
    "dcgan-4.l1": 1e-3,  # batch norm in both networks
    "msgan-4.l0": 1e-3,  # two generated images per real one, a loss of means
    "wgan_gp-4.ml": 2e-2,  # gradient penalty
    "wgan_gp_resnet-4.baseline": 1e-3,
    "ssgan-4.ml": 2e-2,  # three networks, losses of means, random rotations, gradient penalty
    "biggan-4.ml": 1e-3,  # conditional batch norm, spectral norm
    "sagan-4.l0_inf": 1e-3,
    "diffcr_biggan-4.l0": 1e-5,  # random augmentations
    "dcgan-4.ml.projected": 1e-3,  # a second discriminator on a frozen network
}


def trained(name: str, steps: int = STEPS) -> tuple[dict[str, Tensor], dict[str, Tensor], TrainingStep]:
    """Returns the state of all networks before and after some steps, and the last step."""
    spec = ModelSpec.parse(name)
    recipe = recipe_of(spec, features=classifier_features() if spec.recipe == "projected" else None)
    sgd = partial(torch.optim.SGD, lr=RATES[name])
    recipe = replace(recipe, phases=tuple(replace(phase, optimizer=sgd) for phase in recipe.phases))
    accelerator = open_accelerator(torch.device("cpu"), "no")
    pixels = torch.randint(
        0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    batches = ImageLoader(
        Images(pixels, torch.arange(24) % 10, "noise", "0"),
        *(BATCH, 0, True, accelerator.process_index, accelerator.num_processes),
    )
    networks = Networks(spec, recipe, seed=0)
    before = {key: value.clone() for key, value in networks.state().items()}
    loop = train(networks, recipe, batches, accelerator, seed=0, start=0, steps=steps, measure_every=steps)
    *_, last = loop
    return before, networks.state(), last


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    join_processes("cpu")
    for name in names:
        _, state, last = trained(name)
        assert last.metrics is not None
        measures = {f"measured.{key}": torch.tensor(value) for key, value in last.metrics["losses"].items()}
        measures["measured.density"] = torch.tensor(last.metrics["density"])
        if is_first_process():
            save_file(state | measures, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

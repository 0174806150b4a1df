"""The training step on a device: it does not wait for the device, and it can be made deterministic."""

import os
from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sparsegen.training import processes
from sparsegen.training.data import ImageLoader, Images
from sparsegen.training.deterministic import WORKSPACE, deterministic_algorithms
from sparsegen.training.loop import Networks, TrainingStep, train
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


def steps_of(
    name: str,
    steps: int,
    measure_every: int,
    accelerator: Accelerator | None = None,
    device: str = "cpu",
    start: int = 0,
    compiled: bool = False,
) -> Iterator[TrainingStep]:
    spec = ModelSpec.parse(name)
    recipe = recipe_of(spec, features=classifier_features() if spec.recipe == "projected" else None)
    pixels = torch.randint(
        0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    batches = ImageLoader(Images(pixels, torch.arange(24) % 10, "noise", "0"), 4, seed=0, flip=False)
    with torch.device(device):
        networks = Networks(spec, recipe, 0, device)
    if compiled:
        names = networks.state().keys()
        networks.compile()
        assert networks.state().keys() == names
    accelerator = accelerator or Accelerator(cpu=True)
    return train(
        networks, recipe, batches, accelerator, seed=0, start=start, steps=steps, measure_every=measure_every
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_step_reads_nothing_from_the_device_unless_it_is_measured(name: str) -> None:
    loop = steps_of(name, steps=7, measure_every=2, start=1)
    reads = {}
    for _ in range(5):
        with Reads() as counter:
            step = next(loop)
        if step.metrics is None:
            reads[step.step] = counter.count
    assert reads == {3: 0, 5: 0}


def test_a_read_is_counted() -> None:
    with Reads() as counter:
        torch.ones(2).sum().item()
        bool(torch.ones(2).isfinite().all())
    assert counter.count == 2


@pytest.mark.parametrize("name", MODELS[:-1])  # the frozen network's weights cannot be read as fake ones
def test_a_step_mixes_no_devices_and_does_not_synchronize_a_gpu(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs steps on a fake GPU, without the backward passes, which need the driver."""
    monkeypatch.setattr(processes, "PINNED", ())
    monkeypatch.setattr(nn.Module, "to", lambda self, *_, **__: self)  # fake weights are made on the GPU
    monkeypatch.setattr(torch.autograd, "grad", lambda _, inputs, **__: [torch.zeros_like(inputs)])
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator, "backward", lambda loss: None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        loop = steps_of(name, steps=5, measure_every=5, accelerator=accelerator, device="cuda", start=1)
        for _ in range(2):
            next(loop)


def test_deterministic_algorithms_are_set_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with deterministic_algorithms():
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == WORKSPACE
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark
    with deterministic_algorithms(False):
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("name", ["ssgan-4.ml", "diffcr_biggan-4.l0", "cgan-4.ml.projected"])
def test_deterministic_steps_on_a_cpu_are_the_usual_ones(name: str) -> None:
    losses = []
    for enabled in (False, True):
        with deterministic_algorithms(enabled):
            losses.append([step.metrics["losses"] for step in steps_of(name, steps=2, measure_every=1)])
    assert losses[0] == losses[1]


def test_a_compiled_generator_takes_the_same_steps() -> None:
    found = [
        [step.metrics["losses"] for step in steps_of("dcgan-4.ml", 2, measure_every=1, compiled=compiled)]
        for compiled in (False, True)
    ]
    assert found[1] == [pytest.approx(losses, rel=1e-3) for losses in found[0]]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0

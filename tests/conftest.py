"""Shared by all tests: one thread, no network, private caches, tiny networks."""

import os

# Before torch and the Hub's client are imported, since both read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["BENTOML_DO_NOT_TRACK"] = "True"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sparsegen.zoo.generator import Generator
from sparsegen.zoo.table1 import build

ROOT = Path(__file__).resolve().parent.parent
CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10"


@pytest.fixture(autouse=True)
def one_thread_and_a_seed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.setenv("SPARSEGEN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """The folder of the real CIFAR-10 files."""
    if not CIFAR10.is_dir():
        pytest.skip(f"the real CIFAR-10 files are not at ../{CIFAR10.relative_to(ROOT.parent)}")
    return CIFAR10


def warmed(generator: Generator) -> Generator:
    """A generator whose batch norm has seen data, so that its codes are neither constant nor empty."""
    generator.train()
    with torch.no_grad():
        for _ in range(8):
            generator(torch.randn(32, generator.z_dim))
    return generator.eval().to(memory_format=torch.channels_last)


@pytest.fixture
def tiny_ml() -> Iterator[Generator]:
    yield warmed(build("dcgan", "ml", atoms=8))

"""Shared by all tests: one thread, no network, private caches, tiny networks."""

import os

# Before torch and the Hub's client are imported, since both read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["BENTOML_DO_NOT_TRACK"] = "True"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import CLI, Done
from PIL import Image
from torch import nn

from sparsegen.__main__ import main
from sparsegen.common.hardware import processors
from sparsegen.training.features import FeatureNetwork
from sparsegen.zoo.blocks import ConditionalBatchNorm
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.spec import create_model

ROOT = Path(__file__).resolve().parent.parent
CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# Files whose tests take long: `make check` leaves them out.
SLOW = set(
    "api bento browser card cells checkpoint cli connections deadline decoders demo deploy devices docs encoding "
    "endpoint engines evaluation export_forms exposure extension features fit guards hourglass hub jobs layering loop "
    "methods onnx_file operation page_api pictures_io plots prefix privacy projected quality restoration_http "
    "restore_page restoring run runtime sources space table1_campaign table3_campaign tiles training_benchmark types "
    "uploads web".split()
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more process than processors, because a third of the time is waiting: for servers, browsers and deadlines."""
    return processors() + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(
        key=lambda item: "slow" not in item.keywords
    )  # the last files should be short: processes end together


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[pytest.TestReport]:
    """Escapes names of files that are not UTF-8 in captured output, which xdist cannot send between processes."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


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


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 pictures."""
    folder = tmp_path_factory.mktemp("few") / "few"
    folder.mkdir()
    for number in range(60):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


def warmed(generator: Generator) -> Generator:
    """A generator whose batch norm has seen data, so that its codes are neither constant nor empty.

    The classes of a conditional one are told apart by their gains and biases, which start out alike.
    """
    labels = [torch.arange(32) % generator.classes] if generator.classes else []
    generator.train()
    with torch.no_grad():
        for norm in generator.modules():
            if isinstance(norm, ConditionalBatchNorm):
                norm.gain.weight.normal_(1, 0.5)
                norm.bias.weight.normal_(0, 0.5)
        for _ in range(8):
            generator(torch.randn(32, generator.z_dim), *labels)
    return generator.eval().to(memory_format=torch.channels_last)


@pytest.fixture
def tiny_ml() -> Iterator[Generator]:
    yield warmed(create_model("dcgan", "ml", width=8))


@pytest.fixture
def tiny_conditional() -> Iterator[Generator]:
    generator = warmed(create_model("biggan", "ml", width=8))
    generator.config = {"class_names": CLASSES}
    yield generator


@pytest.fixture
def features() -> FeatureNetwork:
    """Features one can compute by hand: the mean color of each quarter of an image."""
    return FeatureNetwork(
        "fd-quarters", 12, lambda x: nn.functional.adaptive_avg_pool2d(x.float() / 255, 2).flatten(1)
    )


@pytest.fixture
def real() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(700, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def sparsegen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CLI:
    """Runs the command line in this process, because importing torch takes seconds."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["sparsegen", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(ended.value.code, *capsys.readouterr())

    return run

"""Devices: which one is chosen, and what runs on an accelerator, tested with a stand-in (see `accelerator`)."""

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from accelerator import NAME, Counts, OnDevice, accelerator
from conftest import ROOT
from torch import Tensor

import sparsegen
from sparsegen.common import devices
from sparsegen.common.devices import batch_size, find_device, full_precision, in_batches
from sparsegen.reproduce import plots
from sparsegen.restoration import operators
from sparsegen.restoration.fit import EVALUATE_EVERY
from sparsegen.restoration.restore import restore
from sparsegen.training.evaluation import draw
from sparsegen.training.features import FeatureNetwork
from sparsegen.training.plan import find_device as device_of_process
from sparsegen.zoo import projections
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.projections import GlobalProjection, NeedleProjection


@pytest.fixture
def counted() -> Iterator[Counts]:
    with accelerator() as counts:
        yield counts


def pair(architecture: str, regularizer: str) -> tuple[Generator, Generator]:
    """The same generator on the CPU and on the accelerator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        made = sparsegen.create_model(architecture, regularizer, width=8).eval().requires_grad_(False)
    return made, made.view().to(NAME)


def on_cpu(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, OnDevice)
    return tensor.value


def test_auto_is_the_accelerator_if_there_is_one(counted: Counts) -> None:
    assert find_device() == find_device("auto") == torch.device(NAME)
    assert find_device("cpu") == torch.device("cpu")
    assert sparsegen.from_pretrained("dcgan.ml", device=None).device.type == NAME
    assert sparsegen.from_pretrained("dcgan.ml").device.type == "cpu"


def test_without_an_accelerator_auto_is_the_cpu() -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    assert find_device() == find_device("auto") == device_of_process() == torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "error", "says"),
    [
        ("tpu", ValueError, "must be auto, cpu, cuda, cuda:N, mps or xpu; got 'tpu'"),
        ("cuda:", ValueError, "got 'cuda:'"),
        (3, TypeError, "got 3"),
        ("cuda:4096", ValueError, "no device cuda:4096: torch finds cpu.*; use one of these, or auto"),
        (torch.device("meta"), ValueError, "no device meta"),
    ],
    ids=str,
)
def test_a_device_that_does_not_exist_is_refused(device: object, error: type, says: str) -> None:
    for find in (find_device, device_of_process):
        with pytest.raises(error, match=says):
            find(device)


def test_a_device_that_exists_but_does_not_work_is_refused(
    counted: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(
        ValueError, match=r"standin cannot be used \(no kernel image is available\): use another"
    ):
        find_device()


@pytest.mark.parametrize(
    "arguments",
    [
        ("sample", "dcgan.ml"),
        ("evaluate", "dcgan.ml", "--data", "nothing"),
        ("plot", "samples", "dcgan.ml"),
        ("train", "dcgan-8.ml", "--data", "nothing", "--out", "run"),
        ("denoise", "{noisy}", "--out", "clean.png"),
        ("worker", "--once"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_that_computes_takes_a_device(arguments: tuple[str, ...], tmp_path) -> None:
    """Each refuses one that does not exist, in one sentence and before any work."""
    noisy = ROOT / "docs" / "samples.png"
    arguments = tuple(part.format(noisy=noisy) for part in arguments)
    for device, says in (("cuda:4096", "no device cuda:4096"), ("tpu", "a device must be auto")):
        done = subprocess.run(
            [sys.executable, "-m", "sparsegen", *arguments, "--device", device],
            cwd=tmp_path,
            env={"HOME": str(tmp_path), "PATH": "", "SPARSEGEN_JOBS": str(tmp_path / "jobs.sqlite")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2 or arguments[0] == "worker", done.stderr
        assert says in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not {path.name for path in tmp_path.iterdir()} & {"samples.png", "run", "clean.png"}


@pytest.mark.parametrize("regularizer", sparsegen.list_regularizers())
@pytest.mark.parametrize("architecture", sparsegen.list_architectures())
def test_samples_are_those_of_the_cpu_and_wait_once_per_batch(
    architecture: str, regularizer: str, counted: Counts
) -> None:
    here, there = pair(architecture, regularizer)
    counted.reset()
    made = there.sample(3, seed=5)
    assert counted.waits == {"aten::_to_copy": 1}  # of the images
    assert counted.uploads == 1 + bool(there.classes)
    assert counted.long_topk == 0
    assert np.array_equal(made, here.sample(3, seed=5))


@pytest.mark.parametrize("architecture", ["dcgan", "biggan"])
def test_codes_are_edited_on_the_accelerator(architecture: str, counted: Counts) -> None:
    here, there = pair(architecture, "ml")
    z = torch.randn(2, here.z_dim, generator=torch.Generator().manual_seed(0))
    given = [z, torch.tensor([0, 1])][: 1 + bool(here.classes)]
    moved = [each.to(NAME) for each in given]
    counted.reset()
    image, codes = there(*moved)
    bypass = there.bypass(*moved)
    codes[0][:, 0] = 0
    edited, deeper = there.synthesize(codes[0]), there.synthesize((None, codes[1]), bypass)
    dictionaries = there.dictionary(2), there.effective_dictionary()
    assert not counted.waits and not counted.uploads
    expected = here(*given)
    assert torch.equal(on_cpu(image), expected[0])
    expected[1][0][:, 0] = 0
    assert torch.equal(on_cpu(edited), here.synthesize(expected[1][0]))
    assert torch.equal(on_cpu(deeper), here.synthesize((None, expected[1][1]), here.bypass(*given)))
    for found, wanted in zip(dictionaries, (here.dictionary(2), here.effective_dictionary()), strict=True):
        assert torch.equal(on_cpu(found), wanted)


@pytest.mark.parametrize("long_topk", [False, True], ids=["as on mps", "as on cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "projection", [NeedleProjection(3), GlobalProjection(50), NeedleProjection(2, dim=-1)], ids=str
)
def test_projections_are_those_of_the_cpu_with_gradients(
    projection: projections.Projection,
    dtype: torch.dtype,
    long_topk: bool,
    counted: Counts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if long_topk:
        monkeypatch.setattr(projections, "_WITH_LONG_TOPK", ("cpu", NAME))
    random = torch.Generator().manual_seed(0)
    code = torch.randint(-4, 5, (2, 8, 5, 6), generator=random).to(dtype)  # with many ties
    code[0, 0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    weight = torch.randn(code.shape, generator=random).to(dtype)
    here = code.clone().requires_grad_()
    there, moved = code.to(NAME).requires_grad_(), weight.to(NAME)
    counted.reset()
    projected = projection(there)
    (projected * moved).sum().backward()
    assert not counted.waits and not counted.uploads and bool(counted.long_topk) == long_topk
    expected = projection(here)
    (expected * weight).sum().backward()
    assert torch.equal(on_cpu(projected.detach()).nan_to_num(), expected.detach().nan_to_num())
    assert torch.equal(on_cpu(there.grad), here.grad)


def noisy(channels: int = 3, side: int = 64) -> Tensor:
    random = torch.Generator().manual_seed(1)
    smooth = torch.linspace(0.2, 0.8, side).expand(1, channels, side, side)
    return (smooth + 0.1 * torch.randn(smooth.shape, generator=random)).clamp(0, 1)


MASK = np.random.default_rng(0).random((64, 64)) > 0.3
CASES = {
    "denoise": (None, {}, 1),
    "denoise, l1": (None, {"loss": "l1"}, 1),
    "inpaint": (operators.Mask(MASK), {}, 1),
    "upscale": (operators.Downsample(2), {}, 1),
    "deblur": (operators.Blur.gaussian(1.2), {}, 1),
    "no rule": (None, {"stops": False}, 0),
    "l0": (None, {"regularizer": "l0"}, 1),
    "penalty": (None, {"regularizer": "l1"}, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_a_restoration_waits_once_per_network_and_iteration(
    case: str, counted: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsegen.restoration.fit.has_bfloat16", lambda kind: False)  # a CPU may have it
    operator, about, ruled = CASES[case]
    iterations, ensemble, waits, uploads = 2 * EVALUATE_EVERY, 2, [], []

    def note(progress: object) -> None:
        waits.append(counted.waits.total())
        uploads.append(counted.uploads)

    common = {"iterations": iterations, "ensemble_size": ensemble, "callback": note, **about}
    image = noisy(side=32 if case == "upscale" else 64)
    found = restore(image, operator, device=torch.device(NAME), **common)
    looked = [1, *range(EVALUATE_EVERY, iterations + 1, EVALUATE_EVERY)]
    for iteration, spent in enumerate(np.diff(waits), 2):
        assert spent == ensemble * (1 + (iteration in looked)) + ruled * (iteration in looked), iteration
    assert uploads[0] == uploads[-1]  # masks, kernels and targets are moved once
    expected = restore(image, operator, device="cpu", **common)
    assert found.image.device.type == "cpu" and found.iterations == expected.iterations
    assert torch.equal(found.image, expected.image)  # the stand-in draws the jitter on the CPU, too
    assert np.array_equal(found.history["statistic"], expected.history["statistic"], equal_nan=True)


def test_the_targets_of_a_restoration_are_the_same_on_every_device(counted: Counts) -> None:
    from sparsegen.restoration.restore import make_fit
    from sparsegen.restoration.settings import Task

    for operator, loss in ((None, "mse"), (operators.Mask(MASK), "mse")):
        fits = [make_fit(Task.of(loss=loss), noisy().to(device), operator) for device in ("cpu", NAME)]
        for here, there in zip(fits[0].rule.targets, fits[1].rule.targets, strict=True):
            assert torch.equal(here, on_cpu(there))
        if fits[0].rule.weight is not None:
            assert torch.equal(fits[0].rule.weight, on_cpu(fits[1].rule.weight))
        for here, there in zip(fits[0].members, fits[1].members, strict=True):
            assert torch.equal(here.z, on_cpu(there.z))


def test_an_array_is_restored_on_the_accelerator_unless_the_operator_is_your_own(counted: Counts) -> None:
    array = np.ascontiguousarray(noisy(1)[0, 0].numpy())
    places = []

    def note(progress: object) -> None:
        places.append(progress.output.device.type)

    restore(array, iterations=1, callback=note)
    restore(array, lambda image: image * 1, iterations=1, callback=note)
    restore(noisy(1), iterations=1, callback=note)
    restore(noisy(1).to(NAME), iterations=1, callback=note)
    assert places == [NAME, "cpu", "cpu", NAME]


def test_an_operator_on_another_device_is_refused(counted: Counts) -> None:
    with pytest.raises(ValueError, match=r"maps an image on standin:0 to cpu: .*or give device='cpu'"):
        restore(noisy(), lambda image: image.cpu(), device=torch.device(NAME), iterations=1)


def test_an_evaluation_runs_on_the_accelerator(counted: Counts) -> None:
    here, there = pair("dcgan", "ml")
    filters = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def network(device: str) -> FeatureNetwork:
        weight = filters.to(device)
        return FeatureNetwork(
            "test",
            5,
            lambda pixels: torch.nn.functional.conv2d(pixels.float(), weight).mean((2, 3)),
            torch.device(device),
        )

    found, expected = draw(there, [network(NAME)], 70), draw(here, [network("cpu")], 70)
    assert found.device == f"{NAME}:0" and found.density == expected.density
    assert found.batch == devices.DEFAULT_BATCH and expected.batch == 64
    assert np.array_equal(found.images, expected.images)
    assert np.allclose(found.features["test"], expected.features["test"], rtol=1e-5)
    assert np.array_equal(plots.needle_density(there, 70), plots.needle_density(here, 70))


def test_a_batch_fits_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, gigabyte = torch.device("cuda"), 1 << 30
    for free, image_bytes, size in (
        (None, 1, 512), (80 * gigabyte, 1 << 22, 2048), (16 * gigabyte, 1 << 22, 1024), (gigabyte, 1 << 28, 64)
    ):  # fmt: skip
        monkeypatch.setattr(devices, "free_memory", lambda device, free=free: free)
        assert batch_size(gpu, image_bytes) == size
        assert batch_size(torch.device("cpu"), image_bytes) == 64


def test_a_batch_is_halved_once_if_the_memory_is_too_small() -> None:
    def run(first: int, stop: int, room: int) -> tuple[int, int]:
        if stop - first > room:
            raise torch.OutOfMemoryError("out of memory")
        return first, stop

    assert list(in_batches(10, 4, lambda *rows: run(*rows, 2))) == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    with pytest.raises(RuntimeError, match="too little memory for 2 images at once.*e.g. cpu"):
        list(in_batches(10, 4, lambda *rows: run(*rows, 1)))


def test_full_precision_is_restored_when_the_last_of_several_blocks_ends() -> None:
    from torch.backends import cuda, cudnn

    def now() -> tuple[str, str]:
        return cudnn.conv.fp32_precision, cuda.matmul.fp32_precision

    before, gpu = now(), torch.device("cuda")
    outer, inner = full_precision(gpu), full_precision(gpu)
    with full_precision(torch.device("cpu")):
        assert now() == before
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert now() == ("ieee", "ieee")
    inner.__exit__(None, None, None)
    assert now() == before and isinstance(cudnn.allow_tf32, bool)  # the older setting can be read again


def test_a_restoration_does_not_seed_an_accelerator_and_leaves_the_random_state(counted: Counts) -> None:
    state = torch.random.get_rng_state()
    restore(noisy(), iterations=1, device=torch.device(NAME))  # the stand-in refuses to be seeded
    assert torch.equal(torch.random.get_rng_state(), state)

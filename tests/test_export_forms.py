"""The forms of an export, each opened by the tools that it is for: onnxruntime, OpenVINO and PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT, warmed
from onnxruntime.quantization import quantize_dynamic

from sparsegen.export.functions import DOMAIN
from sparsegen.export.onnx_file import export_onnx
from sparsegen.export.program import export_program
from sparsegen.export.runtime import OnnxSampler
from sparsegen.zoo import noise
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.projections import NeedleProjection, sparsify
from sparsegen.zoo.spec import create_model

MODELS = {
    "ml": ("dcgan", "ml"),
    "l0": ("sngan", "l0"),
    "labels": ("sagan", "ml"),
    "baseline": ("dcgan", "baseline"),
}


@pytest.fixture(scope="module", params=MODELS)
def generator(request: pytest.FixtureRequest) -> Generator:
    """A generator whose weights are float16 numbers, as those of the bundled models."""
    torch.manual_seed(0)
    generator = warmed(create_model(*MODELS[request.param], width=8))
    return generator.half().float().requires_grad_(False)


def feed(generator: Generator, count: int, each: bool = False) -> dict[str, np.ndarray]:
    """The inputs of an ONNX file: the k of training, or one per image."""
    random = np.random.default_rng(0)
    inputs = {"z": noise.z(count, generator.z_dim, seed=3)}
    for k_range in generator.k_ranges:
        per_image = random.integers(1, k_range.limit + 1, count)
        inputs[f"k_{k_range.level}"] = per_image if each else np.array(k_range.k)
    if generator.classes:
        inputs["labels"] = np.arange(count) % generator.classes
    return inputs


def in_torch(generator: Generator, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    z, labels = (torch.from_numpy(inputs[name]) if name in inputs else None for name in ("z", "labels"))
    columns = [np.broadcast_to(inputs[f"k_{r.level}"], len(z)) for r in generator.k_ranges]
    image, codes = generator(z, labels, torch.from_numpy(np.stack(columns, 1)) if columns else None)
    return [image.numpy(), *(code.numpy() for code in codes)]


def differs(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    return max(
        float(np.abs(a - b).max() / max(1, np.abs(b).max())) for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("half", [False, True])
def test_a_plain_file_has_standard_operators_only_and_gives_the_same_images(
    generator: Generator, half: bool, tmp_path: Path
) -> None:
    export_onnx(generator, tmp_path / "m.onnx", half=half, synthesis=True)
    export_onnx(generator, tmp_path / "plain.onnx", plain=True, half=half, synthesis=True)
    model = onnx.load(tmp_path / "plain.onnx")
    assert not model.functions and {opset.domain for opset in model.opset_import} == {""}
    assert {node.domain for node in model.graph.node} == {""}
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    levels = {name.split("/")[0] for name in names if name.startswith("projection_")}
    assert levels == {f"projection_{k_range.level}" for k_range in generator.k_ranges}
    sessions = [
        onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        for name in ("m.onnx", "plain.onnx")
    ]
    for each in (False, True):
        inputs = feed(generator, 5, each)
        with_function, plain = (session.run(None, inputs) for session in sessions)
        assert differs(plain, with_function) <= (0 if half else 1e-5)
        assert differs(plain, in_torch(generator, inputs)) < 1e-5
    samplers = [OnnxSampler(tmp_path / name, device="cpu") for name in ("m.onnx", "plain.onnx")]
    images, plain_images = (sampler.sample(3).astype(int) for sampler in samplers)
    assert np.abs(images - plain_images).max() <= 1
    atoms, plain_atoms = (sampler.dictionary() for sampler in samplers)
    assert np.abs(atoms - plain_atoms).max() < 1e-5


@pytest.mark.parametrize("architecture", ["sagan", "biggan"])
def test_the_weights_of_a_plain_file_are_initializers(architecture: str, tmp_path: Path) -> None:
    """Under spectral norm, too, so that onnxruntime can quantize them."""
    export_onnx(warmed(create_model(architecture, "ml", width=8)), tmp_path / "m.onnx", plain=True)
    graph = onnx.load(tmp_path / "m.onnx").graph
    stored = {tensor.name for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) > 8 and all(node.input[1] in stored for node in layers)
    quantize_dynamic(tmp_path / "m.onnx", tmp_path / "small.onnx")
    sessions = [
        onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        for name in ("m.onnx", "small.onnx")
    ]
    generator = create_model(architecture, "ml", width=8)
    image, small = (session.run(["image"], feed(generator, 4))[0] for session in sessions)
    assert image.shape == small.shape and np.isfinite(small).all()


def test_half_precision_halves_the_file_and_is_lossless_for_float16_weights(
    generator: Generator, tmp_path: Path
) -> None:
    full, half = (export_onnx(generator, tmp_path / f"{half}.onnx", half=half) for half in (False, True))
    assert full.rounded == half.rounded == 0
    full_weights, weights = (onnx.load(report.path).graph.initializer for report in (full, half))
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}
    assert sum(len(t.raw_data) for t in weights) * 2 == sum(len(t.raw_data) for t in full_weights)
    inputs = feed(generator, 4)
    outputs = [
        onnxruntime.InferenceSession(str(report.path), providers=["CPUExecutionProvider"]).run(None, inputs)
        for report in (full, half)
    ]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*outputs, strict=True))


def test_half_precision_of_other_weights_is_counted(tmp_path: Path) -> None:
    generator = warmed(create_model("dcgan", "ml", width=8))
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    report = export_onnx(generator, tmp_path / "m.onnx", half=True)
    floats = [tensor for tensor in before.values() if tensor.is_floating_point()]
    assert report.rounded == sum(int((t.half().float() != t).sum()) for t in floats) > 1000
    assert all(torch.equal(tensor, before[name]) for name, tensor in generator.state_dict().items())
    generator.stages[0].conv.bias.data[0] = 1e5
    with pytest.raises(ValueError, match="stages.0.conv.bias has a weight of 1e.05, above 65504"):
        export_onnx(generator, tmp_path / "large.onnx", half=True)
    for form in ({"plain": True}, {"half": True}):
        with pytest.raises(ValueError, match="need embed=True"):
            export_onnx(generator, tmp_path / "m.onnx", embed=False, **form)


def test_openvino_reads_the_plain_form(generator: Generator, tmp_path: Path) -> None:
    openvino = pytest.importorskip(
        "openvino", reason="the extra `dev` installs OpenVINO, except on Macs with Intel"
    )
    export_onnx(generator, tmp_path / "m.onnx", plain=True)
    core = openvino.Core()
    model = core.read_model(tmp_path / "m.onnx")
    for each in (False, True):
        if each:  # OpenVINO checks ranks, and the graph declares each k as a scalar
            names = [f"k_{k_range.level}" for k_range in generator.k_ranges]
            model.reshape({name: openvino.PartialShape([-1]) for name in names})
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for count in (1, 4):  # the first inference allocates
            inputs = feed(generator, count, each)
            found = compiled(inputs)
            got = [found[index] for index in range(len(compiled.outputs))]
            assert differs(got, in_torch(generator, inputs)) < 1e-4


READER = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sparsegen":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import torch
file, folder = sys.argv[1:]
extra = {"sparsegen.json": ""}
module = torch.export.load(file, extra_files=extra).module()
for name, inputs in torch.load(folder + "/inputs.pt").items():
    image, codes = module(inputs.pop("z"), **inputs)
    torch.save([image, *codes], f"{folder}/{name}.pt")
assert "sparsegen" not in sys.modules
print(json.loads(extra["sparsegen.json"])["name"])
"""


def test_a_program_runs_in_pytorch_without_this_package(generator: Generator, tmp_path: Path) -> None:
    report = export_program(generator, tmp_path / "m.pt2")
    assert report.samples > 0 and report.max_difference < 1e-5
    fed = {str(count): feed(generator, count, each=True) for count in (1, 3)}
    given = {}
    for name, inputs in fed.items():
        tensors = {key: torch.from_numpy(inputs[key]) for key in ("z", "labels") if key in inputs}
        if generator.k_ranges:
            columns = [inputs[f"k_{k_range.level}"] for k_range in generator.k_ranges]
            tensors["k"] = torch.from_numpy(np.stack(columns, 1))
        given[name] = tensors
    torch.save(given, tmp_path / "inputs.pt")
    done = subprocess.run(
        [sys.executable, "-c", READER, tmp_path / "m.pt2", tmp_path],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == generator.spec.name
    for name, inputs in fed.items():
        found = [tensor.numpy() for tensor in torch.load(tmp_path / f"{name}.pt")]
        assert differs(found, in_torch(generator, inputs)) < 1e-5


def test_a_program_contains_no_path_of_this_machine_and_clamps_k(tmp_path: Path) -> None:
    generator = warmed(create_model("dcgan", "ml", width=8)).train()
    export_program(generator, tmp_path / "m.pt2")
    assert generator.training
    content = (tmp_path / "m.pt2").read_bytes()
    for trace in (str(ROOT), sys.prefix, str(Path.home()), "site-packages", str(tmp_path), ".py"):
        assert trace.encode() not in content
    assert DOMAIN.encode() not in content
    extra = {"sparsegen.json": ""}
    module = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    assert json.loads(extra["sparsegen.json"])["z_dim"] == 128
    z = torch.randn(2, 128)
    (least, _), (below, _) = (module(z, k=torch.full((2, 2), k)) for k in (1, -5))
    (most, _), (beyond, _) = (module(z, k=torch.full((2, 2), k)) for k in (8, 10**9))
    assert torch.equal(least, below) and torch.equal(most, beyond) and not torch.equal(least, most)


def test_a_program_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    generator = create_model("dcgan", "ml", width=8)
    for name in ("m.onnx", "m"):
        with pytest.raises(ValueError, match="end in .pt2; got"):
            export_program(generator, tmp_path / name)
    hooked = sparsify(generator, {"coder.stages.1.conv": NeedleProjection(2)})
    with hooked, pytest.raises(ValueError, match="hooks cannot be exported"):
        export_program(generator, tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_a_wrong_program_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = warmed(create_model("dcgan", "l0_inf", width=8))
    monkeypatch.setattr("sparsegen.zoo.projections._by_rank", lambda code, k, whole: code > 0)
    with pytest.raises(RuntimeError, match="does not keep the largest magnitudes"):
        export_program(generator, tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())

"""The exported file, compared with torch and with the definition in numpy, and read by standard tools."""

import functools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from conftest import ROOT, warmed
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file

from sparsegen.export import onnx_file
from sparsegen.export.functions import DOMAIN, FUNCTIONS, PLAIN
from sparsegen.export.onnx_file import STEPS, bundle, export_onnx
from sparsegen.export.parity import ParityReport, compare_selection
from sparsegen.zoo.checkpoint import from_pretrained
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.projections import GlobalProjection, NeedleProjection, sparsify
from sparsegen.zoo.regularizers import REGULARIZERS
from sparsegen.zoo.spec import create_model

CONV = "coder.stages.1.conv"


@dataclass
class Exported:
    """One generator, exported twice: with its weights, and into the folder of its float16 checkpoint."""

    generator: Generator
    file: Path
    folder: Path
    parities: tuple[ParityReport, ParityReport]


def saved(regularizer: str, folder: Path, dtype: torch.dtype = torch.float16) -> Generator:
    torch.manual_seed(0)
    generator = warmed(create_model("dcgan", regularizer, width=8))
    generator.stages[0].conv.weight.data *= 40  # images of all colors; the initial ones are gray
    generator.stages[0].conv.bias.data = torch.randn(3) / 4
    generator.save_pretrained(folder, dtype)
    return from_pretrained(folder)


@pytest.fixture(scope="module", params=REGULARIZERS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp(request.param)
    generator = saved(request.param, folder / "checkpoint")
    embedded = export_onnx(generator, folder / "m.onnx", synthesis=True)
    return Exported(
        generator, folder / "m.onnx", folder / "checkpoint", (embedded, bundle(folder / "checkpoint"))
    )


@pytest.fixture(scope="module")
def ml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generator]:
    yield saved("ml", tmp_path_factory.mktemp("ml"))


def open_stock(file: Path | bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        file if isinstance(file, bytes) else str(file), providers=["CPUExecutionProvider"]
    )


def inputs(generator: Generator, z: torch.Tensor, k: list[int]) -> dict[str, np.ndarray]:
    levels = [k_range.level for k_range in generator.k_ranges]
    return {"z": z.numpy(), **{f"k_{level}": np.array(value) for level, value in zip(levels, k, strict=True)}}


def settings(generator: Generator) -> list[list[int]]:
    return [
        [1 for _ in generator.k_ranges],
        [d.k for d in generator.k_ranges],
        [d.limit for d in generator.k_ranges],
    ]


def keep_largest(code: np.ndarray, k: int, unit: str) -> np.ndarray:
    """The definition: keeps the k largest magnitudes of every unit, among equals those of the lowest index."""
    rows = code.reshape(len(code), -1) if unit == "code" else np.moveaxis(code, 1, -1)
    kept = np.argsort(-np.abs(rows), axis=-1, kind="stable")[..., :k]
    result = np.zeros_like(rows)
    np.put_along_axis(result, kept, np.take_along_axis(rows, kept, -1), -1)
    return result.reshape(code.shape) if unit == "code" else np.moveaxis(result, -1, 1)


def open_function(function: onnx.FunctionProto) -> onnxruntime.InferenceSession:
    """Opens a model that consists of this function only."""
    text = f"""<ir_version: 10, opset_import: ["" : 20, "{DOMAIN}" : 1]>
        only (float[B, C, H, W] code, int64 k) => (float[B, C, H, W] y) {{
            y = {DOMAIN}.{function.name} (code, k)
        }}"""
    model = onnx.parser.parse_model(text)
    model.functions.append(function)
    return open_stock(model.SerializeToString())


def test_images_and_codes_equal_torch_at_every_batch_size_and_k(exported: Exported) -> None:
    session = open_stock(exported.file)
    for k in settings(exported.generator):
        for batch in (1, 3, 17):
            z = torch.randn(batch, 128)
            image, *codes = session.run(None, inputs(exported.generator, z, k))
            with torch.no_grad(), exported.generator.use_k(k or None):
                wanted, wanted_codes = exported.generator(z)
            assert np.abs(image - wanted.numpy()).max() <= 1e-5
            assert np.abs(image).max() > 0.5
            for code, wanted in zip(codes, wanted_codes, strict=True):
                assert code.any()
                assert np.abs(code - wanted.numpy()).max() <= 1e-5
            for k_range, value in zip(exported.generator.k_ranges, k, strict=True):
                axes = 1 if k_range.unit == "needle" else (1, 2, 3)
                assert (codes[k_range.level - 1] != 0).sum(axes).max() <= value


def test_each_projection_is_one_node_with_its_function_in_the_file(exported: Exported) -> None:
    for path in (exported.file, exported.folder / "generator.onnx"):
        onnx.checker.check_model(path, full_check=True)
        model = onnx.load(path, load_external_data=False)
        kinds = {NeedleProjection: "NeedleProjection", GlobalProjection: "GlobalProjection"}
        wanted = [kinds[type(p)] for p in exported.generator.projections if type(p) in kinds]
        nodes = [node for node in model.graph.node if node.domain == DOMAIN]
        assert sorted((node.name, node.op_type) for node in nodes) == [
            (f"projection_{level}", kind) for level, kind in enumerate(wanted, 1)
        ]
        assert {function.name for function in model.functions} == set(wanted)
        assert "TopK" not in {node.op_type for node in model.graph.node}
        assert {opset.domain: opset.version for opset in model.opset_import}[""] == 20
        k_ranges = [f"k_{k_range.level}" for k_range in exported.generator.k_ranges]
        assert [value.name for value in model.graph.input] == ["z", *k_ranges]
        assert [value.name for value in model.graph.output] == ["image", "code_1", "code_2"]
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_initializers_are_exactly_the_state_dict(exported: Exported) -> None:
    stored = load_file(exported.folder / "generator.safetensors")
    wanted = {key for key in stored if not key.endswith("num_batches_tracked")}
    embedded = onnx.load(exported.file).graph.initializer
    assert {tensor.name for tensor in embedded} == wanted
    for tensor in embedded:
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), stored[tensor.name].float().numpy())
    bundled = onnx.load(
        exported.folder / "generator.onnx"
    ).graph.initializer  # with the external data read in
    assert {tensor.name for tensor in bundled} == wanted
    for tensor in bundled:
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), stored[tensor.name].numpy())


def test_a_bundle_is_three_small_graphs_that_read_the_checkpoint_in_their_folder(exported: Exported) -> None:
    for name in ("generator.onnx", "synthesis.onnx", "encoding.onnx"):
        file = exported.folder / name
        assert file.stat().st_size < 20_000
        for tensor in onnx.load(file, load_external_data=False).graph.initializer:
            assert {entry.key: entry.value for entry in tensor.external_data}[
                "location"
            ] == "generator.safetensors"
    names = sorted(file.name for file in exported.folder.iterdir())
    assert names == [
        "config.json",
        "encoding.onnx",
        "generator.onnx",
        "generator.safetensors",
        "synthesis.onnx",
    ]


def test_both_files_give_the_same_bits_from_any_working_directory(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    feed = inputs(exported.generator, torch.randn(5, 128), settings(exported.generator)[1])
    ours, theirs = (
        open_stock(f).run(None, feed) for f in (exported.file, exported.folder / "generator.onnx")
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.tobytes() == other.tobytes()


def test_the_parity_report_says_what_was_compared(exported: Exported) -> None:
    for parity in exported.parities:
        assert parity.path.is_file()
        assert 0 < parity.max_difference <= 1e-5
        assert {tuple(k) for k in settings(exported.generator)} <= set(parity.k)
        assert parity.samples == len(parity.k) * sum(parity.batches) and len(parity.batches) >= 3
        assert parity.same <= parity.samples and parity.swapped <= parity.units
        assert bool(parity.units) == bool(exported.generator.k_ranges)


def test_the_metadata_describe_the_model(exported: Exported) -> None:
    for path in (exported.file, exported.folder / "generator.onnx"):
        about = json.loads(open_stock(path).get_modelmeta().custom_metadata_map["sparsegen"])
        assert about["name"] == f"dcgan-8.{about['regularizer']}" == exported.generator.spec.name
        assert about["z_dim"] == 128 and about["code_shapes"] == [[8, 16, 16], [8, 16, 16]]
        assert about["format"] == 2 and about["license"] is None and about["sparsegen"] == "0.1.0"
        assert [(d["level"], d["unit"], d["k"], d["limit"]) for d in about["dials"]] == [
            (k_range.level, k_range.unit, k_range.k, k_range.limit) for k_range in exported.generator.k_ranges
        ]


def test_the_files_contain_no_path_of_this_machine(exported: Exported) -> None:
    for path in (exported.file, *exported.folder.glob("*.onnx")):
        content = path.read_bytes()
        model = onnx.load_from_string(content)
        assert not model.doc_string and not model.graph.doc_string
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        for trace in (str(ROOT), sys.prefix, str(Path.home()), "site-packages", str(path.parent), ".py"):
            assert trace.encode() not in content


def test_exactly_k_are_kept_under_ties_as_the_definition_says(exported: Exported) -> None:
    for function in onnx.load(exported.file).functions:
        session, unit = open_function(function), exported.generator.k_ranges[0].unit
        random = np.random.default_rng(0)
        ties = random.integers(-2, 3, (3, 8, 5, 4)).astype(np.float32)
        infinite = np.where(np.arange(8)[:, None, None] == 5, np.float32(np.inf), ties)
        most = 8 if unit == "needle" else 8 * 5 * 4
        for code in (ties, np.abs(ties) * 0 - 1, infinite, random.standard_normal(ties.shape, np.float32)):
            for k, like in ((1, 1), (2, 2), (3, 3), (7, 7), (most, most), (0, 1), (-5, 1), (10**9, most)):
                (got,) = session.run(None, {"code": code, "k": np.array(k)})
                assert got.tobytes() == keep_largest(code, like, unit).tobytes()


# Without -0.0, which Where of onnxruntime returns as 0.0.
ENTRIES = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 2.0, np.inf]), st.floats(-4, 4, width=16).map(lambda value: value + 0.0)
)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("functions", [FUNCTIONS, PLAIN], ids=["function", "plain"])
@settings_of_hypothesis(deadline=None, max_examples=60, derandomize=True)
@given(
    code=hnp.array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=7).flatmap(
        lambda shape: hnp.arrays(np.float32, shape, elements=ENTRIES, fill=ENTRIES)
    ),
    data=st.data(),
)
def test_each_image_keeps_its_own_k_as_the_definition_says(
    functions: dict[str, str], name: str, code: np.ndarray, data: st.DataObject
) -> None:
    session, unit = opened_function(functions[name]), {"NeedleProjection": "needle"}.get(name, "code")
    most = code.shape[1] if unit == "needle" else code[0].size
    k = data.draw(hnp.arrays(np.int64, len(code), elements=st.integers(-1, most + 2)))
    (got,) = session.run(None, {"code": code, "k": k})
    for image, value in enumerate(np.clip(k, 1, most)):
        assert got[image].tobytes() == keep_largest(code[image : image + 1], int(value), unit).tobytes()


@functools.cache
def opened_function(text: str) -> onnxruntime.InferenceSession:
    return open_function(onnx.parser.parse_function(text))


def test_k_out_of_range_is_clamped_in_the_raw_file(exported: Exported) -> None:
    session, z = open_stock(exported.file), torch.randn(2, 128)
    least, trained, most = settings(exported.generator)
    for value, like in ((0, least), (-5, least), (10**9, most)):
        feeds = [inputs(exported.generator, z, k) for k in ([value for _ in trained], like)]
        got, wanted = (session.run(None, feed) for feed in feeds)
        assert all(a.tobytes() == b.tobytes() for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_other_types_are_read_from_the_checkpoint_too(dtype: torch.dtype, tmp_path: Path) -> None:
    generator = saved("l0_inf", tmp_path, dtype)
    assert bundle(tmp_path).max_difference <= 1e-5
    z = torch.randn(2, 128)
    image, *_ = open_stock(tmp_path / "generator.onnx").run(None, inputs(generator, z, [2]))
    with torch.no_grad():
        assert np.abs(image - generator(z)[0].numpy()).max() <= 1e-5


def test_two_exports_are_the_same_bytes_and_do_not_change_the_generator(tmp_path: Path) -> None:
    generator = warmed(create_model("dcgan", "ml", width=8)).train()
    generator.set_k([3, 5])
    before = {key: tensor.clone() for key, tensor in generator.state_dict().items()}
    steps = []
    for name in ("a.onnx", "b.onnx"):
        export_onnx(
            generator, tmp_path / name, synthesis=True, progress=lambda done, what: steps.append(done)
        )
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert (tmp_path / "a.synthesis.onnx").read_bytes() == (tmp_path / "b.synthesis.onnx").read_bytes()
    assert generator.training and [k_range.k for k_range in generator.k_ranges] == [3, 5]
    assert all(torch.equal(before[key], tensor) for key, tensor in generator.state_dict().items())
    assert steps == [0, 1, 2, STEPS] * 2


KEEPS_SMALLEST = ("largest = 1", "largest = 0")
KEEPS_TIES = (
    "projected_of_any = ScatterElements <axis = 1> (zeros, index_of_any, value_of_any)",
    "smallest = ReduceMin <keepdims = 1> (largest, one)\nenough = GreaterOrEqual (magnitude, smallest)\n"
    "projected_of_any = Where (enough, rows, zeros)",
)
NEEDLE_KEEPS_TIES = (
    "mask_of_any = ScatterElements <axis = -1> (nowhere, index_of_any, mark_all)",
    "last = Constant <value_ints = [-1]> ()\nsmallest = ReduceMin <keepdims = 1> (largest, last)\n"
    "mask_of_any = GreaterOrEqual (needles, smallest)",
)
IGNORES_K = ("kept = Min (at_least_1, limit)", "kept = Identity (one)")
KEEPS_ONE_MORE = ("among = Less (rank, kept_of_image)", "among = LessOrEqual (rank, kept_of_image)")


@pytest.mark.parametrize(
    ("regularizer", "sabotage"),
    [
        ("ml", KEEPS_SMALLEST),
        ("l0_inf", NEEDLE_KEEPS_TIES),
        ("l0", KEEPS_TIES),
        ("l0", IGNORES_K),
        ("l0", KEEPS_ONE_MORE),
        ("ml", KEEPS_ONE_MORE),
    ],
)
def test_a_wrong_projection_is_not_exported(
    regularizer: str, sabotage: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {name: body.replace(*sabotage) for name, body in FUNCTIONS.items()}
    assert broken != FUNCTIONS
    for name, body in broken.items():
        monkeypatch.setitem(FUNCTIONS, name, body)
    with pytest.raises(RuntimeError, match="keeps other entries"):
        export_onnx(warmed(create_model("dcgan", regularizer, width=8)), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_mixes_up_its_k_is_not_exported(
    ml: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"what was here before")
    right = onnx_file.trace

    def mixed_up(generator: Generator) -> ir.Graph:
        graph = right(generator)
        graph.inputs[1].name, graph.inputs[2].name = "k_2", "k_1"
        return graph

    monkeypatch.setattr(onnx_file, "trace", mixed_up)
    with pytest.raises(RuntimeError, match="does not keep the largest"):
        export_onnx(ml, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == b"what was here before"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_synthesis_graph_of_other_atoms_is_not_exported(
    ml: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Generator.dictionary

    def larger_in_torch(generator: Generator, level: int = 1) -> torch.Tensor:
        return right(generator, level) * (1 if torch.compiler.is_exporting() else 1.0001)

    monkeypatch.setattr(Generator, "dictionary", larger_in_torch)
    with pytest.raises(RuntimeError, match="differ by .* in the atoms"):
        export_onnx(ml, tmp_path / "m.onnx", synthesis=True)
    assert not list(tmp_path.iterdir())


def test_the_labels_of_a_conditional_generator_are_an_input_as_long_as_the_batch(tmp_path: Path) -> None:
    export_onnx(warmed(create_model("cgan", "l0_inf", width=8)), tmp_path / "m.onnx")
    (labels,) = (value for value in onnx.load(tmp_path / "m.onnx").graph.input if value.name == "labels")
    assert labels.type.tensor_type.elem_type == onnx.TensorProto.INT64
    assert [dim.dim_param for dim in labels.type.tensor_type.shape.dim] == ["batch"]


def test_a_generator_of_fewer_classes_than_its_architecture_is_exported(tmp_path: Path) -> None:
    """It was trained on some of the classes, and rejects the others."""
    generator = warmed(create_model("cgan", "ml", width=8))
    generator.config = {"class_names": ["ant", "bee"]}
    assert export_onnx(generator, tmp_path / "m.onnx").samples > 0


def test_other_weights_in_the_folder_of_the_graph_are_detected(tmp_path: Path) -> None:
    generator = saved("baseline", tmp_path)
    saved("baseline", tmp_path, torch.bfloat16)
    with pytest.raises(RuntimeError, match="differ by"):
        export_onnx(generator, tmp_path / "generator.onnx", embed=False)
    assert not list(tmp_path.glob("*.onnx*"))
    create_model("dcgan", "baseline", width=4).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds another network: its coder.* has the shape"):
        export_onnx(generator, tmp_path / "generator.onnx", embed=False)


def test_a_file_that_cannot_be_written_is_rejected_before_any_work(
    ml: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "trace", None)
    (tmp_path / "file").touch()
    (tmp_path / "generator.safetensors").write_bytes(b"garbage!" * 4)
    with pytest.raises(ValueError, match="end in .onnx"):
        export_onnx(ml, tmp_path / "m.pt")
    with pytest.raises(OSError, match="not a folder"):
        export_onnx(ml, tmp_path / "file" / "m.onnx")
    with pytest.raises(FileNotFoundError, match="generator.safetensors is missing"):
        export_onnx(ml, tmp_path / "elsewhere" / "m.onnx", embed=False)
    with pytest.raises(ValueError, match="not a safetensors file"):
        export_onnx(ml, tmp_path / "m.onnx", embed=False)
    with sparsify(ml, {CONV: NeedleProjection(2)}), pytest.raises(ValueError, match=f"{CONV}.*remove"):
        export_onnx(ml, tmp_path / "m.onnx")


class TestASelectionThatDiffersFromTorch:
    """One needle with the magnitudes 3, 2 + 2e-7, 2 and 1, of which two are kept."""

    code = torch.tensor([3.0, 2.0000002, -2.0, 1.0]).view(1, 4, 1, 1)
    projection = NeedleProjection(2)

    def compare(self, *values: float) -> tuple[int, int]:
        return compare_selection(self.projection, self.code, torch.tensor(values).view(1, 4, 1, 1), 1)

    def test_is_not_a_swap_if_only_rounding_differs(self) -> None:
        assert self.compare(3.0000002, 2.0, 0, 0) == (1, 0)

    def test_is_a_swap_if_the_magnitudes_are_equal_up_to_rounding(self) -> None:
        assert self.compare(3, 0, -2, 0) == (1, 1)

    @pytest.mark.parametrize(
        "values",
        [
            (3, 0, 0, 1),
            (0, 2, -2, 0),
            (3, 0, 0, 0),
            (3, 2, -2, 0),
            (3, 0, 2, 0),
            (3, 2.1, 0, 0),
            (np.nan, 2, 0, 0),
        ],
    )
    def test_is_wrong_otherwise(self, values: tuple[float, ...]) -> None:
        with pytest.raises(RuntimeError, match="does not keep the largest magnitudes at k=2"):
            self.compare(*values)

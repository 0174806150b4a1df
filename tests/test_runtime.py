"""The sampler without torch, compared with the generator in torch, and its errors for broken files."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import CLASSES, ROOT, warmed

from sparsegen.export import runtime
from sparsegen.export.onnx_file import bundle, export_onnx
from sparsegen.export.runtime import OnnxSampler, open_sampler
from sparsegen.zoo import bundled, noise
from sparsegen.zoo.checkpoint import from_pretrained
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.k_range import KRange
from sparsegen.zoo.spec import create_model


def saved(regularizer: str, folder: Path) -> Path:
    torch.manual_seed(0)
    generator = warmed(create_model("dcgan", regularizer, width=8))
    generator.stages[0].conv.weight.data *= 40  # images of all colors; the initial ones are gray
    generator.stages[0].conv.bias.data = torch.randn(3) / 4
    generator.save_pretrained(folder, torch.float16)
    bundle(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("ml", tmp_path_factory.mktemp("bundles") / "dcgan-8.ml")


@pytest.fixture(scope="module")
def unprojected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("baseline", tmp_path_factory.mktemp("bundles") / "dcgan-8.baseline")


@pytest.fixture(scope="module")
def generator(folder: Path) -> Generator:
    return from_pretrained(folder)


@pytest.fixture(scope="module")
def sampler(folder: Path) -> OnnxSampler:
    return open_sampler(folder)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_sampler_has_the_properties_of_its_model(sampler: OnnxSampler, unprojected: Path) -> None:
    assert (sampler.name, sampler.regularizer, sampler.license) == ("dcgan-8.ml", "ml", None)
    assert sampler.k_ranges == [KRange(1, "needle", 2, 8), KRange(2, "needle", 2, 8)]
    assert sampler.z_dim == 128 and sampler.code_shapes == ((8, 16, 16), (8, 16, 16))
    assert "dcgan-8.ml" in repr(sampler)
    assert open_sampler(unprojected).k_ranges == []


@pytest.mark.parametrize("arguments", [{}, {"k": 1}, {"k": [8, 3]}, {"truncation": 0.5}])
def test_torchs_pixels_differ_by_at_most_a_gray_level_and_rarely(
    sampler: OnnxSampler, generator: Generator, arguments: dict
) -> None:
    ours, theirs = (source.sample(70, seed=5, **arguments) for source in (sampler, generator))
    assert ours.dtype == np.uint8 and ours.shape == (70, 32, 32, 3)
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    assert len(np.unique(ours)) > 20


@pytest.mark.parametrize("name", bundled.list_models() or [pytest.param("", marks=pytest.mark.skip)])
def test_a_bundled_models_pixels_are_nearly_torchs(name: str) -> None:
    """Except for images in which a needle keeps another entry, since two are equal up to rounding."""
    ours, theirs = open_sampler(name).sample(64), from_pretrained(name).sample(64)
    difference = np.abs(ours.astype(int) - theirs)
    swapped = difference.max((1, 2, 3)) > 1
    share = (difference[~swapped] > 0).mean()
    found = (
        f"{swapped.sum()} of 64 images differ by more than a level; of the others {share:.5%} of the values"
    )
    assert swapped.mean() < 0.05 and share < 1e-4, found


def test_an_image_does_not_depend_on_the_batch_or_the_threads(sampler: OnnxSampler, folder: Path) -> None:
    z = noise.z(64, 128, seed=1)
    image, codes = sampler.run(z)
    for other in (sampler, OnnxSampler(folder / "generator.onnx", threads=2)):
        for size in (1, 2, 5, 32):
            parts = [other.run(z[first : first + size]) for first in range(0, 64, size)]
            assert np.concatenate([part for part, _ in parts]).tobytes() == image.tobytes()
            for level in (0, 1):
                joined = np.concatenate([made[level] for _, made in parts])
                assert joined.tobytes() == codes[level].tobytes()
    assert np.array_equal(sampler.sample(3, seed=1), sampler.sample(67, seed=1)[:3])


def test_parallel_threads_draw_the_same_images_as_one(sampler: OnnxSampler) -> None:
    asked = [(seed, k) for seed in range(4) for k in (1, 2, [3, 8])]
    alone = [sampler.sample(5, seed, k) for seed, k in asked]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda pair: sampler.sample(5, *pair), asked))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_codes_hold_k_non_zeros_and_can_be_omitted(sampler: OnnxSampler) -> None:
    z = noise.z(3, 128)
    image, codes = sampler.run(z, k=[1, 3])
    assert image.dtype == np.float32 and image.shape == (3, 3, 32, 32) and np.abs(image).max() <= 1
    for code, k in zip(codes, (1, 3), strict=True):
        assert code.shape == (3, 8, 16, 16) and (code != 0).sum(1).max() == k
    without, none = sampler.run(z, k=[1, 3], codes=False)
    assert none == () and without.tobytes() == image.tobytes()


def test_an_edited_code_makes_the_image_that_torch_makes_of_it(
    sampler: OnnxSampler, generator: Generator
) -> None:
    image, (code, _) = sampler.run(noise.z(2, 128))
    assert sampler.synthesize(code).tobytes() == image.tobytes()
    code[:, 3] += 1
    edited = sampler.synthesize(code)
    with torch.no_grad():
        assert np.abs(edited - generator.synthesize(torch.from_numpy(code)).numpy()).max() <= 1e-5
    assert np.abs(edited - image).max() > 1e-3


def test_the_dictionary_is_that_of_torch_and_the_effect_of_a_unit_entry(
    sampler: OnnxSampler, generator: Generator
) -> None:
    atoms = sampler.dictionary()
    assert np.array_equal(atoms, generator.dictionary().numpy())
    nothing = np.zeros((1, 8, 16, 16), np.float32)
    impulse = nothing.copy()
    impulse[0, 5, 7, 7] = 1
    added = np.arctanh(sampler.synthesize(impulse)) - np.arctanh(sampler.synthesize(nothing))
    assert np.abs(added[0, :, 13:17, 13:17] - atoms[5]).max() < 1e-5
    added[0, :, 13:17, 13:17] = 0
    assert not added.any()


BAD = [
    {"count": 0},
    {"count": 100_001},
    {"count": 2.0},
    {"count": True},
    {"seed": -1},
    {"seed": 2**64},
    {"seed": "1"},
    {"k": 0},
    {"k": 9},
    {"k": 1.5},
    {"k": [1]},
    {"k": [1, 9]},
    {"k": "2"},
    {"truncation": 0.01},
    {"count": 0, "k": 0},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_values_are_refused_as_the_generator_refuses_them(
    sampler: OnnxSampler, generator: Generator, bad: dict
) -> None:
    with pytest.raises((TypeError, ValueError)) as theirs:
        generator.sample(**{"count": 1, **bad})
    with pytest.raises(theirs.type) as ours:
        sampler.sample(**{"count": 1, **bad})
    assert str(ours.value) == str(theirs.value)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    generator = warmed(create_model("biggan", "l0_inf", width=8))
    generator.config = {"class_names": CLASSES}
    folder = generator.save_pretrained(tmp_path_factory.mktemp("bundles") / "biggan-8.l0_inf")
    bundle(folder)
    return folder


def test_a_conditional_sampler_draws_the_images_of_torch_for_each_class(conditional: Path) -> None:
    sampler, generator = open_sampler(conditional), from_pretrained(conditional)
    assert (sampler.classes, sampler.class_names) == (10, tuple(CLASSES))
    images = []
    for labels in (None, 3, list(range(10)) * 7):
        ours, theirs = (source.sample(70, seed=5, k=8, labels=labels) for source in (sampler, generator))
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
        images.append(ours)
    assert not np.array_equal(images[0], images[1])
    drawn = noise.labels(70, 10, seed=5)
    assert np.array_equal(images[0], sampler.sample(70, seed=5, k=8, labels=drawn))
    assert np.array_equal(images[0][:3], sampler.sample(3, seed=5, k=8))
    image, _ = sampler.run(noise.z(70, 128, seed=5), 8, labels=drawn)
    assert np.array_equal(sampler.run(noise.z(1, 128, seed=5), 8, labels=drawn[:1])[0], image[:1])


@pytest.mark.parametrize("labels", [10, -1, [1, 2], [1, 2.0, 3], "cow", True, []], ids=str)
def test_bad_labels_are_refused_as_the_generator_refuses_them(conditional: Path, labels: object) -> None:
    with pytest.raises((TypeError, ValueError)) as theirs:
        from_pretrained(conditional).sample(3, labels=labels)
    with pytest.raises(theirs.type) as ours:
        open_sampler(conditional).sample(3, labels=labels)
    assert str(ours.value) == str(theirs.value)


def test_run_requires_labels_if_and_only_if_the_sampler_is_conditional(
    conditional: Path, sampler: OnnxSampler
) -> None:
    with pytest.raises(ValueError, match="conditional: give labels .0 airplane"):
        open_sampler(conditional).run(noise.z(2, 128))
    with pytest.raises(ValueError, match="one for each of 2; got 3"):
        open_sampler(conditional).run(noise.z(2, 128), labels=[1, 2, 3])
    with pytest.raises(ValueError, match="unconditional and has no labels"):
        sampler.run(noise.z(2, 128), labels=[1, 2])
    with pytest.raises(ValueError, match="unconditional and has no labels"):
        sampler.sample(1, labels=1)


def test_a_k_without_a_projection_is_refused(unprojected: Path) -> None:
    sampler = open_sampler(unprojected)
    assert sampler.sample(2).shape == (2, 32, 32, 3)
    with pytest.raises(ValueError, match="has no k to set"):
        sampler.sample(2, k=3)


def test_noise_and_codes_of_another_shape_are_refused(sampler: OnnxSampler) -> None:
    for z in (np.zeros(128), np.zeros((2, 127)), np.zeros((0, 128))):
        with pytest.raises(ValueError, match=r"z must have the shape \(B, 128\)"):
            sampler.run(z)
    for code in (np.zeros((8, 16, 16)), np.zeros((1, 8, 16, 15)), np.zeros((0, 8, 16, 16))):
        with pytest.raises(ValueError, match=r"Γ1 must have the shape \(B, 8, 16, 16\)"):
            sampler.synthesize(code)
    with pytest.raises(ValueError, match="threads"):
        OnnxSampler(sampler.path, threads=0)


def test_it_works_without_torch(sampler: OnnxSampler, tmp_path: Path) -> None:
    for name in ("torch", "onnx"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')\n")
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from sparsegen.export.runtime import open_sampler\n"
        "sampler = open_sampler(sys.argv[3])\n"
        "images, atoms = sampler.sample(9, seed=3, k=[2, 5]), sampler.dictionary()\n"
        "sys.stdout.buffer.write(images.tobytes() + atoms.tobytes())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(ROOT), str(sampler.path.parent)],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == sampler.sample(9, seed=3, k=[2, 5]).tobytes() + sampler.dictionary().tobytes()


def test_a_model_is_opened_by_name_folder_or_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "MODELS", folder.parent)
    monkeypatch.chdir(folder)
    wanted = open_sampler(folder).sample(1)
    for given in ("dcgan-8.ml", str(folder), folder / "generator.onnx", "generator.onnx", "."):
        assert np.array_equal(open_sampler(given).sample(1), wanted)
    with pytest.raises(ValueError, match=r"no model 'dcgan-8.mk': neither.*dcgan-8.ml"):
        open_sampler("dcgan-8.mk")
    with pytest.raises(ValueError, match=r"config.json is truncated, corrupt or not an ONNX file"):
        open_sampler(folder / "config.json")


def test_an_embedded_file_finds_its_synthesis_graph_in_its_folder(
    generator: Generator, tmp_path: Path
) -> None:
    export_onnx(generator, tmp_path / "m.onnx", synthesis=True)
    image, codes = OnnxSampler(tmp_path / "m.onnx").run(noise.z(1, 128))
    assert OnnxSampler(tmp_path / "m.onnx").synthesize(codes[0]).tobytes() == image.tobytes()
    with pytest.raises(ValueError, match="is the synthesis graph"):
        OnnxSampler(tmp_path / "m.synthesis.onnx")
    (tmp_path / "m.synthesis.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="m.synthesis.onnx is missing"):
        OnnxSampler(tmp_path / "m.onnx").dictionary()


def rewritten(file: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(file, load_external_data=False)
    change(model)
    file.write_bytes(model.SerializeToString())


def newer(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = model.metadata_props[0].value.replace('"format": 2', '"format": 3')


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def linked(file: Path) -> None:
    file.rename(file.parent.parent / "elsewhere")
    file.symlink_to(file.parent.parent / "elsewhere")


GRAPH, WEIGHTS = bundled.GRAPH, bundled.WEIGHTS
BROKEN = {
    "missing": (GRAPH, Path.unlink, FileNotFoundError, "generator.onnx is missing"),
    "empty": (GRAPH, lambda file: cut(file, 0), ValueError, "generator.onnx is truncated, corrupt"),
    "truncated": (GRAPH, lambda file: cut(file, -9), ValueError, "generator.onnx is truncated, corrupt"),
    "text": (
        GRAPH,
        lambda file: file.write_text("<html>"),
        ValueError,
        "generator.onnx is truncated, corrupt",
    ),
    "foreign": (
        GRAPH,
        lambda file: rewritten(file, lambda model: model.ClearField("metadata_props")),
        ValueError,
        "was not exported by sparsegen",
    ),
    "newer": (GRAPH, lambda file: rewritten(file, newer), ValueError, "format 3.*upgrade sparsegen"),
    "no weights": (WEIGHTS, Path.unlink, FileNotFoundError, "generator.safetensors is missing"),
    "weights cut": (WEIGHTS, lambda file: cut(file, -1), ValueError, "generator.safetensors is truncated"),
    "weights emptied": (WEIGHTS, lambda file: cut(file, 0), ValueError, "generator.safetensors is truncated"),
    "weights of another": (
        WEIGHTS,
        lambda file: file.write_bytes(file.read_bytes()[:-2] + b"\0\0"),
        ValueError,
        "is not the file that generator.onnx was exported with",
    ),
    "weights linked": (WEIGHTS, linked, ValueError, "a link to another folder"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_the_error_for_a_broken_file_has_its_name_and_the_reason(copied: Path, case: str) -> None:
    name, damage, error, message = BROKEN[case]
    damage(copied / name)
    with pytest.raises(error, match=message) as raised:
        open_sampler(copied)
    assert "\n" not in str(raised.value) and raised.value.__cause__ is None
    assert runtime.FORMAT == 2


OLD_NEEDLE = """
    <domain: "ai.sparsegen", opset_import: ["" : 20]>
    NeedleProjection (code, k) => (y) {
        limit = Shape <start = 1, end = 2> (code)
        one = Constant <value_ints = [1]> ()
        k_1d = Reshape (k, one)
        at_least_1 = Max (k_1d, one)
        kept = Min (at_least_1, limit)
        magnitude = Abs (code)
        largest, index = TopK <axis = 1, largest = 1, sorted = 0> (magnitude, kept)
        value = GatherElements <axis = 1> (code, index)
        zero = Constant <value = float {0.0}> ()
        size = Shape (code)
        zeros = Expand (zero, size)
        y = ScatterElements <axis = 1> (zeros, index, value)
    }
"""


def test_a_file_of_format_1_takes_one_k_for_all_images(copied: Path, sampler: OnnxSampler) -> None:
    def older(model: onnx.ModelProto) -> None:
        model.metadata_props[0].value = model.metadata_props[0].value.replace('"format": 2', '"format": 1')
        model.functions[0].CopyFrom(onnx.parser.parse_function(OLD_NEEDLE))

    rewritten(copied / GRAPH, older)
    old = open_sampler(copied)
    for k in (1, [2, 3], None):
        assert np.array_equal(old.sample(5, seed=1, k=k), sampler.sample(5, seed=1, k=k))
    with pytest.raises(ValueError, match="older sparsegen and takes one k for all images: export it again"):
        old.sample(2, k=np.array([[1, 2], [1, 2]]))


def test_each_image_may_have_its_own_k(sampler: OnnxSampler, generator: Generator, unprojected: Path) -> None:
    random = np.random.default_rng(0)
    k = random.integers(1, 9, (70, 2))
    for source in (sampler, generator):
        images = source.sample(70, seed=5, k=k)
        for pair in np.unique(k, axis=0)[:12]:
            same = (k == pair).all(1)
            assert np.array_equal(images[same], source.sample(70, seed=5, k=pair.tolist())[same])
    _, codes = sampler.run(noise.z(70, 128), k.astype(np.uint8))
    for code, each in zip(codes, k.T, strict=True):
        assert ((code != 0).sum(1).max((1, 2)) <= each).all() and (code != 0).any((1, 2, 3)).all()
    beyond = k.copy()
    beyond[66, 1] = 9
    wrong = {
        r"k of image 66 is the non-zeros kept in each needle of Γ2, from 1 to 8; got 9": beyond,
        r"image 0 .* Γ1, from 1 to 8; got 0": k * 0,
        r"must have the shape \(70, 2\): images, and Γ1, Γ2; got \(69, 2\)": k[:69],
        r"got \(70, 1\)": k[:, :1],
        r"got \(70, 2, 1\)": k[..., None],
        "must be integers; got an array of float64": k.astype(float),
        "got an array of bool": k > 0,
        "70 numbers": k.tolist(),
    }
    for source in (sampler, generator):
        for message, values in wrong.items():
            with pytest.raises((TypeError, ValueError), match=message):
                source.sample(70, k=values)
    for source in (open_sampler(unprojected), from_pretrained(unprojected)):
        with pytest.raises(ValueError, match="no level, since there is no projection"):
            source.sample(70, k=k)


WRONG_METADATA = {
    "z_dim": [(10**12, "from 1 to 65536"), (-3, "got -3"), ("x", "got 'x'"), (99, "metadata .99.")],
    "dials": [
        ("x", "mapping"),
        ([{"a": 1}], "argument 'a'"),
        ([], "k_1, k_2, too"),
        ([{"level": 1, "unit": "<b>", "k": 1, "limit": 8}], "one of needle, code"),
    ],
    "image_size": [(10**9, "from 1 to 65536"), (64, "graph has image of the shape")],
    "classes": [(-1, "got -1"), (10, "graph has no labels"), (True, "got True")],
    "class_names": [
        (5, "not iterable"),
        (["a"], "at most the 0 classes"),
        (["\x1b[31m"], "control characters"),
    ],
    "code_shapes": [
        ([[1]], "unpack"),
        ([[8, 16, 16]], "level is"),
        ([[9, 16, 16]] * 2, "code_1 of the shape"),
    ],
    "graph": [("both", "generator, synthesis, encoding")],
    "name": [(["a"], "must be a string"), ("<b>\n", "control characters")],
    "license": [({"a": 1}, "must be a string"), ("x" * 99, "1 to 60 characters")],
    "weights": [("../x", "a SHA-256"), (5, "a SHA-256")],
}


@pytest.mark.parametrize("entry", WRONG_METADATA)
def test_metadata_that_sparsegen_does_not_write_are_refused(copied: Path, entry: str) -> None:
    file = copied / GRAPH

    def changed(model: onnx.ModelProto, **entries: object) -> None:
        written = json.loads(model.metadata_props[0].value)
        kept = {name: value for name, value in written.items() if name not in entries}
        model.metadata_props[0].value = json.dumps(
            kept | {name: value for name, value in entries.items() if value is not ...}
        )

    original = file.read_bytes()
    for value, message in WRONG_METADATA[entry]:
        rewritten(file, lambda model, value=value: changed(model, **{entry: value}))
        with pytest.raises(ValueError, match=f"generator.onnx is not as sparsegen exports it: .*{message}"):
            open_sampler(copied)
        file.write_bytes(original)
    if entry not in ("image_size", "classes", "class_names"):  # which older files lack
        rewritten(file, lambda model: changed(model, **{entry: ...}))
        with pytest.raises(ValueError, match=f"the entry '{entry}' is missing"):
            open_sampler(copied)


@pytest.mark.parametrize("location", ["../../../../../etc/passwd", "/etc/passwd", "../elsewhere"])
def test_a_graph_that_reads_a_file_elsewhere_is_refused(copied: Path, location: str) -> None:
    shutil.copy(copied / WEIGHTS, copied.parent / "elsewhere")

    def moved(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = location if entry.key == "location" else entry.value

    rewritten(copied / GRAPH, moved)
    with pytest.raises(ValueError, match=r"generator\.onnx reads a file outside of its folder"):
        open_sampler(copied)


def test_a_graph_that_makes_something_else_is_refused(copied: Path) -> None:
    def replaced(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["other" if name == "image" else name for name in node.output]
        model.graph.initializer.append(
            onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [4], [2, 3, 9, 9])
        )
        model.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["shape"], ["image"]))
        for side in next(
            each for each in model.graph.output if each.name == "image"
        ).type.tensor_type.shape.dim:
            side.dim_param = "any"

    rewritten(copied / GRAPH, replaced)
    with pytest.raises(ValueError, match=r"the graph has image of the shape \[3, 9, 9\]"):
        open_sampler(copied)


def test_a_graph_that_cannot_be_computed_is_one_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise runtime.state.Fail("Failed to allocate memory\nat some line")

    sampler = open_sampler(folder)
    monkeypatch.setattr(sampler, "_run", run)
    with pytest.raises(RuntimeError, match=r"generator\.onnx failed: Failed to allocate memory$"):
        sampler.sample(2)


def test_a_folder_as_the_hub_caches_it_opens(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for index, file in enumerate(folder.iterdir()):
        shutil.copy(file, tmp_path / "blobs" / str(index))
        (tmp_path / "snapshot" / file.name).symlink_to(f"../blobs/{index}")
    assert open_sampler(tmp_path / "snapshot").sample(1).shape == (1, 32, 32, 3)


def test_many_samplers_share_their_memory() -> None:
    """Measures the resident memory of a new process; with one arena per session it grows by a gigabyte."""
    script = """
import resource
from sparsegen.export.runtime import open_sampler
from sparsegen.zoo.bundled import list_models
samplers = [open_sampler(name) for name in list_models()]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = peak()
samplers[0].sample(64)
one = peak() - before
for sampler in samplers:
    sampler.sample(64)
print(len(samplers), one, peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    count, one, all_of_them = map(int, done.stdout.split())
    assert count > 10 and all_of_them < one + 200, done.stdout


HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process has not yet found out whether it can use CUDA."""
    monkeypatch.setattr(runtime._AutoCuda, "reason", None)


def test_auto_is_the_cpu_without_a_driver(
    undecided: None, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runtime, "_has_nvidia_driver", lambda: False)
    with caplog.at_level("DEBUG", runtime.__name__):
        assert open_sampler(folder).provider == runtime.expected_provider() == "CPUExecutionProvider"
        open_sampler(folder)
    reason = "no NVIDIA driver" if HAS_CUDA else "this build of onnxruntime has no CUDA"
    assert reason in runtime.cpu_reason()
    (said,) = [record for record in caplog.records if record.name == runtime.__name__]
    assert reason in said.getMessage() and said.levelname == "DEBUG"
    assert reason in runtime.cpu_reason()


@pytest.mark.skipif(not HAS_CUDA, reason="needs onnxruntime-gpu")
def test_a_cuda_that_cannot_be_loaded_is_reported_once_and_replaced_by_the_cpu(
    undecided: None,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
) -> None:
    """What onnxruntime itself does on a machine where its libraries are missing."""
    if runtime._has_nvidia_driver():
        pytest.skip("CUDA may work here")
    monkeypatch.setattr(runtime, "_has_nvidia_driver", lambda: True)
    assert runtime.expected_provider() == "CUDAExecutionProvider"  # until it was tried
    first = open_sampler(folder)
    assert (
        first.provider
        == open_sampler(folder).provider
        == runtime.expected_provider()
        == "CPUExecutionProvider"
    )
    (said,) = [record for record in caplog.records if record.name == runtime.__name__]
    assert said.levelname == "WARNING" and "its CUDAExecutionProvider was not loaded" in said.getMessage()
    assert first.sample(2).shape == (2, 32, 32, 3)
    assert capfd.readouterr() == ("", "")  # of onnxruntime itself


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
def test_a_gpu_that_was_asked_for_is_not_replaced(device: str, folder: Path) -> None:
    if runtime._has_nvidia_driver():
        pytest.skip("CUDA may work here")
    says = "was not loaded, since a library" if HAS_CUDA else "install onnxruntime-gpu instead of onnxruntime"
    with pytest.raises(ValueError, match=f"onnxruntime cannot use {device}: .*{says}.*device cpu or auto"):
        open_sampler(folder, device=device)


@pytest.mark.parametrize(
    ("device", "error", "says"),
    [
        ("mps", ValueError, "auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N; got 'mps'"),
        ("cpu:1", ValueError, "got 'cpu:1'"),
        (None, TypeError, "got None"),
    ],
)
def test_a_device_that_onnxruntime_does_not_know_is_refused(
    device: object, error: type, says: str, folder: Path
) -> None:
    with pytest.raises(error, match=says):
        open_sampler(folder, device=device)


def test_a_damaged_file_has_its_own_error_on_a_gpu(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = copied / bundled.GRAPH
    graph.write_bytes(graph.read_bytes()[:1000])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])

    def refuse(model: str, threads: int, providers: list) -> None:
        raise runtime.state.InvalidProtobuf("damaged")

    monkeypatch.setattr(runtime, "_open", refuse)
    with pytest.raises(ValueError, match=r"truncated, corrupt or not an ONNX file: damaged"):
        OnnxSampler(graph, device="cuda")


def test_a_gpu_gets_its_options_and_larger_batches(
    undecided: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a session that only says that it runs on CUDA."""
    asked, sizes, real = [], [], runtime._open

    class Session:
        def __init__(self, session: onnxruntime.InferenceSession, provider: str) -> None:
            self.session, self.provider = session, provider

        def get_providers(self) -> list[str]:
            return [self.provider, "CPUExecutionProvider"]

        def __getattr__(self, name: str) -> object:
            return getattr(self.session, name)

        def run(self, names: list[str], inputs: dict) -> list[np.ndarray]:
            sizes.append(len(inputs["z"]))
            return self.session.run(names, inputs)

    def opened(model: str, threads: int, providers: list) -> Session:
        asked.append(providers)
        return Session(real(model, threads, ["CPUExecutionProvider"]), providers[0][0])

    known = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: known)
    monkeypatch.setattr(runtime, "_has_nvidia_driver", lambda: True)
    monkeypatch.setattr(runtime, "_open", opened)
    sampler = open_sampler(folder)
    assert sampler.provider == "CUDAExecutionProvider"
    assert np.array_equal(sampler.sample(70), open_sampler(folder, device="cuda:2").sample(70))
    assert sizes == [70, 70]
    first, second = asked
    assert first[0][1] == {"device_id": 0, "use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"}
    assert second[0][1]["device_id"] == 2 and first[-1] == "CPUExecutionProvider"
    assert open_sampler(folder, device="tensorrt").provider == "TensorrtExecutionProvider"
    assert [name for name, _ in asked[-1][:2]] == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]

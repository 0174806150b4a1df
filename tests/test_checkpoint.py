import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sparsegen
from sparsegen.zoo import checkpoint
from sparsegen.zoo.bundled import AUXILIARY, CONFIG, MODELS, WEIGHTS
from sparsegen.zoo.checkpoint import from_pretrained, read_config, upload
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.spec import create_model
from sparsegen.zoo.weights import load_weights, save_weights


@pytest.fixture
def folder(tiny_ml: Generator, tmp_path: Path) -> Path:
    return tiny_ml.save_pretrained(tmp_path / "saved")


def test_a_saved_generator_is_opened_with_the_same_pixels_and_k(tiny_ml: Generator, tmp_path: Path) -> None:
    tiny_ml.set_k([1, 3])
    folder = tiny_ml.save_pretrained(tmp_path / "saved", training={"steps": 7})
    opened = from_pretrained(folder)
    assert not opened.training
    assert [k_range.k for k_range in opened.k_ranges] == [1, 3]
    assert opened.config["training"] == {"steps": 7}
    assert opened.spec.name == "dcgan-8.ml"
    assert np.array_equal(opened.sample(3), tiny_ml.sample(3))


def test_half_precision_halves_the_file_and_is_used_as_float32(tiny_ml: Generator, tmp_path: Path) -> None:
    full, half = (
        tiny_ml.save_pretrained(tmp_path / "a"),
        tiny_ml.save_pretrained(tmp_path / "b", torch.float16),
    )
    assert (half / WEIGHTS).stat().st_size < 0.6 * (full / WEIGHTS).stat().st_size
    opened = from_pretrained(half)
    for key, tensor in opened.state_dict().items():
        expected = tiny_ml.state_dict()[key]
        assert tensor.dtype == expected.dtype
        if tensor.is_floating_point():
            assert torch.equal(tensor, expected.half().float())


@pytest.mark.parametrize("name", sparsegen.list_models())
def test_every_bundled_model_draws_varied_images(name: str) -> None:
    images = from_pretrained(name).sample(16).astype(float)
    assert images.std(axis=(1, 2, 3)).min() > 5  # none is flat
    assert np.abs(images - images.mean(axis=0)).mean() > 20  # they are not all the same


def test_the_bundled_models_take_at_most_60_megabytes() -> None:
    sizes = [file.stat().st_size for file in MODELS.rglob("*") if file.is_file()]
    assert sum(sizes) <= 60_000_000


def test_a_name_pattern_selects_models() -> None:
    assert sparsegen.list_models("nothing*") == []
    assert set(sparsegen.list_models("dcgan*")) <= set(sparsegen.list_models())


def test_an_unknown_model_is_refused_with_similar_names(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(checkpoint, "list_models", lambda: ["dcgan.l0_inf", "dcgan.ml"])
    with pytest.raises(ValueError, match=r"no model 'dcgan\.l1_inf'.*dcgan\.l0_inf"):
        from_pretrained("dcgan.l1_inf")


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"saved/generator\.safetensors is missing"):
        from_pretrained(folder)
    (folder / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=r"it has no config\.json"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * 64 + b[64:]]
)
def test_damaged_weights_are_named(folder: Path, damage: object) -> None:
    path = folder / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ValueError, match=r"generator\.safetensors is corrupt, truncated or not a safetensors"
    ):
        from_pretrained(folder)


def test_weights_of_another_network_and_of_another_width_have_different_errors(folder: Path) -> None:
    save_file({"layer.weight": torch.zeros(2)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"another network: \d+ missing .*1 unexpected \(layer\.weight\)"):
        from_pretrained(folder)
    save_file(create_model("dcgan", "ml", width=4).state_dict(), folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"another width: .* expected"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.to(torch.int8), "as torch.int8; expected torch.float32"),
        (lambda tensor: tensor.to(torch.complex64), "as torch.complex64; expected"),
        (
            lambda tensor: torch.full_like(tensor, torch.nan),
            "holds NaN or infinity in 1 tensors .*earlier checkpoint",
        ),
        (lambda tensor: torch.full_like(tensor, 1e300, dtype=torch.float64), "holds NaN or infinity"),
    ],
    ids=["integers", "complex", "nan", "overflow"],
)
def test_weights_that_are_not_finite_are_refused(folder: Path, change: object, message: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    key = next(key for key, tensor in tensors.items() if tensor.ndim == 4)
    save_file({**tensors, key: change(tensors[key])}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        from_pretrained(folder)
    with pytest.raises(ValueError, match=message):
        upload(folder, "me/mine")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float64])
def test_weights_of_other_floating_point_types_are_converted(folder: Path, dtype: torch.dtype) -> None:
    tensors = load_file(folder / WEIGHTS)
    key = next(key for key, tensor in tensors.items() if tensor.ndim == 4)
    save_file({**tensors, key: tensors[key].to(dtype)}, folder / WEIGHTS)
    assert torch.equal(from_pretrained(folder).state_dict()[key], tensors[key].to(dtype).float())


def test_control_characters_in_the_name_of_a_tensor_are_escaped(folder: Path) -> None:
    save_file({**load_file(folder / WEIGHTS), "\x1b[31m": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"1 unexpected \(\\x1b\[31m\)"):
        from_pretrained(folder)


def test_an_unknown_option_is_refused_with_the_known_ones(folder: Path) -> None:
    for opened in (folder, "dcgan.ml", "me/mine"):
        with pytest.raises(TypeError, match="no option 'local_file_only'.*did you mean 'local_files_only'"):
            from_pretrained(opened, local_file_only=True)
    with pytest.raises(TypeError, match="no option 'licence'.*did you mean 'license'"):
        upload(folder, "me/mine", licence="mit")


@pytest.mark.parametrize("revision", ["", "../x", "a..b", "a b", "-x", "/x", "x/", "a\n"])
def test_a_revision_that_git_does_not_allow_is_refused(revision: str) -> None:
    for given in ({"revision": revision}, {}):
        with pytest.raises(ValueError, match="revision"):
            from_pretrained("me/mine" if given else f"me/mine@{revision}", **given)
    with pytest.raises(TypeError, match="a revision must be a string; got 5"):
        from_pretrained("me/mine", 5)


@pytest.mark.parametrize("token", ["", "hf_SECRET\nX: y", "hf_SECRETé", "hf_SECRET x"])
def test_a_token_that_cannot_be_one_is_refused_without_showing_it(token: str, folder: Path) -> None:
    for call in (
        lambda: from_pretrained("me/mine", token=token),
        lambda: upload(folder, "me/mine", token=token),
    ):
        with pytest.raises(ValueError, match="the token of the Hub is empty, or has spaces") as raised:
            call()
        assert "SECRET" not in str(raised.value) and raised.value.__cause__ is None


def test_a_changed_k_drops_the_evaluation(tiny_ml: Generator, tmp_path: Path) -> None:
    evaluation = {"metric": "fid", "distance": 3.0}
    tiny_ml.save_pretrained(tmp_path / "a", training={"steps": 5}, evaluation=evaluation)
    generator = from_pretrained(tmp_path / "a")
    assert read_config(generator.save_pretrained(tmp_path / "b"))["evaluation"] == evaluation
    generator.set_k(1)
    config = read_config(generator.save_pretrained(tmp_path / "c"))
    assert config["k"] == [1, 1] and config["training"] == {"steps": 5} and "evaluation" not in config


def test_weights_are_not_saved_as_integers(tiny_ml: Generator, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="floating-point type, e.g. torch.float16; got torch.int8"):
        tiny_ml.save_pretrained(tmp_path / "a", dtype=torch.int8)
    with pytest.raises(TypeError, match="got half"):
        tiny_ml.save_pretrained(tmp_path / "a", dtype="half")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("given", "error"), [("", ValueError), (" ", ValueError), (None, TypeError), (3, TypeError)]
)
def test_an_invalid_model_name_is_refused_with_the_accepted_ones(
    given: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"a model must be the name of a bundled model, .*; got {given!r}"):
        from_pretrained(given)


def test_a_pickle_is_refused_without_being_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    file = tmp_path / "model.pt"
    file.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="is a pickle.*safetensors only"):
        from_pretrained(file)
    with pytest.raises(FileNotFoundError, match=r"does not open pickles \(model.pt\)"):
        from_pretrained(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_newer_format_asks_for_an_upgrade(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "format": 99}))
    with pytest.raises(ValueError, match=r"has format 99, this sparsegen reads up to 1: upgrade"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "null",
        '{"architecture": "dcgan"}',
        "\x00",
        '{"format": true}',
        '{"format": 0}',
        '{"format": "1"}',
        "[" * 100_000,
    ],
    ids=range(10),
)
def test_an_invalid_config_is_refused_by_name(folder: Path, text: str) -> None:
    (folder / CONFIG).write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is not a sparsegen config"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"k": [0, 1]}, "got 0"),
        ({"k": [99, 1]}, "from 1 to 8; got 99"),
        ({"k": "all"}, "k"),
        ({"architecture": "stylegan"}, "no architecture 'stylegan'"),
        ({"atoms": "wide"}, "got 'wide'"),
        ({"atoms": True}, "got True"),
        ({"k": []}, "2 in ml; got"),
        ({"k": [1]}, "2 in ml; got"),
        ({"k": [1, 2, 3]}, "2 in ml; got"),
        ({"k": 3}, "k must be of type list; got 3"),
        ({"k": [1, 2.0]}, "k must be a list of integers"),
        ({"k": [True, 1]}, "k must be a list of integers"),
        ({"architecture": ["dcgan"]}, "architecture must be of type str"),
        ({"regularizer": None}, "regularizer must be of type str; got None"),
        ({"regularizer": "l0_inf"}, "1 in l0_inf"),
        ({"model": "dcgan.ml"}, "model is 'dcgan.ml', and the other entries make it 'dcgan-8.ml'"),
        ({"class_names": ["cat"]}, "must name at most the 0 classes; got"),
        ({"class_names": "cat"}, "class_names must be of type list"),
        ({"license": 7}, "license must be of type str; got 7"),
        ({"license": "mit\nor"}, "license must be 1 to 60 characters without control characters"),
        ({"license": "x" * 61}, "license must be 1 to 60 characters"),
        ({"training": {"data": "\x1b[31m"}}, "training.data must be .* without control characters"),
        ({"training": {"notes": [{"a\x9b": 1}]}}, "a name of an entry in training.notes must be"),
        ({"training": {"data": 5}}, "training.data must be of type str . None; got 5"),
        ({"training": {"steps": "many"}}, "training.steps must be of type int; got 'many'"),
        (
            {"evaluation": {"metric": "fid", "distance": 3.0, "count": {}}},
            "evaluation.count must be of type int . None",
        ),
        ({"training": {"data": "x" * 1001}}, "training.data must be 1 to 1,000 characters"),
        ({"training": {"steps": 10**400}}, "is too large"),
        ({"evaluation": {"metric": "fid", "distance": 10**19 * 2}}, "is too large"),
        ({"training": [1]}, "training must be of type dict"),
        ({"evaluation": "good"}, "evaluation must be of type dict"),
        ({"evaluation": {"metric": "fid"}}, "evaluation.distance is missing"),
        ({"evaluation": {"metric": "fid", "distance": "low"}}, "got 'low'"),
        (
            {"evaluation": {"metric": "fid", "distance": 3.0, "distances": [3.0]}},
            "distances must be of type dict",
        ),
    ],
)
def test_a_config_with_a_wrong_entry_is_named(folder: Path, entry: dict, message: str) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **entry}))
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        from_pretrained(folder)


@pytest.mark.parametrize("entry", ["model", "architecture", "regularizer", "atoms", "k"])
def test_a_config_that_lacks_an_entry_is_named(folder: Path, entry: str) -> None:
    config = json.loads((folder / CONFIG).read_text())
    del config[entry]
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config\.json: the entry {entry} is missing"):
        from_pretrained(folder)


def test_a_config_without_a_license_has_none(folder: Path) -> None:
    opened = from_pretrained(folder)
    assert "license" not in opened.config and "license" not in opened.make_config()


def test_changed_weights_do_not_keep_the_measurement(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    evaluation = {"metric": "fid", "distance": 1.0}
    (folder / CONFIG).write_text(json.dumps({**config, "training": {"steps": 3}, "evaluation": evaluation}))
    opened = from_pretrained(folder, device="cpu", dtype=torch.float64)
    for kept in (opened, opened.to(torch.float32, memory_format=torch.contiguous_format)):
        assert kept.make_config()["evaluation"] == evaluation
    with torch.no_grad():
        next(opened.parameters()).view(-1)[0] += 1
    assert "evaluation" not in opened.make_config()
    assert opened.make_config()["training"] == {"steps": 3, "edited": True}


def test_compiled_parts_are_saved_under_their_names_and_replaced_ones_refused(
    folder: Path, tmp_path: Path
) -> None:
    opened = from_pretrained(folder)
    expected, coder = opened.sample(2), opened.coder
    opened.coder = torch.compile(coder)
    assert np.array_equal(from_pretrained(opened.save_pretrained(tmp_path / "compiled")).sample(2), expected)
    opened.coder = torch.nn.Sequential(coder)
    with pytest.raises(
        ValueError, match=r"replaced or wrapped.*undo it before you save; changed weights: coder\."
    ):
        opened.save_pretrained(tmp_path / "wrapped")
    assert not (tmp_path / "wrapped").exists()


def test_saving_keeps_training_and_evaluation_and_no_other_entries(folder: Path, tmp_path: Path) -> None:
    opened = from_pretrained(folder)
    opened.save_pretrained(folder, training={"steps": 7})
    again = from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert from_pretrained(again).config["training"] == {"steps": 7}
    with pytest.raises(TypeError, match="format"):
        opened.save_pretrained(folder, format=99)


def test_a_revision_of_a_local_model_is_refused(folder: Path) -> None:
    for given in (folder, *sparsegen.list_models()[:1]):
        with pytest.raises(ValueError, match="omit the revision; got 'v1'"):
            from_pretrained(given, revision="v1")


def test_the_folder_of_a_run_is_refused_with_its_models(tiny_ml: Generator, tmp_path: Path) -> None:
    for model in ("best", "checkpoints/00000010", "checkpoints/00000020"):
        tiny_ml.save_pretrained(tmp_path / model)
    with pytest.raises(FileNotFoundError, match=r"training run: .*best or .*checkpoints/00000020$"):
        from_pretrained(tmp_path)


def test_a_failed_save_keeps_the_previous_checkpoint(
    tiny_ml: Generator, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        tiny_ml.save_pretrained(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_hub_id_offline_is_a_clear_error() -> None:
    with pytest.raises(
        ConnectionError, match="no local folder 'nobody/nothing', and it cannot be downloaded"
    ):
        from_pretrained("nobody/nothing")


def test_a_discriminator_can_be_copied(tiny_ml: Generator, tmp_path: Path) -> None:
    source = tiny_ml.save_pretrained(tmp_path / "source")
    discriminator = tiny_ml.spec.auxiliary_networks()["discriminator"]
    file = AUXILIARY["discriminator"]
    save_weights(discriminator, source / file, torch.float32)
    target = tiny_ml.save_pretrained(tmp_path / "target")
    checkpoint.save_auxiliary_networks(source, target, tiny_ml.spec, torch.float16)
    copy = tiny_ml.spec.auxiliary_networks()["discriminator"]
    load_weights(copy, target / file)
    for key, tensor in copy.state_dict().items():
        expected = discriminator.state_dict()[key]
        assert torch.equal(tensor, expected.half().float() if expected.is_floating_point() else expected)

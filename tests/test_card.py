"""The model card: its metadata for the Hub, and that all facts come from the config."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from commands import CLI
from conftest import CLASSES
from huggingface_hub import ModelCard
from PIL import Image

from sparsegen.export.onnx_file import bundle
from sparsegen.zoo import card
from sparsegen.zoo.architectures import ARCHITECTURES
from sparsegen.zoo.bundled import GRAPH
from sparsegen.zoo.checkpoint import read_config
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.regularizers import REGULARIZERS
from sparsegen.zoo.spec import ModelSpec

EVALUATION = {
    "metric": "fd-efficientnet-lite0",
    "distance": 81.234,
    "count": 10_000,
    "reference_count": 50_000,
    "seed": 0,
    "density": [0.25, 0.249],
}
TRAINING = {
    "data": "cifar10",
    "steps": 20_000,
    "batch_size": 64,
    "seed": 3,
    "precision": "bf16",
    "start_from": None,
}


def model_card(config: dict, repo_id: str = "me/mine", files: Sequence[str] = (GRAPH,)) -> str:
    return card.model_card(ModelSpec.from_config(config).generator(), config, repo_id, files)


def config(regularizer: str, architecture: str = "dcgan", **about: object) -> dict:
    spec = ModelSpec.parse(f"{architecture}-8.{regularizer}")
    return {
        "format": 1,
        "model": spec.name,
        "architecture": spec.architecture,
        "regularizer": regularizer,
        "atoms": spec.atoms,
        "k": [k_range.k for k_range in spec.k_ranges],
        "license": "apache-2.0",
        **about,
    }


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_the_hub_reads_the_metadata(regularizer: str) -> None:
    data = ModelCard(model_card(config(regularizer, training=TRAINING, evaluation=EVALUATION))).data
    assert (data.license, data.library_name) == ("apache-2.0", "sparsegen")
    assert data.pipeline_tag == "unconditional-image-generation"
    assert data.datasets == ["uoft-cs/cifar10"]
    assert {"dcgan", regularizer} <= set(data.tags)


@pytest.mark.parametrize(
    "about", [{}, {"training": TRAINING}, {"training": TRAINING, "evaluation": EVALUATION}]
)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_unknown_facts_are_omitted(regularizer: str, about: dict) -> None:
    card = model_card(config(regularizer, **about))
    assert not re.search(r"None|null|nan|\{|\[\]", card.replace("@article{", "").replace("= {", ""))
    assert ("## Training" in card, "## Measured distance" in card) == (
        "training" in about,
        "evaluation" in about,
    )
    assert ("## Sparsity (k)" in card) == (regularizer in ("l0_inf", "l0", "ml"))
    assert "# mine\n" in card and "https://arxiv.org/abs/2104.00464" in card


def test_the_measured_distance_has_its_name_and_its_protocol() -> None:
    card = model_card(config("ml", evaluation=EVALUATION))
    assert "**fd-efficientnet-lite0: 81.23**" in card and "It is not an FID" in card
    assert "10,000" in card and "50,000" in card and "0.25, 0.249" in card
    assert "**fid: 12.00**" in model_card(
        config("ml", evaluation={**EVALUATION, "metric": "fid", "distance": 12.0})
    )


def test_known_quality_measures_are_listed() -> None:
    distances = {"fd-efficientnet-lite0": 81.234, "fd-cifar10-classifier": 12.5}
    quality = {
        "measured_by": "fd-efficientnet-lite0",
        "class_accuracy": None,
        "precision": 0.7,
        "recall": 0.125,
    }
    evaluation = {**EVALUATION, "distances": distances, "independent": True, **quality}
    card = model_card(config("ml", evaluation=evaluation))
    assert "- fd-cifar10-classifier: 12.5\n" in card and card.count("**fd-efficientnet-lite0: 81.23**") == 1
    assert "Measured with the features of fd-efficientnet-lite0:" in card
    assert "within the real images: 0.7\n" in card and "within the samples: 0.125\n" in card
    assert "requested class:" not in card and "None" not in card and "biased in its favor" not in card
    assert "biased in its favor" in model_card(config("ml", evaluation={**evaluation, "independent": False}))
    assert "Measured with the features" not in model_card(config("ml", evaluation=EVALUATION))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_card_describes_labels_if_the_model_has_any(architecture: str) -> None:
    classes = ARCHITECTURES[architecture].classes
    card = model_card(config("ml", architecture, **({"class_names": CLASSES} if classes else {})))
    data = ModelCard(card).data
    assert ("class-conditional-image-generation" in data.tags) == bool(classes)
    assert data.get("pipeline_tag") == (None if classes else "unconditional-image-generation")
    assert ("0 airplane, 1 automobile" in card) == bool(classes)
    assert ("labels=0" in card) == ("## Labels" in card) == bool(classes)
    assert ("has no labels" in card) == (not classes)


@pytest.mark.parametrize(
    ("architecture", "atoms", "effective", "code_1", "code_2"),
    [  # filters: 4 x 4 of stride 2 after 3 x 3 at half the side; 4 x 4 alone; 3 x 3 after 3 x 3
        ("dcgan", "4 x 4", "8 x 8", "8 x 16 x 16", "8 x 16 x 16"),
        ("cgan", "4 x 4", "10 x 10", "8 x 16 x 16", "16 x 8 x 8"),
        ("sngan", "3 x 3", "6 x 6", "8 x 32 x 32", "16 x 16 x 16"),
        ("biggan", "3 x 3", "5 x 5", "8 x 32 x 32", "8 x 32 x 32"),
    ],
)
def test_a_card_states_the_sizes_of_atoms_and_codes(
    architecture: str, atoms: str, effective: str, code_1: str, code_2: str
) -> None:
    card = " ".join(model_card(config("l0", architecture)).split())
    assert f"D1 of 8 atoms of {atoms} pixels" in card and f"of D1 D2, of {effective} pixels" in card
    assert f"Γ1 is {code_1}, Γ2 is {code_2} " in card


def test_the_python_blocks_of_a_card_run(tiny_conditional: Generator, tmp_path: Path) -> None:
    folder = tiny_conditional.save_pretrained(tmp_path / "model")
    bundle(folder)
    blocks = re.findall(r"```python\n(.*?)```", model_card(read_config(folder)), re.DOTALL)
    assert len(blocks) == 2
    names: dict = {}
    for block in blocks:
        exec(block.replace("me/mine", str(folder)), names)
    assert names["images"].shape == names["sparser"].shape == names["alike"].shape == (16, 32, 32, 3)
    assert np.array_equal(names["alike"], tiny_conditional.sample(16, seed=0, labels=[0] * 16))


def test_the_commands_of_a_card_run(
    tiny_conditional: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparsegen: CLI
) -> None:
    folder = tiny_conditional.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```sh\n(.*?)```", model_card(read_config(folder)), re.DOTALL)
    program, *arguments = shlex.split(block.replace("me/mine", str(folder)))
    done = sparsegen(*arguments)
    assert program == "sparsegen" and done.returncode == 0, done.stderr
    with Image.open("samples.png") as picture:
        assert picture.format == "PNG"


def test_the_python_blocks_of_a_card_compile() -> None:
    for files, count in (((GRAPH,), 2), ((), 1)):
        card = model_card(config("ml"), files=files)
        blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        assert len(blocks) == count and ("onnx" in ModelCard(card).data.tags) == bool(files)
        for block in blocks:
            compile(block, "card", "exec")


def test_a_card_omits_local_folders_and_names_cifar10_only_for_its_images() -> None:
    training = {"data": "/home/me/secret/faces.parquet", "start_from": "/home/me/secret/run"}
    card = model_card(config("l0", training=training))
    assert "secret" not in card and "faces.parquet" in card and "started from: run" in card
    assert "datasets" not in yaml.safe_load(card.split("---")[1])


def test_the_metadata_name_the_starting_model_the_dataset_and_the_license_if_known() -> None:
    data = ModelCard(model_card(config("ml", training={"data": "me/faces", "base_model": "you/base"}))).data
    assert (data.datasets, data.base_model) == (["me/faces"], "you/base")
    unlicensed = {name: value for name, value in config("ml").items() if name != "license"}
    data = ModelCard(model_card(unlicensed)).data
    assert (data.license, data.base_model, data.datasets, data.eval_results) == (None, None, None, None)


def test_a_config_of_an_unknown_model_is_refused() -> None:
    with pytest.raises(ValueError, match="no regularizer 'l7'"):
        model_card({**config("l1"), "regularizer": "l7"})


def pushed_over(existing: str, new: dict, previous: dict | None = None, license_id: str | None = None) -> str:
    generator = ModelSpec.from_config(new).generator()
    return card.model_card(
        generator, new, "me/mine", existing=existing, previous=previous, license_id=license_id
    )


@pytest.mark.parametrize(
    ("existing", "message"),
    [
        (
            "---\nlicense: cc-by-4.0\n---\n",
            "has the license 'cc-by-4.0', and the model 'apache-2.0'.*--license",
        ),
        ("---\nlicense: mit\nMy text.", "it begins with ---, and the second --- is missing"),
        (f"My text.\n{card.END}", "has the second marker of sparsegen and not the first"),
        (f"My text.\n{card.BEGIN}", "has the first marker of sparsegen and not the second"),
        ("---\n- a\n---\n", "cannot be read"),
    ],
)
def test_a_card_that_may_lose_something_is_refused(existing: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pushed_over(existing, config("ml"))


def test_a_requested_license_replaces_that_of_the_card() -> None:
    existing, new = "---\nlicense: cc-by-4.0\n---\n", config("ml", license="mit")
    assert ModelCard(pushed_over(existing, new, license_id="mit")).data.license == "mit"


def test_the_metadata_of_the_model_before_are_not_kept_and_those_of_the_author_are() -> None:
    training = {"data": "cifar10", "base_model": "me/base"}
    before = config("ml", "cgan", training=training)
    existing = model_card(before).replace("- gan\n", "- gan\n- mine\n")
    data = ModelCard(pushed_over(existing, config("l0", training={"data": "faces"}), before)).data
    assert {"mine", "dcgan", "l0"} <= set(data.tags)
    assert not {"ml", "cgan", "onnx", "class-conditional-image-generation"} & set(data.tags)
    assert (data.datasets, data.base_model) == (None, None)
    own = existing.replace("uoft-cs/cifar10", "me/own").replace("me/base", "me/other")
    data = ModelCard(pushed_over(own, config("l0"), before)).data
    assert (data.datasets, data.base_model) == (["me/own"], "me/other")


def test_text_of_a_config_cannot_become_markup() -> None:
    names = ["<script>alert(1)</script>", f"[a](b) {card.END}"]
    about = {"training": {"data": "<img src=x>"}, "evaluation": {**EVALUATION, "metric": "<b>"}}
    text = model_card(config("ml", "cgan", classes=2, class_names=names, **about))
    assert "&lt;script>" in text and "- images: &lt;img src=x>" in text and "**&lt;b>:" in text
    assert not re.search(r"<(script|img|b)\b", text) and "\\[a\\](b)" in text and text.count(card.END) == 1


def test_augmentation_is_stated_if_it_was_used() -> None:
    for augment in (True, False):
        text = model_card(config("ml", training={**TRAINING, "augment": augment}))
        assert ("augmented images for the discriminator (DiffAugment): yes" in text) == augment

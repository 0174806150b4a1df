"""The model card: what the Hub reads of it, and that it says nothing which the config does not."""

import re

import pytest
import yaml
from huggingface_hub import ModelCard

from sparsegen.zoo.card import model_card
from sparsegen.zoo.table1 import REGULARIZERS, ModelSpec

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


def config(regularizer: str, **about: dict) -> dict:
    spec = ModelSpec.parse(f"dcgan-8.{regularizer}")
    return {
        "format": 1,
        "model": spec.name,
        "architecture": spec.architecture,
        "regularizer": regularizer,
        "atoms": spec.atoms,
        "k": [dial.k for dial in spec.generator().dials],
        "license": "apache-2.0",
        **about,
    }


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_the_hub_reads_the_metadata(regularizer: str) -> None:
    data = ModelCard(model_card(config(regularizer, training=TRAINING, evaluation=EVALUATION))).data
    assert (data.license, data.library_name) == ("apache-2.0", "sparsegen")
    assert data.pipeline_tag == "unconditional-image-generation"
    assert data.datasets == ["cifar10"]
    assert {"dcgan", regularizer} <= set(data.tags)


@pytest.mark.parametrize(
    "about", [{}, {"training": TRAINING}, {"training": TRAINING, "evaluation": EVALUATION}]
)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_nothing_is_rendered_that_is_not_known(regularizer: str, about: dict) -> None:
    card = model_card(config(regularizer, **about))
    assert not re.search(r"None|null|nan|\{|\[\]", card.replace("@article{", "").replace("= {", ""))
    assert ("## Training" in card, "## Measured distance" in card) == (
        "training" in about,
        "evaluation" in about,
    )
    assert ("the sparsity dial" in card) == (regularizer in ("l0_inf", "l0", "ml"))
    assert f"# dcgan-8.{regularizer}\n" in card and "arXiv" in card


def test_the_measured_distance_has_its_name_and_its_protocol() -> None:
    card = model_card(config("ml", evaluation=EVALUATION))
    assert "**fd-efficientnet-lite0: 81.23**" in card and "It is no FID" in card
    assert "10,000" in card and "50,000" in card and "0.25, 0.249" in card
    assert "**fid: 12.00**" in model_card(
        config("ml", evaluation={**EVALUATION, "metric": "fid", "distance": 12.0})
    )


def test_the_python_in_it_compiles() -> None:
    blocks = re.findall(r"```python\n(.*?)```", model_card(config("ml")), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")


def test_no_folder_of_this_machine_is_told_and_other_images_are_not_called_cifar10() -> None:
    training = {"data": "/home/me/secret/faces.parquet", "start_from": "/home/me/secret/run"}
    card = model_card(config("l0", training=training))
    assert "secret" not in card and "faces.parquet" in card and "started from: run" in card
    assert "datasets" not in yaml.safe_load(card.split("---")[1])


def test_a_config_of_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match="no regularizer 'l7'"):
        model_card({**config("l1"), "regularizer": "l7"})

"""What a run adapts to the images and its length, and what it refuses, through `sparsegen.training.start`."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import warmed

from sparsegen.training import few as adaptations
from sparsegen.training.plan import Schedule, checkpoints
from sparsegen.training.projected import ProjectedDiscriminator, open_frozen
from sparsegen.training.recipes import DIFF_AUGMENT, RECIPES, recipe_of
from sparsegen.training.start import TrainConfig, start
from sparsegen.zoo.checkpoint import from_pretrained
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.spec import ModelSpec
from sparsegen.zoo.weights import save_weights


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model without a discriminator."""
    return Path(warmed(ModelSpec.parse("dcgan-8.ml").generator()).save_pretrained(tmp_path / "source"))


def config(data: Path, out: Path, **settings: object) -> TrainConfig:
    return TrainConfig(
        "dcgan-8.ml.paper", data, out, **{"steps": 8, "eval_count": 0, "device": "cpu"} | settings
    )


def test_a_folder_of_60_pictures_is_used_with_smaller_batches_and_augmentation(
    few: Path, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "sparsegen")
    run = start(config(few, tmp_path / "run", start_from=str(source)))
    assert (run.plan.batch_size, run.plan.warm_up, run.plan.augment) == (60, 2, True)
    assert run.schedule.eval_every == 50 and run.recipe.augment is DIFF_AUGMENT
    for part in ("a batch has 60, not 64", "fewer than 5,000", "trained for 2 steps before"):
        assert part in caplog.text
    assert [progress.step for progress in run] == list(range(1, 9))
    again = start(config(few, tmp_path / "run", start_from=str(source), steps=12, resume=True))
    assert again.plan == run.plan and again.step == 8


def test_what_is_asked_for_is_kept(few: Path, source: Path, tmp_path: Path) -> None:
    asked = {"batch_size": 16, "augment": False, "warm_up": 3, "eval_every": 7, "start_from": str(source)}
    run = start(config(few, tmp_path / "run", **asked))
    assert (run.plan.batch_size, run.plan.warm_up, run.plan.augment) == (16, 3, False)
    assert run.schedule.eval_every == 7 and run.recipe.augment is RECIPES["dcgan"].augment
    assert start(config(few, tmp_path / "long", steps=None)).schedule.eval_every == 100
    with pytest.raises(ValueError, match="60 images, fewer than one batch of 64: use a batch size of 60"):
        start(config(few, tmp_path / "large", batch_size=64))


def test_few_is_fewer_than_a_tenth_of_cifar10() -> None:
    assert adaptations.FEW == 5_000


def test_many_images_are_not_augmented(monkeypatch: pytest.MonkeyPatch, few: Path, tmp_path: Path) -> None:
    monkeypatch.setattr("sparsegen.training.few.FEW", 60)
    assert not start(config(few, tmp_path / "run")).plan.augment
    monkeypatch.setattr("sparsegen.training.few.FEW", 61)
    assert start(config(few, tmp_path / "other")).plan.augment


def test_a_recipe_with_an_augmentation_keeps_it() -> None:
    own = recipe_of(ModelSpec.parse("diffcr_biggan.ml"))
    assert own.augmented() == own
    images, draws = torch.rand(4, 3, 32, 32), [torch.Generator().manual_seed(0) for _ in range(2)]
    changed = recipe_of(ModelSpec.parse("biggan.ml")).augmented().augment(images, draws[0])
    assert torch.equal(changed, DIFF_AUGMENT(images, draws[1])) and not torch.equal(changed, images)


def test_a_warm_up_longer_than_the_run_is_refused_before_images_are_read(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="warms up for 8 steps and the run ends after 8"):
        start(config(tmp_path / "nowhere", tmp_path / "run", start_from=str(source), warm_up=8))
    assert not (tmp_path / "run").exists()


def test_few_images_are_trained_by_the_projected_recipe_unless_the_name_says_otherwise(
    few: Path, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, "sparsegen")
    settings = {"start_from": str(source), "batch_size": 4, "steps": None}
    run = start(replace(config(few, tmp_path / "run", **settings), model=None))
    assert run.plan.model == "dcgan-8.ml.projected" and run.plan.features == "efficientnet-lite0"
    assert "they are trained by the projected recipe (dcgan-8.ml.paper keeps" in caplog.text
    assert run.schedule == Schedule(2_000, eval_every=100, patience=5) and run.plan.warm_up == 100
    run.save()
    for name in (None, "dcgan-8.ml", "dcgan-8.ml.projected"):
        again = start(replace(config(few, tmp_path / "run", resume=True, **settings), model=name))
        assert again.plan == run.plan
    with pytest.raises(ValueError, match="model: 'dcgan-8.ml.projected' there, 'dcgan-8.ml' requested"):
        start(config(few, tmp_path / "run", resume=True, **settings))  # dcgan-8.ml.paper
    monkeypatch.setattr(adaptations, "FEW", 60)
    many = start(replace(config(few, tmp_path / "many", start_from=str(source)), model="dcgan-8.ml"))
    assert many.plan.model == "dcgan-8.ml" and many.schedule.patience == 0 and many.plan.features is None


def test_without_a_model_the_starting_one_is_trained(few: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give one, or a model to start from"):
        start(replace(config(few, tmp_path / "run"), model=None))
    heads = warmed(ModelSpec.parse("dcgan-8.l0.projected").generator())
    heads.save_pretrained(tmp_path / "heads", training={"features": "cifar10-classifier"})
    frozen = ProjectedDiscriminator(open_frozen("cifar10-classifier"), 32, 0)
    save_weights(frozen, tmp_path / "heads" / "projected.safetensors", torch.float32)
    run = start(replace(config(few, tmp_path / "run", start_from=str(tmp_path / "heads")), model=None))
    assert run.plan.model == "dcgan-8.l0.projected" and run.plan.features == "cifar10-classifier"


@pytest.mark.parametrize(("architecture", "names"), [("biggan", ["few"]), ("dcgan", [])])
def test_pictures_without_labels_are_one_class_of_a_conditional_model(
    few: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, architecture: str, names: list[str]
) -> None:
    given = warmed(ModelSpec.parse(f"{architecture}-8.ml").generator())
    if given.classes:
        given.config = {"class_names": [*"abcdefgh", "few", "j"]}
    given.save_pretrained(tmp_path / "source")
    settings = {"start_from": str(tmp_path / "source"), "batch_size": 4, "steps": 3, "warm_up": 1}
    tuning = replace(config(few, tmp_path / "run", **settings), model=f"{architecture}-8.ml.paper")
    run = start(tuning)
    generator = run.networks.averaged
    assert generator.classes == len(names) and list(generator.class_names) == names
    if names:
        assert "has no labels: all its images are of one class, 'few'" in caplog.text
        z = torch.randn(2, generator.z_dim)
        own, theirs = generator(z, torch.zeros(2, dtype=torch.int64)), given(z, torch.full((2,), 8))
        torch.testing.assert_close(own[0], theirs[0])  # the class of the same name
    assert [progress.step for progress in run] == [1, 2, 3]
    again = start(replace(tuning, steps=4, resume=True))
    assert again.step == 3 and again.networks.averaged.classes == len(names)
    opened = from_pretrained(tmp_path / "run" / "checkpoints" / "00000003")
    assert list(opened.class_names) == names and opened.sample(2).shape == (2, 32, 32, 3)


def test_fine_tuning_keeps_whether_a_model_has_labels(few: Path, tmp_path: Path) -> None:
    source = warmed(ModelSpec.parse("biggan-8.ml").with_classes(0).generator())
    source.save_pretrained(tmp_path / "source")
    settings = {"start_from": str(tmp_path / "source"), "batch_size": 4}
    run = start(replace(config(few, tmp_path / "run", **settings), model="biggan-8.ml.paper"))
    assert run.networks.generator.classes == 0
    labeled = tmp_path / "labeled"
    for name in "abc":
        shutil.copytree(few, labeled / name)
    assert start(replace(config(labeled, tmp_path / "labels", **settings), model=None)).plan.classes == 0
    with pytest.raises(ValueError, match="has 0 classes, and 3 are requested: set classes to 0"):
        start(replace(config(labeled, tmp_path / "x", classes=3, **settings), model="biggan-8.ml.paper"))
    conditional = warmed(ModelSpec.parse("biggan-8.ml").generator()).save_pretrained(tmp_path / "conditional")
    settings["start_from"] = str(conditional)
    with pytest.raises(ValueError, match="has 10 classes, and 0 are requested: give data with labels"):
        start(replace(config(few, tmp_path / "y", classes=0, **settings), model="biggan-8.ml.paper"))


class Distances:
    """An evaluator that returns given distances and diversities in turn, and counts its calls."""

    def __init__(self, distances: Sequence[float], diversity: float = 1.0):
        self.distances, self.diversity, self.calls = distances, diversity, 0

    def __call__(self, generator: Generator) -> dict[str, object]:
        self.calls += 1
        found = {"metric": "test", "distance": self.distances[self.calls - 1], "diversity": self.diversity}
        return found


@pytest.mark.parametrize(
    ("distances", "patience", "best", "end"),
    [
        ([9, 8, 7, 7.5, 7, 6, 5, 4, 3], 3, 8, 8),  # the first is that of the starting model
        ([9, 8, 7, 7.5, 7, 6, 5, 4, 3], 2, 4, 6),
        ([1, 9, 8, 7, 6, 5, 4, 3, 2], 2, 0, 4),  # the warm-up of 2 steps does not count
        ([1, 9, 8, 7, 6, 5, 4, 3, 2], 0, 0, 8),
    ],
)
def test_a_run_ends_when_the_distance_no_longer_falls_and_keeps_the_best(
    few: Path, source: Path, tmp_path: Path, distances: list[float], patience: int, best: int, end: int
) -> None:
    settings = {
        "start_from": str(source),
        "batch_size": 4,
        "eval_every": 1,
        "patience": patience,
        "warm_up": 2,
    }
    run = start(config(few, tmp_path / "run", **settings))
    run.evaluator = Distances(distances)
    steps = [progress.step for progress in run]
    assert (run.best["step"], steps[-1]) == (best, end)
    assert run.ended_early is (end < 8)
    published = from_pretrained(tmp_path / "run" / "best").config
    assert published["training"]["steps"] == best and published["evaluation"]["distance"] == min(
        distances[: run.evaluator.calls]
    )
    assert [int(folder.name) for folder in checkpoints(tmp_path / "run")][-1] == end


def test_a_collapse_is_reported_with_a_remedy(
    few: Path, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"start_from": str(source), "batch_size": 4, "eval_every": 2, "steps": 2, "warm_up": 0}
    run = start(config(few, tmp_path / "run", **settings))
    run.evaluator = Distances([9, 10], diversity=0.031)
    list(run)
    for part in ("step 2: the samples are nearly equal", "by 3.1 %", "of step 0", "dcgan-8.ml.projected"):
        assert part in caplog.text

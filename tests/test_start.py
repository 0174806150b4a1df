"""What a run adapts to the images and its length, and what it refuses, through `sparsegen.training.start`."""

import logging
from pathlib import Path

import pytest
import torch
from conftest import warmed

from sparsegen.training.recipes import DIFF_AUGMENT, RECIPES, recipe_of
from sparsegen.training.start import FEW, TrainConfig, start
from sparsegen.zoo.spec import ModelSpec


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model without a discriminator."""
    return Path(warmed(ModelSpec.parse("dcgan-8.ml").generator()).save_pretrained(tmp_path / "source"))


def config(data: Path, out: Path, **settings: object) -> TrainConfig:
    return TrainConfig("dcgan-8.ml", data, out, **{"steps": 8, "eval_count": 0, "device": "cpu"} | settings)


def test_a_folder_of_60_pictures_is_used_with_smaller_batches_and_augmentation(
    few: Path, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "sparsegen")
    run = start(config(few, tmp_path / "run", start_from=str(source)))
    assert (run.plan.batch_size, run.plan.warm_up, run.plan.augment) == (60, 2, True)
    assert run.schedule.eval_every == 1 and run.recipe.augment is DIFF_AUGMENT
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
    assert start(config(few, tmp_path / "long", steps=None)).schedule.eval_every == 2_000
    with pytest.raises(ValueError, match="60 images, fewer than one batch of 64: use a batch size of 60"):
        start(config(few, tmp_path / "large", batch_size=64))


def test_many_images_are_not_augmented(monkeypatch: pytest.MonkeyPatch, few: Path, tmp_path: Path) -> None:
    monkeypatch.setattr("sparsegen.training.start.FEW", 60)
    assert not start(config(few, tmp_path / "run")).plan.augment
    monkeypatch.setattr("sparsegen.training.start.FEW", 61)
    assert start(config(few, tmp_path / "other")).plan.augment
    assert FEW == 5_000


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

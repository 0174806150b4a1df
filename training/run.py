"""A training run in its folder: resumed from its checkpoints, measured, drawn, its best generator kept.

run.json              what the run is; a resumed run must be the same
metrics.jsonl         one line a measurement
samples/STEP.png      images of fixed noise
checkpoints/STEP/     config.json, generator.safetensors (the average), discriminator.safetensors and
                      state.safetensors, which is all that resuming needs
best/                 the checkpoint with the smallest Fréchet distance so far, without its training state
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from sparsegen.training.data import Batches, Images
from sparsegen.training.loop import Networks, Progress, train
from sparsegen.training.recipes import recipe_of
from sparsegen.zoo import images as pictures
from sparsegen.zoo.bundled import DISCRIMINATOR, WEIGHTS
from sparsegen.zoo.files import atomic_write, write_json
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.pretrained import find_checkpoint, load_weights, read_config, save_pretrained, save_weights
from sparsegen.zoo.table1 import ModelSpec

logger = logging.getLogger(__name__)
STATE = "state.safetensors"
KEPT = 2  # checkpoints: the last, and the one before it in case the last cannot be read


@dataclass(frozen=True)
class Plan:
    """What a run trains, on what and how; two runs of one plan on one machine end in the same weights."""

    model: str
    k: tuple[int, ...] | None
    data: str
    fingerprint: str
    seed: int = 0
    batch_size: int = 64
    precision: str = "no"  # or "bf16": about 1.8x faster on a CPU that has it
    flip: bool = True
    start_from: str | None = None
    warm_up: int = 0  # steps of the discriminator alone, where `start_from` brings none

    @property
    def spec(self) -> ModelSpec:
        return replace(ModelSpec.parse(self.model), k=self.k)


@dataclass(frozen=True)
class Schedule:
    """How long a run is, and after how many steps it is measured, saved, and judged and drawn."""

    steps: int
    measure_every: int = 100
    save_every: int = 500
    judge_every: int = 2_000


def has_discriminator(checkpoint: Path) -> bool:
    """Whether a checkpoint brings its discriminator, as those of a run do and published ones may."""
    return (checkpoint / DISCRIMINATOR).is_file()


Judge = Callable[[Generator], dict]


class Run:
    """One training run and its folder.

    Args:
        judge: Measures the averaged generator; its "distance" picks the best checkpoint. None: not judged.

    Raises: ValueError if the folder holds another run, or one already and `resume` is not given.
    """

    def __init__(
        self,
        folder: str | Path,
        plan: Plan,
        images: Images,
        schedule: Schedule,
        judge: Judge | None = None,
        resume: bool = False,
        device: str | None = None,
    ):
        from accelerate import Accelerator

        self.folder, self.plan, self.schedule, self.judge = Path(folder), plan, schedule, judge
        self.accelerator = Accelerator(mixed_precision=plan.precision, cpu=device == "cpu")
        self.recipe = recipe_of(plan.spec)
        self.batches = Batches(
            images,
            plan.batch_size,
            plan.seed,
            flip=plan.flip,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        self.networks = Networks(
            plan.spec.generator, plan.spec.discriminator, self.recipe, plan.seed, self.accelerator.device
        )
        self.step, self.best = 0, None
        self._claim(resume)
        if self._checkpoints():
            self._load()
        elif plan.start_from:
            self._start_from(plan.start_from)

    def __iter__(self) -> Iterator[Progress]:
        """Trains; saves, measures and judges as it goes. Closing the iterator leaves the last saved state."""
        steps = train(
            self.networks,
            self.recipe,
            self.batches,
            self.accelerator,
            seed=self.plan.seed,
            start=self.step,
            steps=self.schedule.steps,
            warm_up=self.plan.warm_up,
            measure_every=self.schedule.measure_every,
        )
        for progress in steps:
            self.step = progress.step
            if progress.metrics:
                self._log({"step": self.step, **progress.metrics})
            last = self.step == self.schedule.steps
            if self.step % self.schedule.judge_every == 0 or last:
                self._judge()
            if self.step % self.schedule.save_every == 0 or last:
                self.save()
            yield progress

    def save(self) -> None:
        """Writes a checkpoint as one whole: a kill or a full disk while writing leaves the one before it."""
        if not self.accelerator.is_main_process:
            return
        target = self.folder / "checkpoints" / f"{self.step:08d}"
        temporary = target.with_name(f".{target.name}.partial")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            save_pretrained(self.networks.averaged, temporary, training=self._about())
            save_weights(self.networks.discriminator, temporary / DISCRIMINATOR, torch.float32)
            with atomic_write(temporary / STATE) as file:
                file.write_bytes(save(self.networks.state(), metadata={"format": "pt"}))
            write_json(temporary / "run.json", {"step": self.step, "best": self.best})
            shutil.rmtree(target, ignore_errors=True)
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in self._checkpoints()[:-KEPT]:
            shutil.rmtree(old)

    def _claim(self, resume: bool) -> None:
        path = self.folder / "run.json"
        mine = json.loads(json.dumps(asdict(self.plan)))
        if not path.exists():
            if self.accelerator.is_main_process:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(path, mine)
            return
        theirs = json.loads(path.read_text())
        if theirs != mine:
            differing = [
                f"{key}: {theirs.get(key)!r} there, {mine[key]!r} asked"
                for key in mine
                if theirs.get(key) != mine[key]
            ]
            raise ValueError(
                f"{self.folder} holds another run ({'; '.join(differing)}): choose another folder"
            )
        if not resume and self._checkpoints():
            raise ValueError(
                f"{self.folder} holds this run already: go on with --resume, or choose another folder"
            )

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("[0-9]*"))

    def _load(self) -> None:
        for folder in reversed(self._checkpoints()):
            try:
                record = json.loads((folder / "run.json").read_text())
                self.networks.load(load_file(folder / STATE))
                break
            except (OSError, ValueError, SafetensorError) as error:
                logger.warning("%s cannot be read (%s): trying the checkpoint before it", folder, error)
        else:
            raise ValueError(
                f"none of the checkpoints in {self.folder} can be read: start anew in another folder"
            )
        self.step, self.best = record["step"], record["best"]
        if self.accelerator.is_main_process:  # measurements of steps that are now done again
            path = self.folder / "metrics.jsonl"
            lines = path.read_text().splitlines() if path.exists() else []
            kept = [line for line in lines if json.loads(line)["step"] <= self.step]
            with atomic_write(path) as file:
                file.write_text("".join(f"{line}\n" for line in kept))

    def _start_from(self, source: str) -> None:
        folder = find_checkpoint(source)
        load_weights(self.networks.generator, folder / WEIGHTS)
        self.networks.start_average()
        if has_discriminator(folder):
            load_weights(self.networks.discriminator, folder / DISCRIMINATOR)

    def _judge(self) -> None:
        if not self.accelerator.is_main_process:
            return
        self._draw_samples()
        if self.judge is None:
            return
        verdict = self.judge(self.networks.averaged)
        self._log({"step": self.step, "evaluation": verdict})
        if self.best is None or verdict["distance"] < self.best["distance"]:
            self.best = {"step": self.step, **verdict}
            averaged, about = self.networks.averaged, {"training": self._about(), "evaluation": verdict}
            save_pretrained(averaged, self.folder / "best", **about)

    def _draw_samples(self) -> None:
        path = self.folder / "samples" / f"{self.step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as file:
            file.write_bytes(pictures.png(pictures.grid(self.networks.averaged.sample(64, seed=0)), 2))

    def _log(self, record: dict) -> None:
        if self.accelerator.is_main_process:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")

    def _about(self) -> dict:
        """What a checkpoint tells of its training: the plan, without the paths of this machine."""
        about = {**asdict(self.plan), "steps": self.step}
        del about["model"], about["k"]  # the config has them
        if Path(self.plan.data).exists():
            about["data"] = Path(self.plan.data).name
        if self.plan.start_from:
            config = read_config(find_checkpoint(self.plan.start_from))
            steps = config.get("training", {}).get("steps")
            about["start_from"] = config["model"] + (f" after {steps} steps" if steps else "")
        return about

"""A training run in its folder: resumed from its checkpoints, measured, drawn, its best generator kept.

run.json              what the run is, and what it started from; a resumed run must be the same
metrics.jsonl         one line a measurement
samples/STEP.png      images of fixed noise
checkpoints/STEP/     config.json, generator.safetensors (the average), discriminator.safetensors (and
                      encoder.safetensors) and state.safetensors, which is all that resuming needs
best/                 the checkpoint with the smallest Fréchet distance so far, without state.safetensors
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from sparsegen.common.files import (
    append_line,
    atomic_folder,
    atomic_write,
    read_lines,
    write_json,
)
from sparsegen.common.hardware import has_bfloat16
from sparsegen.pictures import images as pictures
from sparsegen.training.data import Batches, Images
from sparsegen.training.loop import Networks, Progress, train
from sparsegen.training.plan import (
    Plan,
    Schedule,
    Source,
    Start,
    check_start,
    checkpoints,
    identity,
    read_plan,
    with_k,
)
from sparsegen.training.projected import NETWORK as HEADS
from sparsegen.training.projected import open_frozen
from sparsegen.training.recipes import recipe_of
from sparsegen.zoo import labels
from sparsegen.zoo.bundled import COMPANIONS, WEIGHTS
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.weights import load_weights, save_weights

logger = logging.getLogger(__name__)
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)
STATE = "state.safetensors"
KEPT = 2  # checkpoints: the last, and the one before it in case the last cannot be read


def _check_labels(images: Images, classes: int, model: str) -> None:
    """Raises: ValueError if a conditional model cannot be trained on these labels."""
    if not classes:
        return
    if images.labels is None:
        why = f" ({images.unlabeled})" if images.unlabeled else ""
        raise ValueError(
            f"{model} is conditional and {images.name} has no labels{why}: give data with labels, as one folder a "
            f"class"
        )
    if (highest := int(images.labels.max())) >= classes:
        raise ValueError(
            f"{model} has {classes} classes, and {images.name} has labels up to {highest}: give data of "
            f"{classes} classes at most"
        )


Judge = Callable[[Generator], dict]


class Run:
    """One training run and its folder.

    Attributes:
        judge: Measures the averaged generator; its "distance" picks the best checkpoint. None, as it is at first: not
            judged. It is given to a run that was accepted, since making one may take minutes.
        stopped: Whether `until` was stopped before the last step.

    Raises: ValueError if the folder holds another run, or one already and it is not to go on. What is refused leaves
        the folder as it was.
    """

    def __init__(self, start: Start, plan: Plan, images: Images, schedule: Schedule):
        from accelerate import Accelerator

        self.folder, self.schedule, device = start.folder, schedule, start.device
        self.judge: Judge | None = None
        self.stopped = False
        goes_on, origin = start.goes_on, start.origin
        recorded = read_plan(self.folder / "run.json") if goes_on else {}
        if goes_on:
            self.source = Source(**recorded["source"]) if recorded.get("source") else None
        else:
            self.source = origin and Source.of(origin)
        self.plan = plan = with_k(plan, self.source)
        if goes_on:
            self._check_same(recorded, start.resume)
        brought = self.source and self.source.discriminator and self.source.heads == plan.features
        self.warm_up = 0 if brought else plan.warm_up
        if 0 < self.warm_up >= schedule.steps:
            raise ValueError(
                f"the new discriminator warms up for {self.warm_up} steps and the run ends after "
                f"{schedule.steps}, before the generator moves: train for more steps or shorten the warm-up, or "
                f"start from a checkpoint with a discriminator: a run's own, or one exported with it"
            )
        if self.warm_up and origin:
            logger.warning(
                "%s brings no discriminator: a new one learns for %d steps before the generator moves "
                "(a run's own checkpoint has one, and so has a model exported with it)",
                plan.start_from,
                self.warm_up,
            )
        if plan.precision == "bf16" and not has_bfloat16(device.type):
            logger.warning(
                "this %s has no instructions for bfloat16, which makes it far slower than float32: "
                "use the precision no (float32)",
                device.type,
            )
        self.accelerator = Accelerator(mixed_precision=plan.precision, cpu=device.type == "cpu")
        features = open_frozen(plan.features) if plan.features else None
        self.recipe = recipe_of(plan.spec, plan.share, features).faster(plan.rate)
        self.batches = Batches(
            images,
            plan.batch_size,
            plan.seed,
            flip=plan.flip,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        self.networks = Networks(plan.spec, self.recipe, plan.seed, device)
        _check_labels(images, self.networks.generator.classes, plan.model)
        if self.networks.generator.classes:
            self.networks.averaged.config = {"class_names": self._class_names(images)}
        self.step, self.best = 0, None
        if goes_on:
            self._load()
        elif origin:
            self._start_from(origin)
        if self.accelerator.is_main_process:
            self._claim(new=not goes_on)

    def __iter__(self) -> Iterator[Progress]:
        """Trains; saves, measures and judges as it goes. Closing the iterator leaves the last saved state."""
        for progress in self._steps():
            self.step = progress.step
            if progress.metrics:
                self._log({"step": self.step, **progress.metrics})
            last = self.step == self.schedule.steps
            if self.step % self.schedule.judge_every == 0 or last:
                self._judge()
            if self.step % self.schedule.save_every == 0 or last:
                self.save()
            yield progress

    @property
    def generator(self) -> Generator:
        """The generator with the running average of the weights, in eval mode: what checkpoints hold."""
        return self.networks.averaged

    def until(self, stop: Callable[[], bool]) -> Iterator[Progress]:
        """Trains as iterating does, but ends after the step in which any process is to stop: then all is saved.

        `stopped` says afterwards which it was.
        """
        for progress in self:
            yield progress
            if self.agree(stop()):
                self.save()
                self.stopped = True
                return

    def _steps(self) -> Iterator[Progress]:
        try:
            yield from train(
                self.networks,
                self.recipe,
                self.batches,
                self.accelerator,
                seed=self.plan.seed,
                start=self.step,
                steps=self.schedule.steps,
                warm_up=self.warm_up,
                measure_every=self.schedule.measure_every,
            )
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}: {self._remedy()}") from error

    def save(self) -> None:
        """Writes a checkpoint as one whole: a kill or a full disk while writing leaves the one before it.

        Raises: RuntimeError if training has diverged, so that no checkpoint is given up for a broken one.
        """
        if self.accelerator.is_main_process:
            state = self._finite_state()
            with atomic_folder(self.folder / "checkpoints" / f"{self.step:08d}") as folder:
                self._publish(folder)
                with atomic_write(folder / STATE) as file:
                    file.write_bytes(save(state, metadata={"format": "pt"}))
                write_json(folder / "run.json", {"step": self.step, "best": self.best})
            for old in checkpoints(self.folder)[:-KEPT]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()  # a process that ends has the others killed

    def agree(self, stop: bool) -> bool:
        """Whether any process is to stop: then all do, after the same step, and none waits for another."""
        if self.accelerator.num_processes == 1:
            return stop
        votes = torch.tensor(float(stop), device=self.networks.device)
        return bool(self.accelerator.reduce(votes, "sum"))

    def _class_names(self, images: Images) -> list[str]:
        """Those of the images; where these have numbers alone, those of what the run started from."""
        known = list(self.source.class_names) if self.source else []
        if images.classes or images.labels is None or not known:
            return list(images.classes[: self.networks.generator.classes])
        return known + [str(label) for label in range(len(known), int(images.labels.max()) + 1)]

    def _check_same(self, recorded: dict, resume: bool) -> None:
        """Raises: ValueError unless what the folder holds is this run, and it is to go on."""
        mine, theirs = identity(json.loads(json.dumps(asdict(self.plan)))), identity(recorded)
        differing = [
            f"{key}: {theirs.get(key)!r} there, {value!r} asked"
            for key, value in mine.items()
            if theirs.get(key) != value
        ]
        if differing:
            raise ValueError(
                f"{self.folder} holds another run ({'; '.join(differing)}): choose another folder"
            )
        if not resume:
            raise ValueError(f"{self.folder} holds this run already: resume it, or choose another folder")

    def _claim(self, new: bool) -> None:
        """Makes the folder this run's, without measurements of steps that are to be done again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if new:
            write_json(
                self.folder / "run.json",
                {**asdict(self.plan), "source": asdict(self.source) if self.source else None},
            )
        if (path := self.folder / "metrics.jsonl").exists():
            kept = [record for record in read_lines(path) if record["step"] <= self.step]
            with atomic_write(path) as file:
                file.write_text("".join(f"{json.dumps(record)}\n" for record in kept))

    def _load(self) -> None:
        for folder in reversed(checkpoints(self.folder)):
            try:
                record = json.loads((folder / "run.json").read_text("utf-8"))
                step, best = record["step"], record["best"]
                if type(step) is not int or not (best is None or {"step", "distance"} <= best.keys()):
                    raise ValueError(f"run.json holds {record!r}")
                self.networks.load(load_file(folder / STATE))
                break
            except UNREADABLE as error:
                reason = f"{type(error).__name__}: {error}"[:200]
                logger.warning("%s cannot be read (%s): trying the checkpoint before it", folder, reason)
        else:
            raise ValueError(
                f"none of the checkpoints in {self.folder} can be read: start anew in another folder"
            )
        self.step, self.best = step, best

    def _start_from(self, checkpoint: Path) -> None:
        try:
            load_weights(self.networks.generator, checkpoint / WEIGHTS)
            for name, network in self.networks.companions.items():
                if self.source.heads == self.plan.features if name == HEADS else self.source.discriminator:
                    load_weights(network, checkpoint / COMPANIONS[name])
        except ValueError as error:
            raise ValueError(f"{self.plan.model} cannot start from a {self.source.model}: {error}") from None
        if classes := self.networks.generator.classes:
            order = labels.places(self.networks.averaged.class_names, self.source.class_names, classes)
            for network in (self.networks.generator, *self.networks.companions.values()):
                labels.renumber(network, order)
        self.networks.start_average()

    def _judge(self) -> None:
        if not self.accelerator.is_main_process:
            return
        self._finite_state()
        self._draw_samples()
        if self.judge is None:
            return
        verdict = self.judge(self.networks.averaged)
        self._log({"step": self.step, "evaluation": verdict})
        if self.best is None or verdict["distance"] < self.best["distance"]:
            self.best = {"step": self.step, **verdict}
            with atomic_folder(self.folder / "best") as folder:
                self._publish(folder, evaluation=verdict)

    def _publish(self, folder: Path, **about: object) -> None:
        """Writes what others need of this state: the config, the average, and the networks to tune it with."""
        self.networks.averaged.save_pretrained(folder, training=self._about(), **about)
        for name, network in self.networks.companions.items():
            save_weights(network, folder / COMPANIONS[name], torch.float32)

    def _finite_state(self) -> dict[str, torch.Tensor]:
        state = self.networks.state()
        broken = [key for key, tensor in state.items() if not tensor.isfinite().all()]
        if broken:
            raise RuntimeError(
                f"training has diverged: by step {self.step} {len(broken)} of {len(state)} tensors hold NaN or "
                f"infinity ({broken[0]} first): {self._remedy()}"
            )
        return state

    def _remedy(self) -> str:
        """What to do about a run that has diverged."""
        last = checkpoints(self.folder)
        again = f"start again from {last[-1]} in another folder" if last else "start again"
        lower = f"a lower rate than {self.plan.rate:g} or another seed"
        return f"{again}, with {lower}{' or the precision no' * (self.plan.precision != 'no')}"

    def _draw_samples(self) -> None:
        path = self.folder / "samples" / f"{self.step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as file:
            file.write_bytes(pictures.png(pictures.grid(self.networks.averaged.sample(64, seed=0)), 2))

    def _log(self, record: dict) -> None:
        if self.accelerator.is_main_process:
            append_line(self.folder / "metrics.jsonl", record)

    def _about(self) -> dict:
        """What a checkpoint tells of its training: the plan, without the paths of this machine."""
        about = {**asdict(self.plan), "warm_up": self.warm_up, "steps": self.step}
        del about["model"], about["k"]  # the config has them
        if Path(self.plan.data).exists():
            about["data"] = Path(self.plan.data).name
        if self.plan.start_from:
            about["start_from"] = str(self.source or Path(self.plan.start_from).name)
        return about


def open_run(
    folder: str | Path,
    plan: Plan,
    images: Images,
    schedule: Schedule,
    resume: bool = False,
    device: str | None = None,
) -> Run:
    """Begins a run of a plan in a folder, or goes on with it. Args, Raises: As `check_start` and `Run`."""
    return Run(check_start(folder, plan.spec, plan.start_from, resume, device), plan, images, schedule)

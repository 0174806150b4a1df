"""A training run in its folder, with checkpoints, measurements, samples and its best generator.

run.json              the plan of the run, its starting model and number of processes; a resumed run must have the same
                      plan and starting model
metrics.jsonl         one line per measurement
samples/STEP.png      images of fixed noise
checkpoints/STEP/     config.json, generator.safetensors (the average), discriminator.safetensors (and
                      encoder.safetensors) and state.safetensors, from which it resumes
best/                 the checkpoint with the smallest distance so far, without state.safetensors
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import distributed

from sparsegen.common.files import (
    append_line,
    atomic_folder,
    atomic_write,
    read_lines,
    write_json,
)
from sparsegen.common.hardware import has_bfloat16
from sparsegen.common.text import escape_controls
from sparsegen.pictures import images as pictures
from sparsegen.training.data import ImageLoader, Images
from sparsegen.training.deterministic import deterministic_algorithms
from sparsegen.training.loop import Networks, TrainingStep, train
from sparsegen.training.plan import (
    RunPlan,
    Schedule,
    Start,
    StartingModel,
    check_start,
    check_warm_up,
    checkpoints,
    identity,
    read_plan,
    with_k,
)
from sparsegen.training.processes import check_same, is_first_process, lost_process_named, open_accelerator
from sparsegen.training.projected import NETWORK as HEADS
from sparsegen.training.projected import FrozenFeatures, open_frozen
from sparsegen.training.recipes import recipe_of
from sparsegen.training.trackers import Tracker
from sparsegen.zoo import hub, labels
from sparsegen.zoo.bundled import AUXILIARY, WEIGHTS
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.weights import load_weights, save_weights

logger = logging.getLogger(__name__)
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)
STATE = "state.safetensors"
KERNEL = "kernel_distance"  # the entry of an evaluation that selects the best checkpoint, if it is there
COLLAPSED = 0.1  # diversity of the samples below which a warning is given
KEPT = 2  # checkpoints: the last two, in case the last cannot be read


def _check_labels(images: Images, classes: int, model: str) -> None:
    """Raises: ValueError if a conditional model cannot be trained on the labels of the images."""
    if not classes:
        return
    if images.labels is None:
        why = f" ({images.unlabeled})" if images.unlabeled else ""
        raise ValueError(
            f"{model} is conditional and {images.name} has no labels{why}: give data with labels, e.g. one folder "
            f"per class"
        )
    if (highest := int(images.labels.max())) >= classes:
        raise ValueError(
            f"{model} has {classes} classes, and {images.name} has labels up to {highest}: give data of "
            f"at most {classes} classes"
        )


Evaluator = Callable[[Generator], dict[str, Any]]


class Run:
    """One training run and its folder.

    Args:
        frozen: The network `plan.features`, if it is open already; None: it is opened if the plan names one.

    Attributes:
        evaluator: Measures the averaged generator; its "kernel_distance", or else its "distance", selects the best
            checkpoint. None, the default: no
            evaluation. It is set after the run was accepted, because making one may take minutes.
        trackers: Where measurements and sample grids are sent, besides the files of the folder; closed after the last
            step of an iteration.
        processes: Number of processes that train together. Only the first one evaluates, saves and writes files.
        stopped: Whether `until` was stopped before the last step.
        ended_early: Whether the run ended before the last step, because the distance no longer fell.

    Raises:
        ValueError: If the folder holds another run, or this one and `resume` is not set. The folder is then
            unchanged. With several processes, if the batch cannot be divided among them, or they have different data,
            plans or folders.
    """

    def __init__(
        self,
        start: Start,
        plan: RunPlan,
        images: Images,
        schedule: Schedule,
        frozen: FrozenFeatures | None = None,
    ):
        self.folder, self.schedule, device = start.folder, schedule, start.device
        self.evaluator: Evaluator | None = None
        self.trackers: Sequence[Tracker] = ()
        self.stopped = self.ended_early = False
        goes_on, origin = start.goes_on, start.origin
        recorded = read_plan(self.folder / "run.json") if goes_on else {}
        if goes_on:
            source = StartingModel(**recorded["source"]) if recorded.get("source") else None
        else:
            source = StartingModel.of(origin) if origin else None
        self.source, self.plan = source, (plan := with_k(plan, source))
        if goes_on:
            self._check_same(recorded, start.resume)
        brought = source and source.discriminator and source.heads == plan.features
        self.warm_up = 0 if brought else plan.warm_up
        check_warm_up(self.warm_up, schedule.steps)
        if self.warm_up and origin and source:
            logger.warning(
                "%s has no discriminator%s: a new one is trained for %d steps before the generator is "
                "(checkpoints of a run have one, and models exported with it)",
                *(plan.start_from, f" on {plan.features}" * bool(plan.features and source.discriminator)),
                self.warm_up,
            )
        if plan.precision == "bf16" and not has_bfloat16(device.type):
            logger.warning(
                "this %s has no instructions for bfloat16, which is then much slower than float32: "
                "use the precision no (float32)",
                device.type,
            )
        self.accelerator = open_accelerator(device, plan.precision)
        self.processes = self.accelerator.num_processes
        if frozen is None and plan.features:
            frozen = open_frozen(plan.features)
        recipe = recipe_of(plan.spec, plan.share, frozen).faster(plan.rate)
        self.recipe = recipe.augmented() if plan.augment else recipe
        self.batches = ImageLoader(
            images,
            plan.batch_size,
            plan.seed,
            flip=plan.flip,
            rank=self.accelerator.process_index,
            world_size=self.processes,
        )
        self.networks = Networks(plan.spec, self.recipe, plan.seed, device)
        if plan.compiled:
            self.networks.compile()
        _check_labels(images, self.networks.generator.classes, plan.model)
        if self.networks.generator.classes:
            self.networks.averaged.config = {"class_names": self._class_names(images)}
        if source and source.license:  # the weights are derived from it
            self.networks.averaged.config["license"] = source.license
        self._votes: Any = distributed.new_group(backend="gloo") if self.processes > 1 else None
        self.step = 0
        self.best: dict[str, Any] | None = None
        if goes_on:
            self._load()
        elif origin and source:
            self._start_from(origin, source)
        check_same(
            {
                "data": images.fingerprint,
                "plan": identity(asdict(plan)),
                "schedule": schedule,
                "step": self.step,
            }
        )
        if self.accelerator.is_main_process:
            self._claim(new=not goes_on)

    def __iter__(self) -> Iterator[TrainingStep]:
        """Trains, measures, evaluates and saves. After closing the iterator, the last saved state remains."""
        try:
            if self.step == 0 and self.source:  # the best checkpoint is never worse than the starting model
                self._evaluate()
            for progress in self._steps():
                self.step = progress.step
                if progress.metrics:
                    self._log(progress.metrics)
                last = self.step == self.schedule.steps
                if self.step > self.warm_up and (self.step % self.schedule.eval_every == 0 or last):
                    self._evaluate()
                    self.ended_early = self.agree(not last and self._stalled())
                if self.step % self.schedule.save_every == 0 or last or self.ended_early:
                    self.save()
                yield progress
                if self.ended_early:
                    return
        finally:
            for tracker in self.trackers:
                tracker.finish()

    @property
    def generator(self) -> Generator:
        """The generator with averaged weights, in eval mode, as in checkpoints."""
        return self.networks.averaged

    def until(self, stop: Callable[[], bool]) -> Iterator[TrainingStep]:
        """Trains as iterating does, but saves and ends after the step in which `stop` returns True in any process.

        Sets `stopped`.
        """
        for progress in self:
            yield progress
            if self.agree(stop()):
                self.save()
                self.stopped = True
                return

    def _steps(self) -> Iterator[TrainingStep]:
        try:
            with deterministic_algorithms(self.plan.deterministic), lost_process_named():
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
        """Writes a checkpoint atomically.

        Raises:
            RuntimeError: If training has diverged; older checkpoints are then kept.
        """
        if self.accelerator.is_main_process:
            state = self._finite_state()
            with atomic_folder(self.folder / "checkpoints" / f"{self.step:08d}") as folder:
                self._publish(folder)
                with atomic_write(folder / STATE) as file:
                    file.write_bytes(save(state, metadata={"format": "pt"}))
                write_json(
                    folder / "run.json", {"step": self.step, "best": self.best, "processes": self.processes}
                )
            for old in checkpoints(self.folder)[:-KEPT]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()  # when one process ends, the others are terminated

    def agree(self, stop: bool) -> bool:
        """Returns whether any process has `stop` set, so that all stop after the same step."""
        if self.processes == 1:
            return stop
        votes = torch.tensor(float(stop))  # on the CPU, because reading it from a GPU would wait for the step
        with lost_process_named():
            distributed.all_reduce(votes, group=self._votes)
        return bool(votes)

    def _class_names(self, images: Images) -> list[str]:
        """Returns the class names of the images; if they have only numbers, those of the starting model."""
        known = list(self.source.class_names) if self.source else []
        if images.classes or images.labels is None or not known:
            return list(images.classes[: self.networks.generator.classes])
        known += [str(label) for label in range(len(known), int(images.labels.max()) + 1)]
        return known[: self.networks.generator.classes]

    def _check_same(self, recorded: dict[str, Any], resume: bool) -> None:
        """Raises: ValueError unless the folder holds this run and `resume` is set."""
        mine, theirs = identity(json.loads(json.dumps(asdict(self.plan)))), identity(recorded)
        differing = [
            f"{key}: {theirs.get(key)!r} there, {value!r} requested"
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
        """Writes run.json and removes measurements of steps that will be repeated."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if new:
            write_json(
                self.folder / "run.json",
                {
                    **asdict(self.plan),
                    "source": asdict(self.source) if self.source else None,
                    "processes": self.processes,
                },
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
                logger.warning("%s cannot be read (%s): trying the previous checkpoint", folder, reason)
        else:
            raise ValueError(
                f"none of the checkpoints in {self.folder} can be read: start again in another folder"
            )
        self.step, self.best = step, best
        if (before := record.get("processes", self.processes)) != self.processes and is_first_process():
            logger.warning(
                "the checkpoint is of %d process(es), and the run continues with %d: the batches are the same, and the "
                "weights differ by rounding",
                *(before, self.processes),
            )

    def _start_from(self, checkpoint: Path, source: StartingModel) -> None:
        given = self.networks
        classes, known = given.generator.classes, source.classes or 0
        if bool(classes) != bool(known):
            raise ValueError(
                f"{self.plan.model} cannot start from a {source.model}: fine-tuning keeps whether a model has labels. "
                f"The source has {known} classes, and {classes} are requested: "
                f"{'give data with labels' if known else 'set classes to 0'}"
            )
        if classes:  # the source may have other classes
            given = Networks(self.plan.spec.with_classes(known), self.recipe, self.plan.seed)
        files = {"generator": WEIGHTS, **AUXILIARY}
        brought = [
            name
            for name in given.trained
            if name == "generator"
            or (source.heads == self.plan.features if name == HEADS else source.discriminator)
        ]
        try:
            for name in brought:
                load_weights(given.trained[name], checkpoint / files[name])
        except ValueError as error:
            raise ValueError(f"{self.plan.model} cannot start from a {source.model}: {error}") from None
        if classes:
            names = self.networks.averaged.class_names
            mixture = labels.class_mixture(names, source.class_names, classes, known)
            for name in brought:
                labels.transfer(given.trained[name], self.networks.trained[name], mixture)
        self.networks.start_average()

    def _evaluate(self) -> None:
        if not self.accelerator.is_main_process:
            return
        self._finite_state()
        self._draw_samples()
        if self.evaluator is None:
            return
        evaluation = self.evaluator(self.networks.averaged)
        self._log({"evaluation": evaluation})
        if evaluation.get("diversity", 1) < COLLAPSED:
            logger.warning(
                "step %d: the samples are nearly equal: their features vary by %.1f %% of the variance of real images. "
                "Training has collapsed%s",
                *(self.step, 100 * evaluation["diversity"], self._collapse_remedy()),
            )
        if self._is_best(evaluation):
            self.best = {"step": self.step, **evaluation}
            with atomic_folder(self.folder / "best") as folder:
                self._publish(folder, evaluation)

    def _is_best(self, evaluation: dict[str, Any]) -> bool:
        """Returns whether an evaluation has the smallest distance so far, by the kernel distance if it is measured."""
        if self.best is None:
            return True
        name = KERNEL if KERNEL in evaluation and KERNEL in self.best else "distance"
        return bool(evaluation[name] < self.best[name])

    def _stalled(self) -> bool:
        """Returns whether the last `patience` evaluations gave no smaller distance."""
        if not (self.schedule.patience and self.best):
            return False
        since = max(self.best["step"], self.warm_up // self.schedule.eval_every * self.schedule.eval_every)
        return self.step - since >= self.schedule.patience * self.schedule.eval_every

    def _publish(self, folder: Path, evaluation: dict[str, Any] | None = None) -> None:
        """Writes the config, the averaged generator and the auxiliary networks."""
        self.networks.averaged.save_pretrained(folder, training=self._about(), evaluation=evaluation)
        for name, network in self.networks.auxiliary_networks.items():
            save_weights(network, folder / AUXILIARY[name], torch.float32)

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
        """Returns advice for a run that has diverged."""
        last = checkpoints(self.folder)
        again = f"start again from {last[-1]} in another folder" if last else "start again"
        lower = f"a lower rate than {self.plan.rate:g} or another seed"
        return f"{again}, with {lower}{' or the precision no' * (self.plan.precision != 'no')}"

    def _collapse_remedy(self) -> str:
        kept = f"; the best checkpoint so far is of step {self.best['step']}" if self.best else ""
        recipe = "" if self.plan.features else f", the projected recipe ({self.plan.model}.projected)"
        return f"{kept}: stop it and use a lower rate than {self.plan.rate:g}{recipe}, or more images"

    def _draw_samples(self) -> None:
        path = self.folder / "samples" / f"{self.step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        drawn = self.networks.averaged.sample(64, seed=0)
        with atomic_write(path) as file:
            file.write_bytes(pictures.png(pictures.grid(drawn), 2))
        for tracker in self.trackers:
            tracker.samples(self.step, drawn)

    def _log(self, record: dict[str, Any]) -> None:
        """Writes a record of the current step, and sends it to the trackers."""
        if self.accelerator.is_main_process:
            append_line(self.folder / "metrics.jsonl", {"step": self.step, **record})
            for tracker in self.trackers:
                tracker.log(self.step, record)

    def _about(self) -> dict[str, Any]:
        """Returns the entry "training" of a checkpoint: the plan, without paths of this machine."""
        about = {
            **asdict(self.plan),
            "warm_up": self.warm_up,
            "steps": self.step,
            "processes": self.processes,
        }
        del about["model"], about["k"]  # the config has them
        if Path(self.plan.data).exists():
            about["data"] = escape_controls(Path(self.plan.data).name)
        if self.plan.start_from:
            about["start_from"] = escape_controls(str(self.source or Path(self.plan.start_from).name))
            repo_id, _ = hub.with_revision(self.plan.start_from)
            if hub.may_be_id(repo_id) and not Path(repo_id).exists():
                about["base_model"] = repo_id
        return about


def open_run(
    folder: str | Path,
    plan: RunPlan,
    images: Images,
    schedule: Schedule,
    resume: bool = False,
    device: str | None = None,
) -> Run:
    """Starts or resumes a run of a plan in a folder. Args, Raises: As `check_start` and `Run`."""
    return Run(check_start(folder, plan.spec, plan.start_from, resume, device), plan, images, schedule)

"""Restores one image: `restore` for arrays and tensors, `run` for the tasks of the command line and the service."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from sparsegen.common.checks import check_integer
from sparsegen.pictures.picture import MIN_SIDE, Picture, from_array, to_array
from sparsegen.restoration import operators
from sparsegen.restoration.fit import Fit, Progress
from sparsegen.restoration.kinds import check_damage, find_kind
from sparsegen.restoration.operators import Operator, declared
from sparsegen.restoration.settings import SPARSITIES, Preset, Task
from sparsegen.restoration.stopping import HeldOutRule, NoiseFitRule, StoppingRule, estimate_sigma

LOSS_FUNCTIONS = {"mse": torch.square, "l1": torch.abs}  # of what `settings.LOSSES` describes
LEAST_SIGMA = 1 / 255  # below it there is no noise to speak of, and none can be watched
Image = TypeVar("Image", np.ndarray, Tensor, Picture)


@dataclass(frozen=True, eq=False)
class Restoration(Generic[Image]):
    """What became of an image.

    Attributes:
        image: Of the type, the number of dimensions and the range of what was given; of a task a picture.
        history: A row for the first, the last and each 10th iteration: iteration, loss, statistic (NaN where nothing
            watches), density (K,).
        best_iteration: Whose average `image` is.
    """

    image: Image
    history: np.ndarray
    stopped_because: str
    iterations: int
    best_iteration: int
    seconds: float


@dataclass(frozen=True)
class TaskProgress(Progress):
    """The progress of a task, with the present result as a picture."""

    encode: Callable[[Tensor], Picture]

    def picture(self) -> Picture:
        return self.encode(self.image)


@torch.inference_mode(False)  # whatever the caller's: a fit needs gradients
def restore(
    image: np.ndarray | Tensor,
    operator: Callable[[Tensor], Tensor] | None = None,
    preset: str = "fast",
    regularizer: str = "l0_inf",
    sigma: float | None = None,
    seed: int = 0,
    callback: Callable[[Progress], bool | None] | None = None,
    *,
    density: float | None = None,
    loss: str = "mse",
    iterations: int | None = None,
    ensemble_size: int | None = None,
    shape: tuple[int, int, int] | None = None,
    stops: bool | None = None,
    device: str | torch.device | None = None,
) -> Restoration:
    """Restores one image with a sparse Deep Image Prior (section 3; Ulyanov et al., 2018).

    Choice: with a `Mask`, the known pixels are returned as they are, unless there is noise to remove (sigma above 0).

    Args:
        image: What was observed. An array (H, W), (H, W, 1), (H, W, 3) or, with alpha, (H, W, 4), of integers
            or of floats in [0, 1]; or a float tensor (1, C, H, W), with your own operator of any shape.
        operator: From the image to the observation, differentiable; None: nothing but noise. Several members
            call it in several threads, and the mean of what they find is returned: where several images explain
            the observation, take ensemble_size=1.
        preset: "fast"; or "paper", the original's hyperparameters, which does not stop by itself.
        regularizer: "l0_inf", "l0", "l1" or "baseline", of the codes Γ1…ΓK.
        sigma: Standard deviation of the noise in gray levels of 255, which it nowhere exceeds; None: as strong
            as it looks.
        callback: Called after each iteration; when it returns True, the result so far is returned.
        density: Non-zeros over entries of a code, in place of the regularizer's own.
        loss: "mse", or "l1" for outliers such as salt and pepper.
        iterations: The end, if it does not stop before.
        ensemble_size: Hourglasses whose mean is the result, in place of the preset's number: each takes its time.
        shape: Of the image, (C, H, W), where the operator changes it and has no `image_shape`.
        device: Where to compute; None: where the tensor is, the CPU for arrays.
        stops: Whether to stop without the clean image, and take the best; None: as the preset does.

    Raises: TypeError, ValueError before any work; FloatingPointError once the loss is not finite.
    """
    operator = declared(operator)
    task = Task.of(
        preset=preset, regularizer=regularizer, density=density, sigma=sigma, loss=loss, seed=seed,
        iterations=iterations, ensemble_size=ensemble_size,
    )  # fmt: skip
    if stops not in (None, True, False):
        raise TypeError(f"stops is True, False, or None for what the preset does; got {stops!r}")
    _check_shape(shape)
    picture = None if isinstance(image, Tensor) else from_array(image)
    observation = _check_tensor(image, operator) if picture is None else to_tensor(picture)
    observation = observation.to(observation.device if device is None else _device(device))
    settings = task.settings if stops is None else replace(task.settings, stops=stops)
    fit = make_fit(task, observation, operator, shape, settings)
    history, last = follow(fit, callback)
    found = keep_known(fit.image, observation, operator, task)
    if picture is None:
        restored = found.to(image)
    else:
        restored = to_array(picture.with_pixels(to_pixels(found)), np.asarray(image))
    return Restoration(restored, history, **_ending(fit, last))


def run(
    task: Task,
    picture: Picture,
    mask: Picture | None = None,
    kernel: Picture | None = None,
    callback: Callable[[TaskProgress], bool | None] | None = None,
) -> Restoration[Picture]:
    """Does a task; `callback`, and what stays as it is, as in `restore`.

    Args:
        mask: Of inpaint: white in the holes, gray at their rims, black elsewhere.
        kernel: Of deblur with a kernel from a file.

    Raises: ValueError before any work; FloatingPointError once the loss is not finite.
    """
    return run_checked(task, picture, check_damage(task, mask, kernel), callback)


def run_checked(
    task: Task,
    picture: Picture,
    damage: np.ndarray | None = None,
    callback: Callable[[TaskProgress], bool | None] | None = None,
) -> Restoration[Picture]:
    """Does a task as `run`, with what `check_damage` returned for it."""
    operator, observation = make_operator(task, damage), to_tensor(picture)

    def encode(image: Tensor) -> Picture:
        return picture.with_pixels(to_pixels(keep_known(image, observation, operator, task)))

    def told(progress: Progress) -> bool | None:
        return callback(TaskProgress(**_shallow(progress), encode=encode))

    fit = make_fit(task, observation, operator)
    history, last = follow(fit, told if callback else None)
    return Restoration(encode(fit.image), history, **_ending(fit, last))


def make_operator(task: Task, damage: np.ndarray | None) -> Operator:
    """The operator of a task.

    Args:
        damage: As `check_damage` returned it.

    Raises: ValueError if there is no such kind.
    """
    return getattr(operators, find_kind(task.kind).operator).of(task, damage)


def make_fit(
    task: Task,
    observation: Tensor,
    operator: Callable[[Tensor], Tensor] | None = None,
    shape: tuple[int, int, int] | None = None,
    preset: Preset | None = None,
) -> Fit:
    """The fit that a task asks for, not yet begun; `preset` in place of the task's settings."""
    preset, sparsity = preset or task.settings, SPARSITIES[task.regularizer]
    if task.density is not None:
        sparsity = replace(sparsity, density=task.density)
    loss, operator = LOSS_FUNCTIONS[task.loss], declared(operator)
    observation = operator.masked(observation)  # what the holes show is none of the loss
    make_rule = partial(make_stopping_rule, observation, operator, task) if preset.stops else None
    return Fit(observation, preset, sparsity, loss, operator, make_rule, task.seed, shape)


def make_stopping_rule(
    observation: Tensor, operator: Operator, task: Task, random: torch.Generator, ensemble_size: int
) -> StoppingRule:
    """Chooses who decides when to stop: by fitted noise where there is nothing but noise, else by foretelling."""
    if operator.only_noise and task.loss == "mse":
        sigma = estimate_sigma(observation)
        if task.sigma is not None:  # an upper bound: clipping takes noise away, and texture looks like noise
            sigma = sigma.clamp_max(task.sigma / 255)
        return NoiseFitRule(observation, sigma.clamp_min(LEAST_SIGMA), random, ensemble_size)
    return HeldOutRule(observation, LOSS_FUNCTIONS[task.loss], random, operator.known, ensemble_size)


def follow(fit: Fit, callback: Callable[[Progress], bool | None] | None) -> tuple[np.ndarray, Progress]:
    """Runs a fit to its end, or until `callback` returns True; returns its history and the last progress."""
    rows = []
    for progress in fit:
        if progress.looked:
            statistic = np.nan if progress.statistic is None else progress.statistic
            rows.append((progress.iteration, progress.loss, statistic, progress.density))
        if callback and callback(progress):
            fit.stopped_because = "it was asked to"
            break
    return np.array(rows, history_kinds(len(rows[0][3]))), progress


def history_kinds(codes: int) -> list[tuple]:
    """The columns of a history, as numpy has them."""
    return [("iteration", "i4"), ("loss", "f4"), ("statistic", "f4"), ("density", "f4", (codes,))]


def keep_known(image: Tensor, observation: Tensor, operator: Operator, task: Task) -> Tensor:
    """The image with the known pixels as they were, unless there is noise to remove (sigma above 0)."""
    if task.sigma or operator.known is None:
        return image
    return torch.where(operator.known.to(image.device) > 0, observation, image)


def _ending(fit: Fit, last: Progress) -> dict:
    return {
        "stopped_because": fit.stopped_because,
        "iterations": last.iteration,
        "best_iteration": last.best_iteration or last.iteration,
        "seconds": last.seconds,
    }


def _shallow(progress: Progress) -> dict:
    return {field.name: getattr(progress, field.name) for field in fields(Progress)}


def _device(name: str | torch.device) -> torch.device:
    """Raises: ValueError if nothing can be computed there."""
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(
            f"device is what torch can compute on, as cpu or cuda; got {name!r}: {why}"
        ) from error


def _check_shape(shape: object) -> None:
    if shape is None:
        return
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise ValueError(f"shape is that of the image, (C, H, W); got {shape!r}")
    for name, side in zip(("C", "H", "W"), shape, strict=True):
        check_integer(name, side, 1, 2**31 - 1, "of the image's shape (C, H, W)")


def _check_tensor(observation: Tensor, operator: Operator) -> Tensor:
    observation = observation.detach()
    if 0 in observation.shape or observation.is_meta:
        raise ValueError(
            f"an observation has entries; got {tuple(observation.shape)} on {observation.device}"
        )
    if observation.ndim < 2 or observation.shape[0] != 1 or not observation.is_floating_point():
        raise ValueError(
            f"an observation is a floating tensor of one sample, as (1, C, H, W); got {observation.dtype} "
            f"{tuple(observation.shape)}"
        )
    if broken := int((~observation.isfinite()).sum()):
        raise ValueError(f"{broken} of {observation.numel()} entries of the observation are NaN or infinite")
    if operator.value_range is not None:
        if observation.ndim != 4 or min(observation.shape[2:]) < MIN_SIDE:
            raise ValueError(
                f"a picture is (1, C, H, W), each side {MIN_SIDE} at least; got {tuple(observation.shape)}"
            )
        low, high = float(observation.min()), float(observation.max())
        lowest, highest = operator.value_range
        if low < lowest or high > highest:
            raise ValueError(
                f"a picture has values in [0, 1], and noise a little beyond; got {low:g} to {high:g}: divide by 255?"
            )
    return observation.float().clone()  # one that came out of inference mode has no gradients


def to_tensor(picture: Picture) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture.pixels.transpose(2, 0, 1)))[None]


def to_pixels(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image[0].permute(1, 2, 0).cpu().numpy())

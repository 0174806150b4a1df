"""Restores one image: `restore` for arrays and tensors, `run` for tasks of the command line and the service."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from sparsegen.common.checks import check_integer
from sparsegen.common.devices import find_device
from sparsegen.common.extras import install_command, is_installed
from sparsegen.pictures.picture import MIN_SIDE, Picture, from_array, to_array
from sparsegen.restoration import operators
from sparsegen.restoration.clipping import undo_clipping
from sparsegen.restoration.filter import CellFilter, Filter
from sparsegen.restoration.fit import Fit, Progress
from sparsegen.restoration.kinds import check_damage, find_kind
from sparsegen.restoration.operators import Damage, Foreign, Jpeg, Operator, declared
from sparsegen.restoration.settings import SPARSITIES, FilterPreset, Preset, Task
from sparsegen.restoration.stopping import HeldOutRule, NoiseFitRule, StoppingRule, estimate_sigma

logger = logging.getLogger(__name__)

LOSS_FUNCTIONS = {"mse": torch.square, "l1": torch.abs}  # described in `settings.LOSSES`
LEAST_SIGMA = 1 / 255  # the smallest noise that `NoiseFitRule` can measure
Image = TypeVar("Image", np.ndarray, Tensor, Picture)
Observation = TypeVar("Observation", np.ndarray, Tensor)


@dataclass(frozen=True, eq=False)
class Restoration(Generic[Image]):
    """The result of a restoration.

    Attributes:
        image: With the type, the number of dimensions and the range of the input; for a task, a picture.
        history: A row for the first, the last and each 10th iteration: iteration, loss, statistic (NaN without a
            stopping rule), density (K,).
        best_iteration: The iteration whose average is `image`.
    """

    image: Image = field(repr=False)
    history: np.ndarray = field(repr=False)
    stopped_because: str
    iterations: int
    best_iteration: int
    seconds: float


@dataclass(frozen=True)
class TaskProgress(Progress):
    """The progress of a task, with the result so far as a picture."""

    encode: Callable[[Tensor], Picture]

    def picture(self) -> Picture:
        return self.encode(self.image)


@torch.inference_mode(False)  # also inside a caller's inference mode: a fit needs gradients
def restore(
    image: Observation,
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
) -> Restoration[Observation]:
    """Restores one image with a sparse Deep Image Prior (section 3; Ulyanov et al., 2018).

    Choice: with a `Mask`, the known pixels are returned unchanged unless sigma is above 0.

    Args:
        image: The observation: an array (H, W), (H, W, 1), (H, W, 3) or, with alpha, (H, W, 4), of integers
            or of floats in [0, 1]; or a float tensor (1, C, H, W), of any shape (1, ...) for your own operator.
        operator: From the image to the observation, differentiable; None: the identity (denoising). It is called from
            several threads, one per network. Use ensemble_size=1 if several different images explain the observation,
            since the mean of the networks is returned.
        preset: "fast"; "paper": the hyperparameters of the original, without early stopping; or "quick":
            collaborative filtering (BM3D) on the CPU instead of a network, in seconds, only without an operator. It
            is deterministic, and the settings of networks are refused.
        regularizer: Sparsity constraint on the codes Γ1…ΓK: "l0_inf", "l0", "l1" or "baseline" (none).
        sigma: Upper bound of the standard deviation of the noise, in gray levels, 0 to 255; None: estimated.
        callback: Called after each iteration; when it returns True, the result so far is returned.
        density: Share of non-zeros in a code, above 0 to 1; None: that of the regularizer.
        loss: "mse", or "l1" for outliers such as salt and pepper.
        iterations: Maximum number of iterations; None: that of the preset.
        ensemble_size: Number of networks averaged, 1 to 8; run time grows linearly; None: that of the preset.
        shape: Shape (C, H, W) of the image, if the operator changes it and has no `image_shape`.
        device: Device of the computation, e.g. "auto" or "cuda:1". None: that of a tensor; for an array "auto", an
            accelerator if there is one, but the CPU with your own operator, which may hold tensors there.
        stops: Whether a stopping rule ends the fit and selects the best average; None: as in the preset.

    Raises:
        TypeError, ValueError: Before any work.
        FloatingPointError: Once the loss is not finite.
    """
    forward = declared(operator)
    task = Task.of(
        preset=preset, regularizer=regularizer, density=density, sigma=sigma, loss=loss, seed=seed,
        iterations=iterations, ensemble_size=ensemble_size,
    )  # fmt: skip
    if stops not in (None, True, False):
        raise TypeError(f"stops must be True, False, or None for the default of the preset; got {stops!r}")
    _check_shape(shape)
    if isinstance(image, Tensor):
        observation = _check_tensor(image, forward)
    else:
        picture = from_array(image)
        observation = to_tensor(picture)
    if device is None and (isinstance(image, Tensor) or isinstance(forward, Foreign)):
        device = observation.device
    observation = observation.to(find_device(device))
    settings = task.settings if stops is None else replace(task.settings, stops=stops)
    fit = make_fit(task, observation, forward, shape, settings)
    finish = make_finish(task, observation, forward, settings)
    history, last = follow(fit, callback)
    found = finish(last.image)
    if isinstance(image, Tensor):
        restored = found.to(image)
    else:
        restored = to_array(picture.with_pixels(to_pixels(found)), image)
    return Restoration(restored, history, **_ending(fit, last))


def run(
    task: Task,
    picture: Picture,
    mask: Picture | None = None,
    kernel: Picture | None = None,
    callback: Callable[[TaskProgress], bool | None] | None = None,
    device: str | torch.device | None = None,
) -> Restoration[Picture]:
    """Runs a task. `callback` and the known pixels of a mask are as in `restore`.

    Args:
        device: "auto" or None: an accelerator if there is one, else the CPU.
        mask: The mask of inpainting: white in the holes, gray or white at their edges, black elsewhere.
        kernel: The kernel of deblurring, if it comes from a file.

    Raises:
        ValueError: Before any work.
        FloatingPointError: Once the loss is not finite.
    """
    damage = picture.cells if find_kind(task.kind).cells else check_damage(task, mask, kernel)
    return run_checked(task, picture, damage, callback, device)


def run_checked(
    task: Task,
    picture: Picture,
    damage: Damage | None = None,
    callback: Callable[[TaskProgress], bool | None] | None = None,
    device: str | torch.device | None = None,
) -> Restoration[Picture]:
    """Runs a task as `run` does, with the result of `check_damage` for it."""
    place = find_device(device)
    operator, observation = make_operator(task, damage).to(place), to_tensor(picture).to(place)
    fit = make_fit(task, observation, operator)
    finish = make_finish(task, observation, operator, task.settings)

    def encode(image: Tensor) -> Picture:
        return picture.with_pixels(to_pixels(finish(image)))

    def report(progress: Progress) -> bool | None:
        return callback(TaskProgress(**_shallow(progress), encode=encode)) if callback else None

    history, last = follow(fit, report)
    return Restoration(encode(last.image), history, **_ending(fit, last))


def make_operator(task: Task, damage: Damage | None) -> Operator:
    """The operator of a task.

    Args:
        damage: As `check_damage` returned it.

    Raises:
        ValueError: If there is no such kind, or it needs a mask or kernel and `damage` is None.
    """
    operator: type[Operator] = getattr(operators, find_kind(task.kind).operator)
    return operator.of(task, damage)


def make_fit(
    task: Task,
    observation: Tensor,
    operator: Callable[[Tensor], Tensor] | None = None,
    shape: tuple[int, int, int] | None = None,
    preset: Preset | FilterPreset | None = None,
) -> Fit | Filter:
    """The fit or the filter of a task, not yet started; `preset` replaces the settings of the task."""
    preset, sparsity = preset or task.settings, SPARSITIES[task.regularizer]
    if isinstance(preset, FilterPreset):
        return _make_filter(task, observation, declared(operator), preset)
    if task.density is not None:
        sparsity = replace(sparsity, density=task.density)
    loss, forward = LOSS_FUNCTIONS[task.loss], declared(operator).to(observation.device)
    observation = forward.masked(observation)  # holes do not contribute to the loss
    make_rule = partial(make_stopping_rule, observation, forward, task) if preset.stops else None
    return Fit(observation, preset, sparsity, loss, forward, make_rule, task.seed, shape)


def _make_filter(task: Task, observation: Tensor, operator: Operator, preset: FilterPreset) -> Filter:
    if preset.stops:
        raise ValueError(f"the preset {task.preset} has no stopping rule: omit stops, or use the preset fast")
    if isinstance(operator, Jpeg):
        return CellFilter(observation, operator.cells, preset.iterations)
    if not operator.only_noise:
        raise ValueError(
            f"the preset {task.preset} removes noise and undoes JPEG compression only: omit the operator, or use the "
            "preset fast"
        )
    return Filter(observation, noise_level(observation, task), preset.iterations)


def noise_level(observation: Tensor, task: Task) -> Tensor:
    """The estimated standard deviation of the noise of each pixel, at most that of the task.

    It is an upper bound, since clipping reduces noise, and texture looks like noise.
    """
    sigma = estimate_sigma(observation.cpu())
    return sigma if task.sigma is None else sigma.clamp_max(task.sigma / 255)


def make_stopping_rule(
    observation: Tensor, operator: Operator, task: Task, random: torch.Generator, ensemble_size: int
) -> StoppingRule:
    """Chooses the stopping rule: `NoiseFitRule` for denoising with the loss mse, else `HeldOutRule`."""
    if operator.only_noise and task.loss == "mse":
        sigma = noise_level(observation, task).clamp_min(LEAST_SIGMA)
        return NoiseFitRule(observation, sigma, random, ensemble_size)
    return HeldOutRule(observation, LOSS_FUNCTIONS[task.loss], random, operator.known, ensemble_size)


def follow(
    fit: Fit | Filter, callback: Callable[[Progress], bool | None] | None
) -> tuple[np.ndarray, Progress]:
    """Runs a fit to its end, or until `callback` returns True; returns its history and the last progress."""
    rows = []
    for progress in fit:
        if progress.looked:
            statistic = np.nan if progress.statistic is None else progress.statistic
            rows.append((progress.iteration, progress.loss, statistic, progress.density))
        if callback and callback(progress):
            fit.stopped_because = "the callback stopped it"
            break
    return np.array(rows, history_dtype(len(rows[0][3]))), progress


def history_dtype(codes: int) -> np.dtype:
    """The columns of a history."""
    return np.dtype([("iteration", "i4"), ("loss", "f4"), ("statistic", "f4"), ("density", "f4", (codes,))])


def make_finish(
    task: Task, observation: Tensor, operator: Operator, settings: Preset | FilterPreset
) -> Callable[[Tensor], Tensor]:
    """What is done with the image of a fit or filter.

    In inpainting, known pixels are kept. In denoising, the image is averaged with that of the filter, and the effect of
    clipped noise is removed.

    Networks and the filter make different errors. On the nine crops of 128 x 128 with noise of 25 gray levels, their
    mean is 0.6 dB better than the networks, and 0.2 dB better than the filter. Weights per place, from an unbiased
    estimate of both risks, were worse than constant ones.

    Choice: without numba, networks alone, and a warning is logged.
    """
    if isinstance(settings, FilterPreset) and isinstance(operator, Jpeg):
        return lambda image: image
    if isinstance(settings, FilterPreset):
        return partial(undo_clipping, observation=observation, sigma=noise_level(observation, task))
    uses_filter = operator.only_noise and settings.stops and task.loss == "mse"
    share = settings.filter_share if uses_filter else 0.0
    if share and not is_installed("numba"):
        logger.warning("the result is that of networks alone: %s adds the filter", install_command("restore"))
        share = 0.0
    if not share:
        return partial(keep_known, observation=observation, operator=operator, task=task)
    sigma = noise_level(observation, task)
    if sigma.mean() < LEAST_SIGMA:  # e.g. JPEG artifacts, of which the filter would remove nothing
        return lambda image: image
    filtered = Filter(observation, sigma, 1).result()
    return lambda image: undo_clipping(image.lerp(filtered, share), observation, sigma)


def keep_known(image: Tensor, observation: Tensor, operator: Operator, task: Task) -> Tensor:
    """The image with its known pixels unchanged, unless sigma is above 0."""
    if task.sigma or operator.known is None:
        return image
    return torch.where(operator.known.to(image.device) > 0, observation, image)


def _ending(fit: Fit | Filter, last: Progress) -> dict[str, Any]:
    return {
        "stopped_because": fit.stopped_because,
        "iterations": last.iteration,
        "best_iteration": last.best_iteration or last.iteration,
        "seconds": last.seconds,
    }


def _shallow(progress: Progress) -> dict[str, Any]:
    return {field.name: getattr(progress, field.name) for field in fields(Progress)}


def _check_shape(shape: object) -> None:
    if shape is None:
        return
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise ValueError(f"shape must be that of the image, (C, H, W); got {shape!r}")
    for name, side in zip(("C", "H", "W"), shape, strict=True):
        check_integer(name, side, 1, 2**31 - 1, "of the image's shape (C, H, W)")


def _check_tensor(observation: Tensor, operator: Operator) -> Tensor:
    observation = observation.detach()
    if 0 in observation.shape or observation.is_meta:
        raise ValueError(
            f"an observation must not be empty; got {tuple(observation.shape)} on {observation.device}"
        )
    if observation.ndim < 2 or observation.shape[0] != 1 or not observation.is_floating_point():
        raise ValueError(
            f"an observation must be a float tensor of one sample, e.g. (1, C, H, W); got {observation.dtype} "
            f"{tuple(observation.shape)}"
        )
    if broken := int((~observation.isfinite()).sum()):
        raise ValueError(f"{broken} of {observation.numel()} entries of the observation are NaN or infinite")
    if operator.value_range is not None:
        if observation.ndim != 4 or min(observation.shape[2:]) < MIN_SIDE:
            raise ValueError(
                f"a picture must be (1, C, H, W), H and W at least {MIN_SIDE}; got {tuple(observation.shape)}"
            )
        low, high = float(observation.min()), float(observation.max())
        lowest, highest = operator.value_range
        if low < lowest or high > highest:
            raise ValueError(
                f"the values of a picture must be in [0, 1], or slightly outside due to noise; "
                f"got {low:g} to {high:g}: divide it by 255"
            )
    return observation.float().clone()  # a tensor from inference mode has no gradients


def to_tensor(picture: Picture) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture.pixels.transpose(2, 0, 1)))[None]


def to_pixels(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray(image[0].permute(1, 2, 0).cpu().numpy())

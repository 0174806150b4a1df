"""Training with several processes, e.g. one per GPU, started by `torchrun` or `accelerate launch`.

All processes together take the same steps as one process with the same global batch, up to rounding:

- Each process has its rows of the global batch, and of the random numbers that one process would draw for it.
- `DistributedDataParallel` averages the gradients.
- Batch norm computes its statistics over the global batch (`SharedBatchNorm`).
- Losses that are not a mean over images average over the global batch first (`global_mean`).
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

# The other processes wait for the first one while it decodes images, computes statistics and evaluates. The default of
# 10 minutes is too short for that. A process that ends is noticed by the launcher, which then ends the others at once.
TIMEOUT = timedelta(days=1)
PINNED = ("cuda", "xpu")  # kinds of devices that copy pinned memory while the host continues


def join_processes(device: str | torch.device | None = None) -> None:
    """Connects this process with the others of the same launch, if there are any. Later calls change nothing.

    Call it before anything else uses accelerate: the first call sets device and timeout.

    Args:
        device: As in `TrainConfig`: "cpu" connects the processes by gloo although there are GPUs.

    Raises:
        RuntimeError: If the processes of the launch cannot be connected, which would train several runs in one folder.
    """
    if (count := int(os.environ.get("WORLD_SIZE", "1"))) == 1:
        return
    from accelerate import PartialState

    # Without it, accelerate starts separate processes on a machine without GPUs.
    cpu = str(device) == "cpu" or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu, timeout=TIMEOUT)
    if state.num_processes != count:
        raise RuntimeError(
            f"WORLD_SIZE is {count}, and accelerate connects {state.num_processes}: start the processes with torchrun "
            f"or accelerate launch, or unset WORLD_SIZE to train with one"
        )


@contextmanager
def first_process_first() -> Iterator[None]:
    """Runs the block in the first process of each node, then in the others, which find the results in the cache."""
    if process_count() == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState().local_main_process_first():
        yield


def is_first_process() -> bool:
    """Returns whether this process prints, evaluates and writes files."""
    return process_count() == 1 or distributed.get_rank() == 0


def open_accelerator(device: torch.device, precision: str) -> "Accelerator":
    """Opens the Accelerator of a run.

    Args:
        device: Of the networks of this process.
        precision: "no" or "bf16".

    Raises:
        ValueError: If several processes are to share one GPU, or accelerate is configured for another method than
            data-parallel training, e.g. FSDP.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    # static_graph: the set of weights that a phase trains is the same in all steps. It also allows unused weights.
    # Buffers are equal in all processes: statistics are shared, and power iterations start from equal weights.
    options = DistributedDataParallelKwargs(broadcast_buffers=False, static_graph=True)
    join_processes(device.type)
    accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu", kwargs_handlers=[options])
    if accelerator.num_processes == 1:
        return accelerator
    method = accelerator.distributed_type.value
    if not method.startswith("MULTI_"):
        raise ValueError(f"training supports data-parallel processes; accelerate is configured for {method}")
    own = accelerator.device
    if device.type != own.type or device.index not in (None, own.index):
        raise ValueError(
            f"each of the {accelerator.num_processes} processes has its own device, this one {own}; got {device}: do "
            f"not set the device, or set it to cpu"
        )
    return accelerator


def process_count() -> int:
    """Returns the number of connected processes."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def global_mean(values: Tensor) -> Tensor:
    """Returns the mean of a tensor over the global batch, as a differentiable scalar.

    A loss term needs it if it is not a mean over images, e.g. the absolute difference of two means. The gradients of
    all processes are averaged, so a mean over images may be local.
    """
    return _over_processes(values.mean())


def _over_processes(values: Tensor) -> Tensor:
    """Returns the mean over the processes of tensors of one shape; differentiable, also twice."""
    count = process_count()
    summed: Tensor = values if count == 1 else _Sum.apply(values / count)
    return summed


class _Sum(torch.autograd.Function):
    """The sum over the processes. The gradient is that of the sum of the losses of all processes.

    The public form of it, in `torch.distributed.nn`, is deprecated in torch 2.14 without a public replacement.
    """

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        summed = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        summed: Tensor = _Sum.apply(gradient)
        return summed


def data_parallel(network: nn.Module, accelerator: "Accelerator") -> nn.Module:
    """Wraps a network so that its gradients are averaged over the processes; with one process returns it unchanged."""
    if accelerator.num_processes == 1:
        return network
    with warnings.catch_warnings():  # torch 2.14 renames `broadcast_buffers`; 2.9 does not have the new name
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        prepared: nn.Module = accelerator.prepare_model(network)
    return prepared


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of the global batch.

    `nn.SyncBatchNorm` does not run on CPUs and cannot be differentiated twice, as gradient penalties need. Labels are
    accepted and ignored, as in `BatchNorm`.

    Shape: features (B, C, H, W), the same in all processes -> the same.
    """

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        if not self.training:
            return super().forward(features)
        x = features.float()
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        # In float64, because the difference of the second moment and the squared mean cancels digits.
        mean, variance = mean.double(), variance.double()
        mean, second = _over_processes(torch.stack([mean, variance + mean.square()]))
        mean, variance = mean.float(), (second - mean.square()).float()
        self._track(mean.detach(), variance.detach(), x.numel() // x.shape[1] * process_count())
        scale = (variance + self.eps).rsqrt()
        made = (x - mean[:, None, None]) * scale[:, None, None]
        if self.affine:
            made = made * self.weight[:, None, None] + self.bias[:, None, None]
        return made.to(features.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return  # there are no running statistics
        self.num_batches_tracked.add_(1)
        rate = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance * (count / (count - 1)), rate)


def share_batch_norm(network: nn.Module) -> None:
    """Replaces each batch norm of a network by a `SharedBatchNorm` with the same parameters and buffers, in place."""
    for parent in list(network.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2d) and not isinstance(norm, SharedBatchNorm):
                shared = SharedBatchNorm(
                    norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
                )
                shared._parameters, shared._buffers = norm._parameters, norm._buffers
                shared.train(norm.training)
                setattr(parent, name, shared)


class BatchRandom(torch.Generator):
    """A random generator of one step, from which each process takes the numbers of its rows; see `draw_rows`.

    Attributes:
        batch: Images of the global batch.
        rows: Those of this process.
    """

    batch: int
    rows: slice


def draw_rows(draw: Callable[[int], Tensor], images: Tensor, random: torch.Generator) -> Tensor:
    """Draws numbers for each image, on the device of the images.

    With a `BatchRandom`, numbers are drawn for the global batch and the rows of this process are returned, so that the
    numbers of an image do not depend on the number of processes. They are drawn on the CPU and thus the same for every
    device.

    Args:
        draw: From a number of images to their numbers, drawn with `random`. Shape: N -> (N, …).
        images: (B, …) with B a multiple of the process's rows: several images per row follow each other as
            (copies, rows).

    Raises:
        ValueError: With several processes, if the images are another number.
    """
    count = len(images)
    if isinstance(random, BatchRandom) and (own := random.rows.stop - random.rows.start) < random.batch:
        copies, rest = divmod(count, own)
        if rest:
            raise ValueError(
                f"a process with {own} rows of the batch draws numbers for a multiple of {own} images; got {count}"
            )
        drawn = draw(copies * random.batch).unflatten(0, (copies, random.batch))
        numbers = drawn[:, random.rows].flatten(0, 1)
    else:
        numbers = draw(count)
    return to_device(numbers, images.device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor of the CPU to a device, without waiting for the device to finish earlier work."""
    if device.type == "cpu":
        return tensor
    pinned = tensor.pin_memory() if device.type in PINNED else tensor
    return pinned.to(device, non_blocking=True)


@contextmanager
def lost_process_named() -> Iterator[None]:
    """Names the cause if a connection to another process breaks in the block.

    Raises:
        ConnectionError: Instead of the error of the backend, whose message is about sockets.
    """
    try:
        yield
    except RuntimeError as error:  # gloo raises no class of its own
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise ConnectionError(
                "another process of this run has ended: see its message or that of the launcher, and resume from the "
                "last checkpoint"
            ) from error
        raise


def check_same(values: Mapping[str, Any]) -> None:
    """Checks that named values are equal in all processes.

    Raises:
        ValueError: In all processes, with the first difference.
    """
    gathered: list[Any] = [None] * process_count()
    if len(gathered) == 1:
        return
    distributed.all_gather_object(gathered, dict(values))
    first, *others = gathered
    for process, theirs in enumerate(others, 1):
        for name, value in first.items():
            if theirs[name] != value:
                raise ValueError(
                    f"all processes of a run must have the same {name}; got {value!r} in process 0 and "
                    f"{theirs[name]!r} in process {process}: give every node the same data and a shared folder"
                )

"""The device of a computation: which there are, which is meant, and how much fits on it.

`check_name` and the names need no torch, so that commands can check their arguments before they import it.
"""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

AUTO = "auto"
NAMES = "auto, cpu, cuda, cuda:N, mps or xpu"
CPU_BATCH = 64  # images
MIN_BATCH, DEFAULT_BATCH, MAX_BATCH = 64, 512, 2048  # images, on accelerators
MEMORY_SHARE = 0.25  # Choice: of the free memory, for the images of one batch

Result = TypeVar("Result")


def check_name(name: str) -> str:
    """Returns the name of a device. Whether the device exists is checked by `find_device`.

    Raises:
        TypeError, ValueError: If it is not the name of a device.
    """
    if not isinstance(name, str):
        raise TypeError(f"a device must be {NAMES}; got {name!r}")
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d{1,4})?", name):
        raise ValueError(f"a device must be {NAMES}; got {name!r}")
    return name


def find_device(device: "str | torch.device | None" = None) -> "torch.device":
    """Returns the device to compute on, after a first use of it.

    Args:
        device: "auto" or None: the accelerator that torch finds, of several its current one, else the CPU. Otherwise a
            name, such as "cpu", "cuda", "cuda:1", "mps" or "xpu", or a `torch.device`.

    Raises:
        TypeError, ValueError: If it is not a device, does not exist, or cannot be used.
    """
    import torch

    existing = available()
    if device is None or device == AUTO:
        device = torch.device(next(reversed(existing)))
    if isinstance(device, torch.device):
        kind, index = device.type, device.index or 0
    else:  # not by torch.device, for which "cuda:256" is cuda:0
        kind, _, number = check_name(device).partition(":")
        index = int(number or 0)
    if index >= existing.get(kind, 0):
        listed = ", ".join(
            f"{kind}:{index}" if count > 1 else kind
            for kind, count in existing.items()
            for index in range(count)
        )
        raise ValueError(f"no device {device}: torch finds {listed}; use one of these, or auto")
    found = torch.device(device)
    if found.type != "cpu":
        try:
            torch.zeros(1, device=found).cpu()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"the device {found} cannot be used ({reason}): use another, e.g. cpu"
            ) from error
    return found


def available() -> dict[str, int]:
    """Returns the number of devices of each kind that torch finds, e.g. {"cpu": 1, "cuda": 2}: the best last."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return {"cpu": 1} | ({accelerator.type: torch.accelerator.device_count()} if accelerator else {})


def batch_size(device: "torch.device", image_bytes: int) -> int:
    """Returns the number of images to compute at once: 64 on a CPU; on an accelerator, a power of two from 64 to 2048.

    Args:
        image_bytes: Estimated peak memory of one image.
    """
    if device.type == "cpu":
        return CPU_BATCH
    free = free_memory(device)
    if free is None:
        return DEFAULT_BATCH
    fitting = max(1, int(MEMORY_SHARE * free / max(1, image_bytes)))
    return min(MAX_BATCH, max(MIN_BATCH, 1 << (fitting.bit_length() - 1)))


def free_memory(device: "torch.device") -> int | None:
    """Returns the free bytes of an accelerator; None if torch does not report them."""
    import torch

    try:
        free, _ = torch.accelerator.get_memory_info(device)
    except (RuntimeError, NotImplementedError):
        return None
    return int(free)


def in_batches(count: int, size: int, run: Callable[[int, int], Result]) -> Iterator[Result]:
    """Yields `run(first, stop)` of consecutive parts of 0 to `count`, of up to `size`.

    If the device has too little memory, the part is repeated with half the size, once.

    Raises:
        RuntimeError: If the memory is too small for half the size, too.
    """
    import torch

    first, halved = 0, False
    while first < count:
        stop = min(first + size, count)
        try:
            result = run(first, stop)
        except torch.OutOfMemoryError as error:
            if halved or stop - first == 1:
                raise RuntimeError(
                    f"the device has too little memory for {stop - first} images at once: free memory on it, or use "
                    "another device, e.g. cpu"
                ) from error
            size, halved = max(1, (stop - first) // 2), True
            continue
        yield result
        first = stop


class _FullPrecision:
    """The settings of float32 on CUDA, and how many blocks need full precision now."""

    lock, users = threading.Lock(), 0
    before: tuple[str, ...] = ()


@contextmanager
def full_precision(device: "torch.device") -> Iterator[None]:
    """Computes float32 on CUDA without TF32, whose products have 10 bits instead of 23, within a `with` block.

    PyTorch uses TF32 in convolutions by default. The setting is global: it also holds for other threads meanwhile, and
    is restored when the last of several blocks ends. Meanwhile torch refuses to read its older form, `allow_tf32`.
    """
    if device.type != "cuda":
        yield
        return
    from torch.backends import cuda, cudnn

    parts = cudnn.conv, cuda.matmul  # type: ignore[attr-defined]  # torch adds `conv` at run time
    state = _FullPrecision
    with state.lock:
        if not state.users:
            state.before = tuple(part.fp32_precision for part in parts)
            for part in parts:
                part.fp32_precision = "ieee"
        state.users += 1
    try:
        yield
    finally:
        with state.lock:
            state.users -= 1
            if not state.users:
                for part, precision in zip(parts, state.before, strict=True):
                    part.fp32_precision = precision

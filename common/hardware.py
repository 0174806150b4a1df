"""Capabilities of the machine."""

import os

WITHOUT_BFLOAT16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}


def has_bfloat16(device: str) -> bool:
    """Returns whether a kind of device, "cpu", "cuda" or another, multiplies bfloat16 faster than float32.

    Without the CPU instructions for it, a training step takes about ten times as long as in float32. The same holds
    if ONEDNN_MAX_CPU_ISA disables them for oneDNN, which does the multiplications on CPUs.
    """
    import torch  # here, because `processors` must not need it

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device != "cpu" or os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in WITHOUT_BFLOAT16:
        return False
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def processors() -> int:
    """Returns the number of processors that this process may use: its affinity, or its cgroup's quota if that is less.

    A container with `--cpus 2` on a machine with 32 processors sees 32, but gets the time of 2.
    """
    from loky import cpu_count  # here, because it takes 0.07 s

    return cpu_count()


def use_threads(threads: int | None = None) -> None:
    """Sets the threads of torch, whose own default ignores the quota of a container."""
    import torch

    torch.set_num_threads(threads or min(torch.get_num_threads(), processors()))

"""Deterministic algorithms of torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

WORKSPACE = ":4096:8"  # of cuBLAS, as https://docs.nvidia.com/cuda/cublas/#results-reproducibility requires


@contextmanager
def deterministic_algorithms(enabled: bool = True) -> Iterator[None]:
    """Makes torch use deterministic algorithms in the block, and raise an error where it has none.

    On a GPU, sums are otherwise computed in an order that varies between runs. On a CPU it changes nothing here.
    cuBLAS reads its setting when it is first used: enter the first block before any work on a GPU.
    """
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark = cudnn.benchmark
    torch.use_deterministic_algorithms(True)  # includes cuDNN's convolutions
    cudnn.benchmark = False  # its choice of algorithm depends on timings
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.benchmark = benchmark

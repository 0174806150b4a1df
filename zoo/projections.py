"""The sparsity layers: L0,∞ ("needle") and L0 projections of a code Γ (B, C, H, W), and how to put them on any network."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_NAN = 0x7F800001  # one above infinity as IEEE 754 bits: every NaN has this rank, above all numbers, as in torch.sort


class Projection(nn.Module):
    """Zeroes all but `k` entries of a code: the nearest code that satisfies a sparsity constraint (App. C).

    Exactly `k` entries are kept, whatever their values; among equal magnitudes the lowest index wins. NaN counts
    as the largest magnitude. Values are kept unchanged, and the gradient is that of the selection: 1 at a kept
    entry, also at a kept zero, and 0 elsewhere. `k` may be set at any time.

    Shape: Γ (B, C, ...) -> the same.
    Raises: ValueError or TypeError if `k` is no int from 1 on; at the forward, if it exceeds `limit(code.shape)`.
    """

    unit: str  # what the budget k is for: each "needle", or each whole "code"
    _meaning: str

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    @property
    def k(self) -> int:
        """The number of entries kept."""
        return self._k

    @k.setter
    def k(self, k: int) -> None:
        if isinstance(k, bool) or not isinstance(k, int):
            raise TypeError(f"k is {self._meaning}, an int from 1 on; got {k!r} ({type(k).__name__})")
        if k < 1:
            raise ValueError(f"k is {self._meaning}, an int from 1 on; got {k}")
        self._k = k

    def limit(self, shape: tuple[int, ...]) -> int:
        """Returns the largest `k` that a code of this shape, (B, C, ...), allows: there the projection is the identity."""
        raise NotImplementedError

    def forward(self, code: Tensor) -> Tensor:
        limit = self.limit(code.shape)
        if self._k > limit:
            raise ValueError(f"k is {self._meaning}, 1 to {limit} for a code of shape {tuple(code.shape)}; got {self._k}")
        return torch.where(self._mask(code.detach()), code, 0)

    def _mask(self, code: Tensor) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"k={self._k}"


class NeedleProjection(Projection):
    """Keeps the k largest magnitudes of every needle, i.e. along dim 1: the relaxed L0,∞ constraint (App. C, item 3)."""

    unit = "needle"
    _meaning = "the number of non-zeros kept per needle"

    def limit(self, shape: tuple[int, ...]) -> int:
        return shape[1]

    def _mask(self, code: Tensor) -> Tensor:
        return _largest(code, self._k)


class GlobalProjection(Projection):
    """Keeps the k largest magnitudes of every sample's whole code: the L0 constraint (App. C, item 2)."""

    unit = "code"
    _meaning = "the number of non-zeros kept per sample"

    def limit(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape[1:])

    def _mask(self, code: Tensor) -> Tensor:
        return _largest(code.flatten(1), self._k).view(code.shape)


def _largest(x: Tensor, k: int) -> Tensor:
    """Marks the k largest magnitudes along dim 1, the lowest index first among equals."""
    if x.dtype == torch.float64:
        kept = x.abs().sort(dim=1, descending=True, stable=True).indices[:, :k]
        return torch.zeros_like(x, dtype=torch.bool).scatter(1, kept, True)
    # Magnitude and reversed index make one int64 that is unique, so a plain topk has no ties left to break.
    bits = x.abs().float().view(torch.int32).clamp_max(_NAN).long()
    rank = torch.arange(x.shape[1] - 1, -1, -1, device=x.device).view(-1, *[1] * (x.ndim - 2))
    key = bits << 32 | rank
    kth = key.movedim(1, -1).contiguous().topk(k, sorted=False).values.amin(-1).unsqueeze(1)
    return key >= kth


class Sparsified:
    """The projections that `sparsify` put on a network, by layer name; `remove()` takes them off again.

    Is a mapping (`handle["layer.name"].k = 8`) and a context manager that removes on exit.
    """

    def __init__(self, module: nn.Module, projections: Mapping[str, Projection]) -> None:
        self._projections = dict(projections)
        self._hooks = [
            module.get_submodule(name).register_forward_hook(_Hook(name, projection))
            for name, projection in projections.items()
        ]

    def __getitem__(self, name: str) -> Projection:
        return self._projections[name]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> "Sparsified":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.remove()


class _Hook:
    def __init__(self, name: str, projection: Projection) -> None:
        self.name, self.projection = name, projection

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise TypeError(f"layer {self.name!r} returns {type(output).__name__}; a projection needs one tensor (B, C, ...)")
        return self.projection(output)


def sparsify(module: nn.Module, projections: Mapping[str, Projection]) -> Sparsified:
    """Puts projections on the outputs of named layers of any network, without touching its state dict."""
    layers = dict(module.named_modules())
    for name, projection in projections.items():
        if name not in layers:
            near = difflib.get_close_matches(name, layers, n=5, cutoff=0.4) or list(layers)[1:6]
            raise ValueError(f"no layer {name!r} in {type(module).__name__}; near names: {near}")
        if not isinstance(projection, Projection):
            raise TypeError(f"layer {name!r} needs a NeedleProjection or GlobalProjection; got {projection!r}")
    return Sparsified(module, projections)

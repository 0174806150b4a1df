"""The sparsity layers: L0,∞ ("needle") and L0 projections of a code Γ, for any network.

Definition: exactly the k entries of the largest magnitudes are kept, per needle or per code; of equal magnitudes those
of the lowest index, which is the channel in a needle and the position in (C, H, W) order in a code. This is the
selection of `code.abs().sort(descending=True, stable=True)`; NaN is larger than infinity.

Three implementations give the same bits: loops compiled by numba (`kernels.py`), `_by_keys` and `_by_threshold`.
"""

import difflib
import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_NAN = 0x7F800001  # infinity plus one in float32 bits, whose order is that of the magnitudes
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}  # dtypes of the compiled loops
# Devices whose topk is exact for int64. MPS may compute it in 32 bits, which drops the magnitudes of `_by_keys`.
_WITH_LONG_TOPK = ("cpu", "cuda")


class Projection(nn.Module):
    """Keeps `k` entries of a code and zeroes the others: the nearest code that meets an L0 constraint (App. C).

    Kept entries, zeros included, keep their value and gradient; the gradient of the others is 0.
    `k` can be set at any time. A call may give each sample its own: `projection(code, k=torch.tensor([4, 8]))`.
    The module has no parameters and no entries in the state dict.
    torch.compile recompiles a network for each k, up to its limit of 8; with
    `torch._dynamo.config.allow_unspec_int_on_nn_module = True` it compiles once.

    Shape: Γ (B, C, ...), of any floating dtype and memory format -> the same. The first dim is the batch: pass a code
    without a batch as `code[None]`. The k of each sample: integers (B,).

    Raises:
        TypeError, ValueError: Unless k is an integer from 1 to `limit` of the code. The k of each sample is not checked
            while the network is traced, nor if it is not on a CPU, where reading it would synchronize: 0 or less then
            keeps nothing, and more than `limit` everything.
    """

    _k: int
    _limit_name: str
    unit: str  # "needle" or "code": the part of Γ in which k entries are kept
    _whole: bool

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    @property
    def k(self) -> int:
        """The number of entries kept in each unit, 1 to `limit`."""
        return self._k

    @k.setter
    def k(self, k: int) -> None:
        allowed = f"k, the entries kept in each {self.unit}, must be an integer from 1 to {self._limit_name}"
        if isinstance(k, bool) or not isinstance(k, Integral):
            raise TypeError(f"{allowed}; got {k!r}")
        if k < 1:
            raise ValueError(f"{allowed}; got {k}")
        self._k = int(k)

    def limit(self, shape: Sequence[int]) -> int:
        """Returns the largest k for a code of this shape, which keeps all entries."""
        return self.max_k(shape[1:])

    @classmethod
    def max_k(cls, shape: Sequence[int]) -> int:
        """Returns the largest k for the code of one image, of shape (C, H, W)."""
        raise NotImplementedError

    __call__: Callable[..., Tensor]  # for type checkers: of torch it returns Any

    def forward(self, code: Tensor, k: Tensor | None = None) -> Tensor:
        if isinstance(code, torch.fx.Proxy):  # a leaf of torch.fx, so that k can be set in the traced module
            tracer = code.tracer
            given = (code,) if k is None else (code, k)
            return tracer.create_proxy("call_module", tracer.path_of_module(self), given, {})
        if code.ndim < 2 or not code.is_floating_point():
            raise TypeError(
                f"a code must be a floating-point tensor (B, C, ...); got {code.dtype} {tuple(code.shape)}"
            )
        limit = self.limit(code.shape)
        if k is not None:
            self._check_each(k, code.shape[0], limit)
            return self._project(code, k)
        if self._k > limit:
            raise ValueError(
                f"k, the entries kept in each {self.unit}, must be 1 to {limit} for a code of {tuple(code.shape)}; "
                f"got {self._k}"
            )
        return self._project(code, self._k)

    def _check_each(self, k: object, count: int, limit: int) -> None:
        """Checks the k of each sample.

        Raises:
            TypeError, ValueError: Naming the sample, its k and the limit; or the type or shape.
        """
        allowed = f"k of each sample, the entries kept in each {self.unit}, must be integers ({count},), 1 to {limit}"
        if not isinstance(k, Tensor) or k.is_floating_point() or k.is_complex() or k.dtype == torch.bool:
            raise TypeError(f"{allowed}; got {k.dtype if isinstance(k, Tensor) else type(k).__name__}")
        if k.shape != (count,):
            raise ValueError(f"{allowed}; got the shape {tuple(k.shape)}")
        if k.device.type != "cpu" or not _is_plain(k) or _is_traced():
            return
        for sample, value in enumerate(k.tolist()):
            if not 1 <= value <= limit:
                raise ValueError(f"{allowed}; got {value} for sample {sample}")

    def _project(self, code: Tensor, k: int | Tensor) -> Tensor:
        if _is_traced():
            return torch.where(_mark(code.detach(), k, self._whole), code, 0)
        on_cpu = code.device.type == "cpu" and code.dtype != torch.float64
        if on_cpu and (not isinstance(k, Tensor) or (_is_plain(code) and _kernels())):
            function = _Projected if torch.compiler.is_compiling() else _ProjectedWithTangent
            projected: Tensor = function.apply(code, k, self._whole)[0]
            return projected
        without_keys = code.dtype == torch.float64 or code.device.type not in _WITH_LONG_TOPK
        if isinstance(k, Tensor) or without_keys:
            return torch.where(_laid_out_as(code, _mark(code.detach(), k, self._whole)), code, 0)
        return torch.where(_by_keys(code.detach(), k, self._whole), code, 0)

    def extra_repr(self) -> str:
        return f"k={self._k}"


class NeedleProjection(Projection):
    """Keeps the k largest magnitudes of each needle, i.e. along one dim: the relaxed L0,∞ (App. C, item 3).

    Args:
        k: Number of entries kept in each needle.
        dim: The dim of the needle, not 0: 1, the channels, in a code (B, C, H, W); -1 in a transformer's (B, T, C).

    Raises:
        TypeError, ValueError: If `dim` is not an integer or is 0; in `forward`, if the code has no such dim.
    """

    dim: int
    unit = "needle"
    _whole = False
    _limit_name = "the atoms C"

    def __init__(self, k: int, dim: int = 1) -> None:
        super().__init__(k)
        if isinstance(dim, bool) or not isinstance(dim, Integral):
            raise TypeError(f"dim, the dim of a needle, must be an integer; got {dim!r}")
        if dim == 0:
            raise ValueError("dim, the dim of a needle, must not be 0, the batch; got 0")
        self.dim = int(dim)

    def limit(self, shape: Sequence[int]) -> int:
        """Returns the largest k for a code of this shape, which keeps all entries: the size of `dim`."""
        last = len(shape) - 1
        if not (1 <= self.dim <= last or -last <= self.dim <= -1):
            raise ValueError(
                f"dim, the dim of a needle, must be 1 to {last} or -{last} to -1 for a code of {tuple(shape)}; got "
                f"{self.dim}"
            )
        return shape[self.dim]

    @classmethod
    def max_k(cls, shape: Sequence[int]) -> int:
        """Returns the largest k for the code of one image, of shape (C, H, W): C."""
        return shape[0]

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", dim={self.dim}" if self.dim != 1 else "")

    def _project(self, code: Tensor, k: int | Tensor) -> Tensor:
        if self.dim == 1:
            return super()._project(code, k)
        return super()._project(code.movedim(self.dim, 1), k).movedim(1, self.dim)


class GlobalProjection(Projection):
    """Keeps the k largest magnitudes of the whole code of each sample: the L0 constraint (App. C, item 2)."""

    unit = "code"
    _whole = True
    _limit_name = "C·H·W"

    @classmethod
    def max_k(cls, shape: Sequence[int]) -> int:
        """Returns the largest k for the code of one image, of shape (C, H, W): C·H·W."""
        return math.prod(shape)


def _is_traced() -> bool:
    """Returns whether a tracer records standard operators, of torch.jit, torch.export or an ONNX export."""
    traced = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]  # public, but untyped
    return bool(traced or torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export())


def backend() -> str:
    """Returns the implementation used on the CPU: "numba", or "torch" if numba cannot be imported."""
    return "numba" if _kernels() else "torch"


@functools.cache
def _kernels() -> ModuleType | None:
    try:
        from sparsegen.zoo import kernels
    except ImportError:
        return None
    return kernels


def _by_keys(code: Tensor, k: int, whole: bool) -> Tensor:
    """Marks the kept entries by topk of int64 keys of magnitude and reversed index, among which there are no ties."""
    lines = code.flatten(1) if whole else code.movedim(1, -1)  # projected along the last dim
    bits = lines.abs().float().view(torch.int32).clamp_max(_NAN)
    key = bits.long() << 32 | torch.arange(lines.shape[-1] - 1, -1, -1, device=code.device)
    kept = key.contiguous().topk(k, sorted=False).indices
    mask = torch.zeros_like(key, dtype=torch.bool).scatter(-1, kept, True)
    mask = mask.view(code.shape) if whole else mask.movedim(-1, 1)
    return _laid_out_as(code, mask)


def _laid_out_as(code: Tensor, mask: Tensor) -> Tensor:
    """Returns the mask in the memory format of the code, so that the projection has it too."""
    return torch.empty_like(code, dtype=torch.bool).copy_(mask)


def _by_threshold(code: Tensor, k: int, whole: bool) -> Tensor:
    """Marks the kept entries by ONNX operations: all above the k-th largest, then the first equal to it."""
    magnitude = (code.flatten(1) if whole else code).abs()
    nan = magnitude.isnan()
    kth = magnitude.topk(k, dim=1).values[:, -1:]
    above = (magnitude > kth) | (nan & ~kth.isnan())
    tie = (magnitude == kth) | (nan & kth.isnan())
    free = k - above.int().sum(1, keepdim=True)
    mask = above | (tie & (tie.int().cumsum(1) <= free))
    return mask.view(code.shape) if whole else mask


def _mark(code: Tensor, k: int | Tensor, whole: bool) -> Tensor:
    """Marks the kept entries by standard operators; k may be one per sample."""
    return _by_rank(code, k, whole) if isinstance(k, Tensor) else _by_threshold(code, k, whole)


def _by_rank(code: Tensor, k: Tensor, whole: bool) -> Tensor:
    """Marks the kept entries of samples that have their own k, by the definition: a stable sort.

    Shape: code (B, C, ...), k int (B,) -> bool, as the code.
    """
    magnitude = (code.flatten(1) if whole else code).abs()
    order = magnitude.sort(dim=1, descending=True, stable=True).indices
    one_per_dim = [1] * (magnitude.ndim - 2)
    rank = torch.arange(magnitude.shape[1], device=code.device).view(1, -1, *one_per_dim)
    first = (rank < k.view(-1, 1, *one_per_dim)).expand_as(order)
    mask = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, first)
    return mask.view(code.shape) if whole else mask


def _project_on_cpu(code: Tensor, k: int | Tensor, whole: bool) -> tuple[Tensor, Tensor]:
    """Returns the projected code and the mask of the kept entries.

    Shape: code (B, C, ...), not float64 -> the same twice, the mask in bool. A k per sample, (B,), needs the kernels.
    """
    code = code.detach()
    kernels = _kernels()
    if kernels is None:
        assert isinstance(k, int)
        mask = _by_keys(code, k, whole)
        return torch.where(mask, code, 0), mask
    x = code if code.dtype in _BITS else code.float()  # exact for float16
    last = code.ndim > 2 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()
    if not last:
        x = x.contiguous()
    y, mask = torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)
    if x.numel():
        bits = _BITS[x.dtype]
        as_integers = x.view(bits), y.view(bits), mask.view(torch.uint8)
        arrays = [_competing(tensor, whole, last).numpy() for tensor in as_integers]
        channels = code.shape[1] if whole and last else 1
        rows = len(arrays[0]) // len(code)  # of each sample
        given = k if isinstance(k, int) else k.long().repeat_interleave(rows).numpy()
        kernels.project(*arrays, given, channels=channels, threads=torch.get_num_threads())
    if x is code:
        return y, mask
    return torch.empty_like(code).copy_(y), torch.empty_like(code, dtype=torch.bool).copy_(mask)


def _competing(code: Tensor, whole: bool, last: bool) -> Tensor:
    """Returns a view of a dense code for the kernels: (rows, n), or (samples, n, pixels) to project along n."""
    if last:
        return code.movedim(1, -1).flatten(1) if whole else code.movedim(1, -1).flatten(0, -2)
    return code.flatten(1) if whole or code.ndim == 2 else code.flatten(2)


# The same as one operator, which torch.compile does not trace and torch.func supports.
@torch.library.custom_op("sparsegen::project", mutates_args=(), device_types="cpu")
def _project(code: Tensor, k: int, whole: bool) -> tuple[Tensor, Tensor]:
    return _project_on_cpu(code, k, whole)


@_project.register_fake
def _(code: Tensor, k: int, whole: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(code), torch.empty_like(code, dtype=torch.bool)


@_project.register_vmap
def _(info: Any, in_dims: tuple[int, None, None], code: Tensor, k: int, whole: bool) -> tuple[Any, Any]:
    code = code.movedim(in_dims[0], 0)
    outputs = _project(code.flatten(0, 1), k, whole)
    return tuple(output.unflatten(0, code.shape[:2]) for output in outputs), (0, 0)


class _Projected(torch.autograd.Function):
    """`_project` with the gradient of the selection; torch.func does not support register_autograd."""

    generate_vmap_rule = True

    @staticmethod
    def forward(code: Tensor, k: int | Tensor, whole: bool) -> tuple[Tensor, Tensor]:
        # The first call of an operator imports sympy and torch._dynamo, which takes seconds.
        if isinstance(k, Tensor) or _is_plain(code):
            return _project_on_cpu(code, k, whole)
        made: tuple[Tensor, Tensor] = _project(code, k, whole)
        return made

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.save_for_forward(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, None, None]:
        return _keep(gradient, *ctx.saved_tensors), None, None


class _ProjectedWithTangent(_Projected):
    """The same with a forward-mode derivative, which torch.compile does not support."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor, None]:
        return _keep(tangent, *ctx.saved_tensors), None


def _is_plain(code: Tensor) -> bool:
    """Returns whether no tracing, transform or dispatch mode is active for a tensor."""
    watched = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    return type(code) is Tensor and not watched and not torch._C._len_torch_dispatch_stack()


def _keep(x: Tensor, mask: Tensor) -> Tensor:
    kept: Tensor = (_Kept if torch.compiler.is_compiling() else _KeptWithTangent).apply(x, mask)
    return kept


class _Kept(torch.autograd.Function):
    """`torch.where(mask, x, 0)` by a kernel or a bitwise and, because `where` is not vectorized on a CPU."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mask: Tensor) -> Tensor:
        if _is_plain(x) and (kept := _keep_on_cpu(x, mask)) is not None:
            return kept
        bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.itemsize]
        return (x.view(bits) & -mask.view(torch.int8).to(bits)).view(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _keep(gradient, *ctx.saved_tensors), None


def _keep_on_cpu(x: Tensor, mask: Tensor) -> Tensor | None:
    """Returns the marked entries of x and 0 elsewhere, by a kernel; None if the kernels do not take these tensors."""
    kernels = _kernels()
    if kernels is None or x.device.type != "cpu" or x.dtype not in _BITS or mask.shape != x.shape:
        return None
    bits = _BITS[x.dtype]
    y = torch.empty_like(x)
    given = [x.view(bits), y.view(bits), mask.view(torch.uint8)]
    if x.ndim > 2 and not x.is_contiguous():
        given = [tensor.movedim(1, -1) for tensor in given]  # channels last
    if not all(tensor.is_contiguous() for tensor in given):
        return None
    kernels.keep(*(tensor.flatten().numpy() for tensor in given), threads=torch.get_num_threads())
    return y


class _KeptWithTangent(_Kept):
    """As `_ProjectedWithTangent`."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return _keep(tangent, *ctx.saved_tensors)


class Sparsified(Mapping[str, Projection]):
    """The projections that `sparsify` added to a network, by layer name: `handle["layer.name"].k = 8`.

    As a context manager, it removes them at the end of the block.
    """

    def __init__(self, module: nn.Module, projections: Mapping[str, Projection]) -> None:
        self._projections = dict(projections)
        self._hooks = [
            module.get_submodule(name).register_forward_hook(_Hook(name, projection))
            for name, projection in self._projections.items()
        ]
        _forget_compiled()

    def remove(self) -> None:
        """Removes the projections from the network; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        _forget_compiled()

    def __getitem__(self, name: str) -> Projection:
        return self._projections[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._projections)

    def __len__(self) -> int:
        return len(self._projections)

    def __enter__(self) -> "Sparsified":
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def _forget_compiled() -> None:
    """Discards compiled code, because torch.compile does not check by default whether hooks have changed."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


class _Hook:
    """Projects the output of a layer. A plain object, so the projection is not a submodule of the network."""

    def __init__(self, name: str, projection: Projection) -> None:
        self.name, self.projection = name, projection

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise TypeError(
                f"a projected layer must return one tensor (B, C, ...); layer {self.name!r}, a "
                f"{type(layer).__name__}, returned a {type(output).__name__}"
            )
        projected: Tensor = self.projection(output)
        return projected


def sparsify(module: nn.Module, projections: Mapping[str, Projection]) -> Sparsified:
    """Projects the outputs of named layers by forward hooks. The state dict does not change.

    Args:
        module: Any network.
        projections: By layer name, as in `module.named_modules()`. Each layer must return one tensor (B, C, ...).

    Returns: A handle with the projections; `remove()`, or the end of its `with` block, removes them. A copy of the
        network made before that keeps its own projections.

    Raises:
        ValueError: If a layer does not exist.
        TypeError: If a value is not a Projection; the network is then unchanged.
    """
    if not isinstance(projections, Mapping):
        raise TypeError(
            f"projections must be a mapping from layer names, e.g. {{'act': NeedleProjection(8)}}; got {projections!r}"
        )
    layers = [name for name, _ in module.named_modules()]
    for name, projection in projections.items():
        if name not in layers:
            near = difflib.get_close_matches(str(name), layers, n=5, cutoff=0.4) or layers[1:6]
            raise ValueError(
                f"{type(module).__name__} has no layer {name!r}; similar names: {', '.join(near)}"
            )
        if not isinstance(projection, Projection):
            raise TypeError(
                f"layer {name!r} needs a NeedleProjection or GlobalProjection; got {projection!r}"
            )
    return Sparsified(module, projections)

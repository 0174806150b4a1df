"""An accelerator for tests: a device `standin` whose tensors hold their values on the CPU.

It is a backend of torch like any other: autograd, optimizers and `torch.accelerator` know it. Each operator is checked
here before it runs on the values. Like a GPU, it refuses tensors of two devices; it counts what a GPU would wait for.
Outside of `accelerator()` it is not available, so `auto` is the CPU in other tests.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "standin"
CPU = torch.device("cpu")
aten = torch.ops.aten
# Their results have a size that depends on values, or are values: the CPU waits for the accelerator.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::repeat_interleave",
    "aten::_unique2",
}


class Counts:
    """What happened since the last `reset`: waits for values, copies to the device, and topk of int64."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.waits: Counter[str] = Counter()
        self.uploads = 0
        self.long_topk = 0  # MPS may compute it in 32 bits


counts = Counts()


class _Module(_DummyBackendModule):
    available = False

    def is_available(self) -> bool:
        return self.available

    def device_count(self) -> int:
        return int(self.available)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def manual_seed_all(self, seed: int) -> None:
        assert not self.available, "seeding all devices changes the state of one that is not used"


class _Generator(torch.Generator):
    """A generator of the device, which is one of the CPU, since torch has none for a backend in Python."""

    def __new__(cls, device: Any = "cpu") -> torch.Generator:  # type: ignore[misc]
        return super().__new__(cls, CPU if torch.device(device).type == NAME else device)


class OnDevice(Tensor):
    """A tensor of the device; `value` is the same tensor on the CPU."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> "OnDevice":
        made: OnDevice = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=torch.device(NAME, 0),
        )
        made.value = value
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.value})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


def run(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs an operator on the values, after the checks of a GPU."""
    name, given = function._schema.name, kwargs.get("device")
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    here = [each for each in tensors if isinstance(each, OnDevice)]
    others = [each for each in tensors if not isinstance(each, OnDevice)]
    copies = name in ("aten::_to_copy", "aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize")
    if here and not copies and any(each.ndim for each in others):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device; some are on the CPU")
    on_device = bool(here) if given is None else torch.device(given).type == NAME
    if name == "aten::copy_":
        on_device = isinstance(args[0], OnDevice)
    if name in WAITING or (copies and here and not on_device):
        counts.waits[name] += 1
    if name.startswith("aten::index") and any(each.dtype == torch.bool for each in here[1:]):
        counts.waits[name] += 1  # the size of the result is the number of true entries
    counts.uploads += copies and on_device and bool(others)
    counts.long_topk += name in ("aten::topk", "aten::sort") and here[0].dtype == torch.int64

    owners = {id(each.value): each for each in here}
    plain_args, plain_kwargs = tree_map(lambda x: x.value if isinstance(x, OnDevice) else x, (args, kwargs))
    if given is not None:
        plain_kwargs["device"] = CPU
    plain_kwargs.pop("pin_memory", None)
    with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
        result = function(*plain_args, **plain_kwargs)
    if name == "aten::_to_copy" and any(result is value for value in plain_args):
        result = result.clone()

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor) or not on_device:
            return x
        return owners[id(x)] if id(x) in owners else OnDevice(x)  # in-place operators return their argument

    return tree_map(wrap, result)


def _fallback(function: Any, *args: Any, **kwargs: Any) -> Any:
    return run(function, args, kwargs)


_module = _Module()
_library = torch.library.Library("_", "IMPL")  # kept, since its end would remove the fallback


def _register() -> None:
    _setup_privateuseone_for_python_backend(NAME, _module)
    _library.fallback(_fallback, "PrivateUse1")


@contextmanager
def accelerator() -> Iterator[Counts]:
    """Makes the device available in a block; yields what it counts from here on."""
    if torch._C._get_privateuse1_backend_name() != NAME:
        _register()
    counts.reset()
    _module.available = True
    # `module.to` would otherwise set `parameter.data`, which leaves the old `value` at the parameter.
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with mock.patch.object(torch, "Generator", _Generator):
            yield counts
    finally:
        _module.available = False
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)

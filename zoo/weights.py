"""Network weights as safetensors files: strict loading, atomic writing."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from sparsegen.common.files import atomic_write
from sparsegen.common.text import escape_controls

WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|module)\.")  # parts of names that torch adds


def load_weights(network: nn.Module, path: Path) -> None:
    """Loads a safetensors file into a network, strictly, converted to the network's dtype.

    Raises:
        FileNotFoundError, ValueError: Naming the file and the expected tensors.
        ValueError: On NaN or infinity.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: expected the weights as safetensors")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is corrupt, truncated or not a safetensors file: {error}") from None
    own = network.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        raise ValueError(
            f"{path} holds another network: {_some('missing', missing)}, {_some('unexpected', unexpected)}"
        )
    for key, tensor in own.items():
        if tensor.shape != tensors[key].shape:
            found, expected = tuple(tensors[key].shape), tuple(tensor.shape)
            raise ValueError(f"{path} holds another width: {key} is {found}, expected {expected}")
        if tensor.is_floating_point() != tensors[key].is_floating_point():
            raise ValueError(f"{path} holds {key} as {tensors[key].dtype}; expected {tensor.dtype}")
    tensors = {
        key: tensor.to(own[key].dtype) for key, tensor in tensors.items()
    }  # before the check: it may overflow
    if broken := [key for key, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"{path} holds NaN or infinity in {_some('tensors', broken)}, e.g. because training diverged: use an "
            f"earlier checkpoint"
        )
    network.load_state_dict(tensors)


def digest(network: nn.Module) -> str:
    """Returns the SHA-256 of a network's weights as float32; it does not depend on device, dtype or memory format."""
    sha = hashlib.sha256()
    for _, tensor in sorted(plain_state(network).items()):
        values = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)
        sha.update(values.contiguous().numpy().data)
    return sha.hexdigest()


def plain_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the weights under the names that they have without `torch.compile` or `DistributedDataParallel`."""
    return {WRAPPERS.sub("", name): tensor for name, tensor in network.state_dict().items()}


def save_weights(network: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Writes a network's weights as safetensors, atomically."""
    write_tensors(plain_state(network), path, dtype)


def write_tensors(
    tensors: Mapping[str, torch.Tensor],
    path: Path,
    dtype: torch.dtype,
    about: Mapping[str, str] | None = None,
) -> None:
    """Writes tensors as safetensors, atomically: floating-point tensors as `dtype`, `about` as metadata."""
    packed = {
        key: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for key, tensor in tensors.items()
    }
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(packed, metadata={"format": "pt", **(about or {})}))


def _some(what: str, keys: list[str]) -> str:
    shown = ", ".join(f"{escape_controls(key):.100}" for key in keys[:3]) + (", …" if len(keys) > 3 else "")
    return f"{len(keys)} {what}" + (f" ({shown})" if keys else "")

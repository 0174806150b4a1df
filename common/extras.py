"""Optional packages: whether they are installed, and the command that installs them."""

import json
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit

# The extra that has a module; the modules that a part of the package needs stand where it is used.
EXTRAS = {
    "accelerate": "train",
    "bentoml": "serve",
    "gradio": "serve",
    "matplotlib": "plot",
    "onnx": "export",
    "onnxruntime": "onnxruntime",
    "onnxscript": "export",
    "ray": "ray",
    "redis": "redis",
    "skimage": "restore",
    "submitit": "slurm",
    "tensorboard": "track",
    "torch": "torch",
    "torchvision": "train",
    "wandb": "track",
}


def require(extra: str, purpose: str, *modules: str) -> None:
    """Checks before any work that packages of an extra are installed; imports none of them.

    Args:
        extra: Name of the extra in pyproject.toml.
        purpose: What needs the packages; begins the error.
        modules: Top-level modules that the packages provide.

    Raises:
        ImportError: With the missing modules and the pip command.
    """
    if missing := [module for module in modules if not _is_there(module)]:
        raise ImportError(f"{purpose} needs {', '.join(missing)}: {install_command(extra)}")


def explain(error: ModuleNotFoundError, purpose: str) -> ImportError:
    """Returns the error of an import with the command that installs the module, where an extra has it."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        return error
    return ImportError(f"{purpose} needs {module}: {install_command(EXTRAS[module])}", name=error.name)


def is_installed(*packages: str) -> bool:
    """Whether one of these distributions is installed; imports nothing, and asks no finder."""
    for package in packages:
        with suppress(PackageNotFoundError):
            distribution(package)
            return True
    return False


def check_one_of(packages: Iterable[str]) -> None:
    """Checks that no two builds of one module are installed: they overwrite each other's files.

    Args:
        packages: Names of the distributions that provide the module.

    Raises:
        ImportError: With the distributions and the pip commands.
    """
    found = [package for package in packages if is_installed(package)]
    if len(found) > 1:
        raise ImportError(
            f"{' and '.join(f'{name} {version(name)}' for name in found)} are installed together, and one overwrote "
            f"files of the other: pip uninstall -y {' '.join(found)}, then pip install the one that you want"
        )


def install_command(extra: str) -> str:
    """Returns the pip command that adds an extra to sparsegen, from where it was installed."""
    name = f"sparsegen[{extra}]"
    try:
        origin = json.loads(distribution("sparsegen").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:  # imported from a folder that was not installed
        origin = {}
    url = origin.get("url", "")
    if origin.get("dir_info", {}).get("editable"):
        return f"pip install -e '{unquote(urlsplit(url).path)}[{extra}]'"
    if vcs := origin.get("vcs_info"):
        return f"pip install '{name} @ {vcs['vcs']}+{url}'"
    return f"pip install '{name} @ {url}'" if url else f"pip install '{name}'"


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a finder that refuses it
        return False

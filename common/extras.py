"""Optional packages: whether they are installed, and the command that installs them."""

import json
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit


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

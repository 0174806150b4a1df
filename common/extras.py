"""Optional packages: whether they are installed, and the command that installs them."""

from importlib.util import find_spec


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
        raise ImportError(f"{purpose} needs {', '.join(missing)}: pip install 'sparsegen[{extra}]'")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a finder that refuses it
        return False

"""Writes the folder of a Gradio Space of the Hugging Face Hub: the page, the models and this package.

The package is copied into the folder, since the Hub installs the requirements before the folder is there: neither a
wheel in the folder nor the folder itself could be a requirement.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import NormalizedName, canonicalize_name

import sparsegen
from sparsegen.common.files import atomic_folder, check_writable
from sparsegen.common.names import known_names
from sparsegen.service.models import Model, open_model
from sparsegen.service.page import catalog
from sparsegen.zoo import hub
from sparsegen.zoo.bundled import CONFIG, ENCODING, GRAPH, MODELS, SYNTHESIS, WEIGHTS, list_models
from sparsegen.zoo.config import read_entries

FILES = (CONFIG, WEIGHTS, GRAPH, SYNTHESIS, ENCODING)  # of a model
BEST = 4  # models by default
PACKAGE = (  # the parts of this package that a Space needs
    "__init__.py*",
    "common/*.py",
    "export/__init__.py",
    "export/encoding.py",
    "export/functions.py",
    "export/parts.py",
    "export/runtime.py",
    "pictures/*.py",
    "restoration/*.py",
    "service/**/*.py",
    "service/page/examples/*",
    "service/page/static/*",
    "zoo/*.py",
)
REQUIREMENTS = (  # modules; their distributions are pinned to the versions that are installed here
    "anyio", "fastapi", "gradio", "h11", "httpx2", "huey", "huggingface_hub", "imagecodecs", "jinja2",
    "jpeglib", "lazy_loader", "loky", "numba", "numpy", "onnx", "onnxruntime", "packaging", "PIL", "prometheus_client",
    "psutil", "pydantic", "python_multipart", "safetensors", "starlette", "tifffile", "torch", "uvicorn",
)  # fmt: skip
CPU = {
    "onnxruntime_gpu": "onnxruntime",
    "onnxruntime-gpu": "onnxruntime",
}  # distributions for machines without a GPU
HUB_EXTRAS = ("oauth", "mcp")  # of gradio, which the Hub installs
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyPI's torch for Linux needs gigabytes of CUDA
APP = '''"""Runs the Space. Written by `sparsegen space`."""

from pathlib import Path

from sparsegen.service.space.server import main

if __name__ == "__main__":
    main(Path(__file__).resolve().parent / "models", {repo_ids!r})
'''
README = """
# {title}

Draws images from generators whose inner representation is a sparse code, finds the codes of pictures, and restores
pictures. The page and its code
are a part of [sparsegen]({url}).

## Models

{models}

## From a program

```python
from gradio_client import Client, handle_file

client = Client("{space}")
files = client.predict(count=4, seed=7, api_name="/sample")
restored = client.predict(image=handle_file("noisy.png"), kind="denoise", sigma=25, api_name="/restore")
```

A restoration takes minutes. `client.view_api()` describes all arguments.

## Run it elsewhere

```
pip install -r requirements.txt
python app.py
```

The page is then at http://127.0.0.1:7860. `GRADIO_SERVER_NAME` and `GRADIO_SERVER_PORT` set the address.
"""
URL = "https://github.com/sparsegen/sparsegen"
THUMBNAIL = "thumbnail.png"


@dataclass(frozen=True)
class Chosen:
    """A model of a Space: its name, its opened files, and its id if the Space downloads it from the Hub."""

    name: str
    model: Model
    repo_id: str | None = None


def choose(models: Sequence[str] | None) -> list[Chosen]:
    """Opens the models of a Space: bundled names, folders, or owner/name; by default the BEST bundled ones.

    Raises:
        ValueError: If a model is unknown or is given twice.
        FileNotFoundError: If its ONNX files are missing.
        ConnectionError: If it cannot be downloaded.
    """
    chosen = [_open(given) for given in models or best_models()]
    names = [each.name for each in chosen]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two models have the name {min(twice)!r}: give each once, or rename a folder")
    return chosen


def best_models() -> list[str]:
    """The bundled models with the smallest measured distances to the real images, best first."""
    distances = {name: read_entries(MODELS / name).get("evaluation", {}) for name in list_models()}
    measured = [name for name, found in distances.items() if "distance" in found]
    return sorted(measured, key=lambda name: distances[name]["distance"])[:BEST]


def check_folder(path: Path) -> None:
    """Checks before any work that a Space can be written to `path`.

    Raises:
        OSError: If it is a file or a folder with files, or cannot be written.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FileExistsError(f"{path} is not an empty folder: give a new one as --out")
    check_writable(path)


def write_space(path: Path, chosen: Sequence[Chosen], title: str, repo_id: str | None = None) -> None:
    """Writes the folder of a Space, with everything that `pip install -r requirements.txt && python app.py` needs.

    Args:
        repo_id: owner/name of the Space; the README then shows its address and its thumbnail.
    """
    repo_ids = [each.repo_id for each in chosen if each.repo_id]
    with atomic_folder(path) as folder:
        (folder / "app.py").write_text(APP.format(repo_ids=repo_ids), encoding="utf-8")
        (folder / "requirements.txt").write_text(requirements(), encoding="utf-8")
        (folder / THUMBNAIL).write_bytes(catalog.cover({each.name: each.model for each in chosen}))
        (folder / "README.md").write_text(readme(chosen, title, repo_id), encoding="utf-8")
        copy_package(folder / "sparsegen")
        for each in chosen:
            if each.repo_id is None:
                target = folder / "models" / each.name
                target.mkdir(parents=True)
                for name in FILES:
                    source = each.model.sampler.path.with_name(name)
                    if name != ENCODING or source.is_file():  # models exported by earlier versions lack it
                        shutil.copyfile(source, target / name)


def requirements() -> str:
    """The packages, for machines without a GPU, pinned to the installed versions.

    The Hub installs them in one step with gradio[oauth,mcp]. If an extra of Gradio excludes the installed version of a
    package, its range replaces the pin.
    """
    found = packages_distributions()
    names = sorted({found[module][0] for module in REQUIREMENTS}, key=str.lower)
    ranges = _ranges_of_the_hub()
    lines = [f"--extra-index-url {CPU_INDEX}"]
    for name in names:
        installed = version(name).partition("+")[0]
        allowed = ranges.get(canonicalize_name(name), SpecifierSet())
        lines.append(
            f"{CPU.get(name, name)}=={installed}" if allowed.contains(installed) else f"{name}{allowed}"
        )
    return "\n".join([*lines, ""])


def _ranges_of_the_hub() -> dict[NormalizedName, SpecifierSet]:
    """The versions that gradio with the extras of HUB_EXTRAS allows, by package."""
    ranges: dict[NormalizedName, SpecifierSet] = {}
    for line in requires("gradio") or []:
        needed = Requirement(line)
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in HUB_EXTRAS):
            name = canonicalize_name(needed.name)
            ranges[name] = ranges.get(name, SpecifierSet()) & needed.specifier
    return ranges


def readme(chosen: Sequence[Chosen], title: str, repo_id: str | None) -> str:
    """The README with the front matter that configures the Space."""
    from huggingface_hub import SpaceCardData

    repo_ids = [each.repo_id for each in chosen if each.repo_id]
    licenses = {each.model.sampler.license for each in chosen}
    address = f"https://huggingface.co/spaces/{repo_id}/resolve/main/{THUMBNAIL}"
    data = SpaceCardData(
        title=title,
        emoji="🧩",
        colorFrom="green",
        colorTo="blue",
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        license=licenses.pop() if len(licenses) == 1 else None,
        models=repo_ids or None,
        preload_from_hub=[f"{each} {','.join(FILES)}" for each in repo_ids] or None,
        thumbnail=address if repo_id else None,
        short_description="Images from sparse codes, and restoration of pictures",
        tags=["sparse-coding", "image-generation", "image-restoration"],
    )
    listed = "\n".join(f"- {_described(each)}" for each in chosen)
    text = README.format(title=title, url=URL, models=listed, space=repo_id or "http://127.0.0.1:7860")
    return f"---\n{data.to_yaml()}\n---\n{text}"


def copy_package(target: Path) -> None:
    """Copies the parts of this package that a Space needs."""
    source = Path(sparsegen.__file__).parent
    for pattern in PACKAGE:
        for path in source.glob(pattern):
            if path.is_file() and "__pycache__" not in path.parts:
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


def _open(given: str) -> Chosen:
    if given in list_models():
        return Chosen(given, open_model(MODELS / given))
    path = Path(given).expanduser()
    if path.is_dir():
        return Chosen(path.resolve().name, open_model(path))
    if hub.may_be_id(given):
        return Chosen(given, open_model(hub.download(given)), given)
    raise ValueError(
        f"no model {given!r}: neither bundled, nor a folder, nor owner/name on the Hub. "
        f"Bundled: {known_names(given, list_models())}"
    )


def _described(chosen: Chosen) -> str:
    """A model of the list in the README: what it is, and its measured distance."""
    name = (
        f"[{chosen.name}](https://huggingface.co/{chosen.repo_id})" if chosen.repo_id else f"`{chosen.name}`"
    )
    facts = filter(None, [catalog.description(chosen.model), catalog.distance(chosen.model)])
    return f"{name}: {'; '.join(facts)}"

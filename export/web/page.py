"""Writes a generator as a page that draws its images in the browser: one HTML file, or a folder of files.

The page draws the same noise and classes as `zoo.noise`, and runs the graphs and half-precision weights of an exported
folder in onnxruntime-web. So its pixels are those of `open_sampler`, up to one gray level in a few values.
"""

import base64
import gzip
import hashlib
import html
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparsegen.common.files import atomic_folder, atomic_write, check_utf8, check_writable
from sparsegen.export.onnx_file import describe, export_onnx
from sparsegen.export.parity import ParityReport
from sparsegen.export.web.engine import read_engine, read_license
from sparsegen.zoo.bundled import GRAPH, SYNTHESIS, WEIGHTS
from sparsegen.zoo.checkpoint import from_pretrained
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.noise import titles

SOURCE = Path(__file__).parent / "source"
INDEX, STYLE, MAIN, WORKER = "index.html", "page.css", "main.js", "worker.js"
# Choice: browsers hold a file of this size, with its base64 text, in memory several times while it opens.
LARGEST_FILE = 300 * 2**20  # bytes of the parts within one HTML file
# Imports and exports of the scripts have only these forms, so that they can be joined without a bundler.
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) )", re.MULTILINE)
_ABOUT = '<script type="application/json" id="about">{}</script>'
_POLICY = '<meta http-equiv="Content-Security-Policy" content="{}">'


def export_web(
    generator: Generator, path: str | Path, *, progress: Callable[[int, str], object] | None = None
) -> ParityReport:
    """Writes a generator as a page with controls for k, a code inspector and an editor of codes.

    Args:
        path: A file that ends in .html contains everything, and opens without a server and without a network. Another
            path is a folder, whose files a web server can send.
        progress: As in `export_onnx`.

    Returns: The comparison of the graph with torch, with the path of the page.

    Raises:
        FileExistsError: If the folder holds other files than those of such a page.
        FileNotFoundError: If the installation lacks onnxruntime-web.
        OSError, RuntimeError, ValueError: As `export_onnx`; nothing is written then.
        ValueError: If the weights are too large for one file.
    """
    path = Path(path)
    single = is_file(path)
    check_utf8(path)
    if single and path.is_dir():
        raise ValueError(
            f"{path} is a folder: give the path of an .html file, or of a folder without a suffix"
        )
    if not single:
        check_folder(path)
    check_writable(path)
    engine = read_engine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = generator.save_pretrained(Path(temporary) / "model", dtype=torch.float16)
        parity = export_onnx(
            from_pretrained(folder), folder / GRAPH, embed=False, synthesis=True, progress=progress
        )
        model = {
            name: gzip.compress((folder / name).read_bytes(), 9, mtime=0)
            for name in (GRAPH, SYNTHESIS, WEIGHTS)
        }
    parts, about = engine | model, _about(generator)
    if not single:
        with atomic_folder(path) as target:
            for name, content in _folder_files(about, parts).items():
                (target / name).write_bytes(content)
        return replace(parity, path=path / INDEX)
    if (size := sum(map(len, parts.values()))) > LARGEST_FILE:
        raise ValueError(
            f"the page would hold {size:,} bytes, and one file may hold {LARGEST_FILE:,}: export to a folder instead"
        )
    with atomic_write(path) as file:
        file.write_text(_single_page(about, parts), encoding="utf-8", newline="\n")
    return replace(parity, path=path)


def is_file(path: Path) -> bool:
    """Whether a page of this path is one file."""
    return path.suffix.lower() == ".html"


def check_folder(folder: Path) -> None:
    """Checks before any work that a page may replace `folder`.

    Raises:
        FileExistsError: If it is a file, or holds other files than those of an older page.
    """
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file: give a folder, or a path that ends in .html")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names and not {INDEX, WORKER, MAIN} <= names <= _names():
        raise FileExistsError(
            f"{folder} holds other files than those of an exported page: choose another folder"
        )


def _names() -> set[str]:
    """The names of the files of a page in a folder."""
    parts = ("runtime.mjs", "runtime.wasm", "notices.txt", GRAPH, SYNTHESIS, WEIGHTS)
    return {path.name for path in SOURCE.iterdir()} | {f"{name}.gz" for name in parts}


def _about(generator: Generator) -> dict[str, Any]:
    """The facts of the model that the page shows and needs; texts may come from anyone."""
    about = describe(generator, "generator", None)
    return about | {
        "titles": titles(generator.classes, generator.class_names),
        "runtime_license": read_license(),
    }


def _folder_files(about: dict[str, Any], parts: dict[str, bytes]) -> dict[str, bytes]:
    """The files of a page in a folder, by name."""
    policy = (
        "default-src 'none'; script-src 'self' blob: 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; "
        "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    )
    files = {path.name: path.read_bytes() for path in SOURCE.iterdir()}
    files[INDEX] = _page(about, policy).encode()
    return files | {f"{name}.gz": content for name, content in parts.items()}


def _single_page(about: dict[str, Any], parts: dict[str, bytes]) -> str:
    """The page as one text, with its style, scripts and parts. Its policy allows no network at all."""
    style, script = f"\n{_read(STYLE)}", f"\n{join(MAIN)}"
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}' blob: 'wasm-unsafe-eval'; worker-src blob:; "
        f"style-src '{_hash(style)}'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    blocks = [f'<script type="text/plain" id="worker">\n{join(WORKER)}</script>']
    blocks += [
        f'<script type="text/plain" id="part-{name}">{base64.b64encode(content).decode()}</script>'
        for name, content in parts.items()
    ]
    page = _replace(
        _page(about, policy), f'<link rel="stylesheet" href="{STYLE}">', f"<style>{style}</style>"
    )
    return _replace(
        page,
        f'<script type="module" src="{MAIN}"></script>',
        "\n".join([*blocks, f'<script type="module">{script}</script>']),
    )


def _page(about: dict[str, Any], policy: str) -> str:
    """index.html with the policy, the title and the facts."""
    # In a script element, "<" may end the element or open a comment.
    facts = json.dumps(about).replace("<", "\\u003c")
    page = _replace(_read(INDEX), _POLICY.format("default-src 'none'"), _POLICY.format(policy))
    page = _replace(page, "<title>sparsegen</title>", f"<title>{html.escape(about['name'])}</title>")
    return _replace(page, _ABOUT.format("{}"), _ABOUT.format(facts))


def join(module: str) -> str:
    """Returns a module and all that it imports as one script, each module before the first that imports it."""
    found: dict[str, str] = {}

    def add(name: str) -> None:
        if name not in found:
            text = _read(name)
            for imported in _IMPORT.findall(text):
                add(imported)
            found[name] = _EXPORT.sub("", _IMPORT.sub("", text))

    add(module)
    return "\n".join(found.values())


def _read(name: str) -> str:
    return (SOURCE / name).read_text(encoding="utf-8")


def _replace(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:
        raise RuntimeError(f"{INDEX} must contain {old!r} once, not {text.count(old)} times")
    return text.replace(old, new)


def _hash(text: str) -> str:
    """The source expression of a policy that allows this inline text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"

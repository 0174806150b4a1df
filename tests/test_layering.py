"""Imports point one way: zoo <- training, export <- service; and what needs no torch does not import it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

MAY_IMPORT = {"zoo": set(), "training": {"zoo"}, "export": {"zoo"}, "service": {"zoo", "export"}}
TORCH_FREE = [
    "zoo.noise",
    "zoo.images",
    "zoo.dial",
    "zoo.names",
    "zoo.files",
    "zoo.restoration.damage",
    "zoo.restoration.pictures",
    "zoo.restoration.settings",
    "export.runtime",
    "service.endpoint",
    "service.demo",
    "service.jobs",
    "service.restoration",
    "service.worker",
]


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_imports_only_the_parts_below_it(part: str) -> None:
    files = sorted((ROOT / part).rglob("*.py"))
    assert files
    for file in files:
        for name in imported(file):
            assert not name.startswith("."), f"{file}: say sparsegen.{part}, not a relative import"
            top, _, rest = name.partition(".")
            assert top not in MAY_IMPORT, f"{file} imports a bare {top}"
            if top == "sparsegen" and rest:
                assert rest.partition(".")[0] in MAY_IMPORT[part] | {part, "__version__"}, (
                    f"{file} imports {name}"
                )


@pytest.mark.parametrize("module", TORCH_FREE)
def test_what_serves_needs_no_torch(module: str) -> None:
    script = f"import sys; sys.modules['torch'] = None; import sparsegen.{module}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_under_its_bare_name_is_refused(part: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {part}"], cwd=ROOT, capture_output=True, text=True)
    assert f"import this package as sparsegen.{part}" in done.stderr


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ["torch", "bentoml", "gradio", "onnxruntime", "datasets"]
    script = f"import sys, sparsegen, sparsegen.__main__; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

"""Imports point one way, no modules import each other in a circle, and what needs no torch does not import it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

ZOO = {"common", "pictures", "zoo"}
MAY_IMPORT = {  # besides itself
    "common": set(),
    "pictures": {"common"},
    "zoo": {"common", "pictures"},
    "training": ZOO,
    "export": ZOO,
    "restoration": ZOO,
    "service": ZOO | {"export", "restoration"},
    "reproduce": ZOO | {"training", "export", "restoration"},
    "cli": ZOO | {"training", "export", "restoration", "service", "reproduce"},
}
TORCH_FREE = [
    "common.engines",
    "common.files",
    "common.hardware",
    "common.interrupt",
    "common.names",
    "pictures.images",
    "pictures.picture",
    "pictures.reading",
    "pictures.squares",
    "zoo.noise",
    "zoo.k_range",
    "zoo.config",
    "restoration.damage",
    "restoration.kinds",
    "restoration.settings",
    "export.runtime",
    "service.http.endpoint",
    "service.page.app",
    "service.jobs.store",
    "service.http.restoration",
    "service.jobs.worker",
]
HEAVY = ["torch", "bentoml", "gradio", "onnxruntime", "datasets", "matplotlib", "ray", "scipy", "submitit"]


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(file: Path, types: bool = True) -> set[str]:
    """The names that a file imports, those within functions included; with `types`, those for annotations, too."""
    names, nodes = set(), [ast.parse(file.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
        if types or not for_types_only(node):
            nodes += ast.iter_child_nodes(node)
    return names


def modules() -> dict[str, Path]:
    files = [file for part in MAY_IMPORT for file in (ROOT / part).rglob("*.py")]
    names = {"sparsegen." + ".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def test_every_part_is_a_link_in_the_package() -> None:
    package = ROOT / "src" / "sparsegen"
    links = {path.name: path for path in package.iterdir() if path.is_symlink()}
    assert links.keys() == MAY_IMPORT.keys()
    for name, link in links.items():
        assert link.readlink() == Path("../../") / name
        assert link.resolve() == ROOT / name


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
                allowed = MAY_IMPORT[part] | {part, "__version__"}
                assert rest.partition(".")[0] in allowed, f"{file} imports {name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = modules()
    needs = {
        name: {
            found
            for used in imported(file, types=False)
            for found in (used, used.rpartition(".")[0])
            if found in known and found != name
        }
        for name, file in known.items()
    }
    assert needs["sparsegen.zoo.residual"] >= {"sparsegen.zoo.generator", "sparsegen.zoo.blocks"}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(needs[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(known):
        visit(name, ())


@pytest.mark.parametrize("module", TORCH_FREE)
def test_what_serves_needs_no_torch(module: str) -> None:
    script = f"import sys; sys.modules['torch'] = None; import sparsegen.{module}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_has_no_second_name(part: str, tmp_path: Path) -> None:
    """Outside of the checkout, whose root holds the folders."""
    script = f"import sparsegen.{part}; import {part}"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert f"No module named '{part}'" in done.stderr


@pytest.mark.parametrize("start", ["import sparsegen", "import sparsegen.__main__"])
def test_starting_loads_nothing_heavy(start: str) -> None:
    script = f"import sys; {start}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

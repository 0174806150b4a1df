"""The README, the documentation and the examples: code runs, links lead somewhere, tables are those of the records."""

import json
import os
import re
import subprocess
import sys
import tomllib
import unicodedata
from pathlib import Path

import pytest
from conftest import ROOT

import sparsegen
from benchmarks.tables import BLOCKS, PAGES, fill

REPOSITORY = "https://github.com/sparsegen/sparsegen"
README = ROOT / "README.md"
DOCUMENTS = [*PAGES, *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "SECURITY", "CHANGELOG"))]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
OUTDATED = {  # worst patterns of language.md, and what to write
    r"\b(tells?|told)\b": "reports, returns, states",
    r"\b(is|are) no [a-z]": "is not a",
    r"\bone an? (level|class|command|line)\b": "one per",
    r"\bleave (it|them|\S+ )out\b": "unless given",
}


def title(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """The text of a page without code blocks, inline code and generated tables."""
    text = FENCE.sub("", page.read_text("utf-8"))
    text = re.sub(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", "", text, flags=re.S)
    return re.sub(r"`[^`\n]+`", "", text)


def code(page: Path) -> list[tuple[str, str]]:
    """The blocks that run: language and text. Those of the language `py` need data of the reader's and do not."""
    found = FENCE.findall(page.read_text("utf-8"))
    return [(language, text) for language, text in found if language in ("python", "sh")]


def cells(notebook: Path) -> list[tuple[str, str]]:
    """The code of a notebook, in the form of `code`."""
    found = json.loads(notebook.read_text("utf-8"))["cells"]
    return [("python", "".join(cell["source"])) for cell in found if cell["cell_type"] == "code"]


def options() -> dict[str, set[str]]:
    """The options that the documents show in blocks, per command."""
    shown: dict[str, set[str]] = {}
    for page in DOCUMENTS:
        for language, text in FENCE.findall(page.read_text("utf-8")):
            if language not in ("", "sh"):
                continue
            for command, rest in re.findall(r"^sparsegen +([a-z]+)(.*?)(?<!\\)$", text, re.M | re.S):
                shown.setdefault(command, set()).update(
                    re.findall(r"(?<=\s)--[a-z-]+", rest.partition("#")[0])
                )
    return shown


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What running all blocks, and asking all commands for help, led to."""
    blocks = {title(page): code(page) for page in DOCUMENTS}
    blocks[title(README)] = blocks[title(README)][1:]  # the two make commands
    blocks |= {title(script): [("python", script.read_text("utf-8"))] for script in SCRIPTS}
    blocks |= {title(notebook): cells(notebook) for notebook in NOTEBOOKS}
    commands = options().keys()
    folder = tmp_path_factory.mktemp("pages")
    done = subprocess.run(
        [sys.executable, "-m", "page_runner", str(folder)],
        cwd=ROOT / "tests",
        input=json.dumps({"pages": blocks, "commands": sorted(commands)}),
        env=os.environ | {"COLUMNS": "200", "PYTHONUTF8": "1", "MPLBACKEND": "Agg"},
        capture_output=True,
        encoding="utf-8",
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"folder": folder}


def test_the_two_commands_come_first() -> None:
    language, block = code(README)[0]
    assert language == "sh"
    assert [line.partition("#")[0].strip() for line in block.splitlines()] == ["make serve", "make test"]
    targets = (ROOT / "Makefile").read_text()
    assert re.search(r"^serve:", targets, re.M) and re.search(r"^test:", targets, re.M)
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("page", [title(page) for page in DOCUMENTS if code(page)])
def test_the_blocks_run(page: str, results: dict) -> None:
    assert not results["failures"][page], results["failures"][page]


@pytest.mark.parametrize("example", [*SCRIPTS, *NOTEBOOKS], ids=title)
def test_the_examples_run_and_write_their_pictures(example: Path, results: dict) -> None:
    assert not results["failures"][title(example)], results["failures"][title(example)]
    named = set(re.findall(r'"(\w+\.png)"', example.read_text("utf-8")))
    written = {
        file.name for file in (results["folder"] / title(example)).iterdir() if file.stat().st_size > 1000
    }
    assert written == named
    assert f"`{example.name}`" in (ROOT / "docs" / "getting-started.md").read_text("utf-8")


@pytest.mark.parametrize("command", options())
def test_the_options_that_are_shown_exist(command: str, results: dict) -> None:
    known = set(re.findall(r"--[a-z-]+", results["helps"][command]))
    assert options()[command] <= known


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, which are the same on the site and on GitHub."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.M):
        plain = heading.replace("`", "").lower()
        on_github = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        ascii_only = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
        on_site = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip())
        assert on_github == on_site, (
            f"{title(page)}: the heading {heading!r} has two anchors; use other characters"
        )
        found.add(on_site)
    return found


@pytest.mark.parametrize("page", DOCUMENTS, ids=title)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text("utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(REPOSITORY):
            link = re.sub(r"^/?(blob|raw|tree)/main/", "", link.removeprefix(REPOSITORY).removeprefix("/"))
            folder = ROOT
        elif link.startswith("http"):
            continue
        else:
            assert page != README, f"{link}: the README is also shown on PyPI, so its links are absolute"
            folder = page.parent
        path, _, anchor = link.partition("#")
        target = folder / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_tables_are_those_of_the_records(page: Path) -> None:
    text = page.read_text("utf-8")
    assert fill(text) == text, "write them with python -m benchmarks.tables"


def test_every_table_is_shown_and_figures_in_the_text_are_from_them() -> None:
    texts = "".join(page.read_text("utf-8") for page in PAGES)
    assert all(f"<!-- {name} -->" in texts for name in BLOCKS)
    tables = "".join(
        re.findall(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->", texts, re.S)[i][1] for i in range(len(BLOCKS))
    )
    quoted = [figure for page in PAGES for figure in re.findall(r"[-+][\d.]+ ± [\d.]+", prose(page))]
    assert quoted
    assert [figure for figure in quoted if figure not in tables] == []


def test_the_readme_is_short_and_names_only_models_that_exist() -> None:
    text = README.read_text("utf-8")
    assert len(text.split()) <= 1200
    models = re.findall(r"\b[a-z_]+(?:-\d+)?\.(?:baseline|l0_inf|l0|l1|ml)\b(?:\.projected)?", text)
    assert set(models) == set(sparsegen.list_models())


def test_the_package_index_links_to_the_same_repository() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert all(url.startswith(REPOSITORY) for url in urls.values())
    assert f"repo_url: {REPOSITORY}\n" in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.parametrize("page", DOCUMENTS, ids=title)
def test_the_wording_is_plain(page: Path) -> None:
    for pattern, better in OUTDATED.items():
        found = re.search(rf".{{0,40}}{pattern}.{{0,40}}", prose(page))
        assert not found, f"{found and found[0]!r}: write {better}"

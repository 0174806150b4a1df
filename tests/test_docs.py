"""The README's blocks do what they say: python and sh blocks run as they stand, links lead somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import sparsegen
from benchmarks.readme import fill

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def test_the_two_commands_come_first() -> None:
    assert blocks("sh")[0].startswith("make serve") and "make test" in blocks("sh")[0]
    targets = (ROOT / "Makefile").read_text()
    assert re.search(r"^serve:", targets, re.M) and re.search(r"^test:", targets, re.M)
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()


def test_the_python_blocks_run_one_after_the_other(tmp_path: Path) -> None:
    script = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "dcgan.ml" in done.stdout


@pytest.mark.parametrize("line", [line for text in blocks("sh")[1:] for line in text.splitlines()])
def test_the_shell_blocks_run(line: str, tmp_path: Path) -> None:
    program, *arguments = shlex.split(line)
    assert program == "sparsegen"
    command = [sys.executable, "-m", "sparsegen", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for option, value in zip(arguments, arguments[1:], strict=False):
        if option == "--out":
            assert (tmp_path / value).stat().st_size > 1000


def test_every_picture_and_file_that_it_names_is_there() -> None:
    for path in re.findall(r"\]\(([^)]+)\)", README):
        assert path.startswith("http") or (ROOT / path).is_file(), path


def test_it_names_the_bundled_models() -> None:
    for name in sparsegen.list_models():
        assert f"`{name}`" in README


def test_its_tables_are_those_of_the_records() -> None:
    assert fill(README) == README, "write them anew with python -m benchmarks.readme"

"""Runs the code blocks of pages and examples: python -m page_runner FOLDER < blocks.json > results.json

All pages share one process, so that libraries are imported once. Each page has its own namespace and working folder;
its blocks run in order.
"""

import contextlib
import io
import json
import os
import shlex
import sys
import traceback
from importlib.metadata import entry_points
from pathlib import Path

(COMMAND,) = entry_points(group="console_scripts", name="sparsegen")


def command(arguments: list[str]) -> str:
    """Runs the command line, and returns what it prints.

    Raises: RuntimeError unless it ends with the exit code 0.
    """
    sys.argv = ["sparsegen", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            COMMAND.load()()
        except SystemExit as end:
            if end.code:
                raise RuntimeError(
                    f"{shlex.join(sys.argv)}: exit code {end.code}: {err.getvalue()}"
                ) from None
    return out.getvalue()


def shell(block: str) -> None:
    """Runs the lines of a shell block, and checks that what --out names was written."""
    for line in block.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if program != "sparsegen":
            raise RuntimeError(
                f"{line}: only sparsegen is run; put other commands into a block without a language"
            )
        command(arguments)
        if "--out" in arguments:
            written = Path(arguments[arguments.index("--out") + 1])
            size = (
                sum(file.stat().st_size for file in written.iterdir())
                if written.is_dir()
                else written.stat().st_size
            )
            if size < 1000:
                raise RuntimeError(f"{line}: {written} has {size} bytes")


def run(blocks: list[tuple[str, str]], folder: Path) -> str:
    """Runs the blocks of one page; returns the traceback of what failed, else nothing."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    sys.argv = [folder.name]
    names = {"__name__": "page"}
    try:
        for language, block in blocks:
            if language == "python":
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(block, "<block>", "exec"), names)
            else:
                shell(block)
    except Exception:
        return f"{block}\n{traceback.format_exc()}"
    return ""


if __name__ == "__main__":
    asked, root = json.load(sys.stdin), Path(sys.argv[1])
    failures = {page: run(blocks, root / page) for page, blocks in asked["pages"].items()}
    helps = {name: command([name, "--help"]) for name in asked["commands"]}
    json.dump({"failures": failures, "helps": helps}, sys.__stdout__)

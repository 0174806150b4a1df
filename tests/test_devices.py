"""Devices, tested in a process of its own: autograd counts the devices at the first backward pass of a process."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def test_what_runs_on_an_accelerator_is_what_runs_on_the_cpu(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'own'}"]
    command = [sys.executable, "-m", "pytest", *options, str(ROOT / "tests" / "on_accelerator.py")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout

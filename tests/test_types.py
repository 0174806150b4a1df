"""What a type checker sees of the public names."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

import sparsegen

USE = """
import numpy as np
import torch
from torch import nn

import sparsegen

generator = sparsegen.from_pretrained("dcgan.ml")
reveal_type(generator)
reveal_type(generator.sample(4, seed=7, k=[16, 8]))
reveal_type(sparsegen.open_sampler("dcgan.ml").sample(4))
reveal_type(sparsegen.restore(np.zeros((32, 32)), sigma=25).image)
reveal_type(sparsegen.restore(torch.zeros(1, 32, 32), sigma=25).image)
reveal_type(sparsegen.sparsify(nn.Sequential(), {"0": sparsegen.NeedleProjection(8)}))
sparsegen.from_pretrained(3)
generator.sample("four")
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> list[str]:
    """What mypy says of a script that reveals the type of each public name and then uses some."""
    names = sorted(set(sparsegen.__all__) - {"__version__"})
    # A name of its own: mypy keeps what it said of a module of this name, with the path of that time.
    script = tmp_path_factory.mktemp("types") / f"script_{os.getpid()}.py"
    script.write_text(
        "import sparsegen\n" + "".join(f"reveal_type(sparsegen.{name})\n" for name in names) + USE
    )
    cache = pytestconfig.cache.mkdir("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", cache, script]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not run.stderr, run.stderr
    return [line.partition(": ")[2] for line in run.stdout.splitlines() if line.startswith(str(script))]


def test_every_public_name_is_a_function_or_a_class(seen: list[str]) -> None:
    count = len(set(sparsegen.__all__) - {"__version__"})
    assert count > 15
    for line in seen[:count]:
        assert line.startswith(('note: Revealed type is "def (', 'note: Revealed type is "def [')), line


def test_calls_have_the_types_of_their_results_and_wrong_ones_are_errors(seen: list[str]) -> None:
    count = len(set(sparsegen.__all__) - {"__version__"})
    revealed = [line.partition('"')[2].rstrip('"') for line in seen[count:] if line.startswith("note")]
    expected = [
        "sparsegen.zoo.generator.Generator",
        "numpy.ndarray",
        "numpy.ndarray",
        "numpy.ndarray",
        "torch._tensor.Tensor",
        "sparsegen.zoo.projections.Sparsified",
    ]
    assert [name.partition("[")[0] for name in revealed] == expected
    assert [line.rpartition("[")[2] for line in seen[count:] if line.startswith("error")] == ["arg-type]"] * 2

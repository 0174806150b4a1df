"""The package as it is built and installed: the wheel, what each extra brings, and errors where a part is missing."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sparsegen.common import extras
from sparsegen.common.extras import EXTRAS, check_one_of
from sparsegen.export.runtime import open_sampler
from sparsegen.service.settings import ServiceSettings

ROOT = Path(__file__).parent.parent
RUNTIMES = {"onnxruntime", "onnxruntime-gpu"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, built without git, and the wheel built from it."""
    source, out = tmp_path_factory.mktemp("source") / "sparsegen", tmp_path_factory.mktemp("dist")
    ignored = {".git", ".venv", "build", "dist", "runs", "site", "node_modules"}
    shutil.copytree(ROOT, source, symlinks=True, ignore=lambda folder, names: ignored & set(names))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not re.findall(r".*(?:Deprecat|is absent from|not found).*", done.stdout + done.stderr)
    return out


@pytest.fixture(scope="module")
def needs(built: Path) -> dict[str, list[Requirement]]:
    """The requirements of the wheel by extra; those without an extra under the empty name."""
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(wheel.read(name).decode())
    found = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    names = ["", *metadata.get_all("Provides-Extra", [])]
    return {
        extra: [
            each
            for each in found
            if (each.marker is None and not extra)
            or (
                extra
                and each.marker
                and not each.marker.evaluate({"extra": ""})
                and each.marker.evaluate({"extra": extra})
            )
        ]
        for extra in names
    }


def closure(needs: dict[str, list[Requirement]], extra: str) -> set[str]:
    """The distributions that an extra installs here, with the dependencies of its dependencies."""
    found: set[str] = set()
    open_ = [*needs[""], *needs[extra]]
    while open_:
        each = open_.pop()
        name = canonicalize_name(each.name)
        if name == "sparsegen":
            open_ += [inner for part in each.extras for inner in needs[part]]
        elif name not in found:
            found.add(name)
            try:
                lines = requires(name) or []
            except PackageNotFoundError:  # the build of onnxruntime that is not installed here
                assert name in RUNTIMES, name
                continue
            inner = map(Requirement, lines)
            environments = [{"extra": part} for part in (*each.extras, "")]
            open_ += [one for one in inner if not one.marker or any(map(one.marker.evaluate, environments))]
    return found


def test_the_distributions_pass_the_checks_of_pypi(built: Path) -> None:
    files = sorted(map(str, built.iterdir()))
    assert [Path(file).suffix for file in files] == [".whl", ".gz"]
    command = [sys.executable, "-m", "twine", "check", "--strict", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_wheel_has_the_package_of_the_checkout(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("sparsegen/")}
    package = ROOT / "src" / "sparsegen"
    modules = {
        f"sparsegen/{file.relative_to(package)}"
        for folder in (package, *(part for part in package.iterdir() if part.is_dir()))
        for file in folder.rglob("*.py")
    }
    assert modules <= packed
    for needed in (
        "py.typed",
        "zoo/models/dcgan.ml/generator.safetensors",
        "service/page/static/page.css",
        "export/web/source/index.html",
        "export/web/engine/runtime.wasm.gz",
        "export/web/engine/LICENSE",
    ):
        assert f"sparsegen/{needed}" in packed, needed
    with tarfile.open(next(built.glob("*.tar.gz"))) as source:
        assert any(name.endswith("/zoo/models/dcgan.ml/generator.safetensors") for name in source.getnames())


@pytest.mark.parametrize(
    "extra", ["", "onnxruntime", "onnxruntime-gpu", "serve", "serve-gpu", "redis", "ray", "slurm"]
)
def test_no_torch_is_installed_with(needs: dict[str, list[Requirement]], extra: str) -> None:
    found = closure(needs, extra)
    assert not {name for name in found if re.match(r"torch|nvidia-c|triton|cuda", name)}
    assert extra == "" or len(found) > len(closure(needs, ""))


@pytest.mark.parametrize(
    "extra", ["torch", "train", "restore", "export", "export-gpu", "plot", "all", "all-gpu"]
)
def test_torch_is_installed_with(needs: dict[str, list[Requirement]], extra: str) -> None:
    assert "torch" in closure(needs, extra)


def test_an_extra_installs_at_most_one_build_of_onnxruntime(needs: dict[str, list[Requirement]]) -> None:
    for extra in needs:
        found = closure(needs, extra) & RUNTIMES
        expected = set() if not found else {"onnxruntime-gpu"} if extra.endswith("-gpu") else {"onnxruntime"}
        assert found == expected, extra


def test_the_extra_that_an_error_names_has_the_module(needs: dict[str, list[Requirement]]) -> None:
    distributions = packages_distributions()
    for module, extra in EXTRAS.items():
        providers = {canonicalize_name(name) for name in distributions[module]}
        if providers & RUNTIMES:
            providers |= RUNTIMES
        assert providers & closure(needs, extra), module


@pytest.mark.parametrize("module", ["torch", "onnxruntime"])
def test_a_public_name_says_which_extra_it_needs(module: str) -> None:
    name = {"torch": "from_pretrained", "onnxruntime": "open_sampler"}[module]
    script = f"import sys; sys.modules[{module!r}] = None; import sparsegen; sparsegen.{name}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert re.search(rf"ImportError: .* needs {module}: pip install .*\[{module}\]", done.stderr)


def test_two_builds_of_onnxruntime_are_refused_in_one_sentence(tmp_path: Path) -> None:
    for name, version in (("onnxruntime", "1.31.0"), ("onnxruntime_gpu", "1.30.0")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from sparsegen.__main__ import main; main()"
    command = [sys.executable, "-c", script, "serve", "--port", "4452"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    for part in (
        "onnxruntime 1.31.0",
        "onnxruntime-gpu 1.30.0",
        "pip uninstall -y onnxruntime onnxruntime-gpu",
    ):
        assert part in done.stderr


def test_one_build_is_accepted() -> None:
    check_one_of(["pytest", "there-is-no-such-package"])
    with pytest.raises(ImportError, match="pytest .* and numpy .* pip uninstall -y pytest numpy"):
        check_one_of(["pytest", "numpy"])


def test_a_server_without_torch_has_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ServiceSettings.from_environment({}).workers == 1
    monkeypatch.setattr("sparsegen.service.settings.is_installed", lambda package: package != "torch")
    assert ServiceSettings.from_environment({}).workers == 0
    settings = ServiceSettings.from_environment({}, host="127.0.0.1")
    assert any(
        re.search(r"PyTorch is not installed: pip install .*\[restore\]", each)
        for each in settings.direct_warnings()
    )
    with pytest.raises(ValueError, match=r"SPARSEGEN_WORKERS is 2, .*\[restore\].*, or set it to 0"):
        ServiceSettings.from_environment({"SPARSEGEN_WORKERS": "2"})


def test_the_command_line_samples_and_lists_models_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None; from sparsegen.cli import models; "
        "models.is_installed = lambda *packages: 'onnxruntime' in packages; "
        "from sparsegen.__main__ import main; main()"
    )

    def run(*arguments: str) -> str:
        command = [sys.executable, "-c", script, *arguments]
        terminal = os.environ | {"FORCE_COLOR": "1", "COLUMNS": "100"}
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=terminal
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("sample", "dcgan.ml", "--count", "70", "--seed", "5", "--k", "16", "--out", "samples.npy")
    pixels = np.load(tmp_path / "samples.npy")
    assert np.array_equal(pixels, open_sampler("dcgan.ml").sample(70, seed=5, k=16))
    assert re.search(r"dcgan\.ml +- +128 +32, 32 +20,000 ", run("list", "dcgan.*"))


def test_a_module_that_no_extra_has_is_reported_as_it_is() -> None:
    error = ModuleNotFoundError("No module named 'unknown'", name="unknown")
    assert extras.explain(error, "this") is error


@pytest.mark.parametrize("driver", [False, True])
def test_make_installs_the_builds_for_gpus_where_a_driver_is_found(tmp_path: Path, driver: bool) -> None:
    if Path("/proc/driver/nvidia/version").exists() and not driver:
        pytest.skip("this machine has a driver")
    if driver:
        (tmp_path / "nvidia-smi").touch(0o755)
    command = ["make", "--dry-run", "--always-make", "--directory", str(ROOT), ".venv/.serve", ".venv/.dev"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    gpu = "-gpu" if driver else ""
    assert f"'.[serve{gpu},restore]'" in done.stdout and f"'.[all{gpu},dev]'" in done.stdout
    assert ("https://download.pytorch.org/whl/cpu torch" in done.stdout) == (
        sys.platform == "linux" and not driver
    )

"""onnxruntime-web, which runs the network in the browser: the files of its npm package that a page needs.

They are committed packed, so that an export needs no network. To fetch them anew: `make web-engine`, which needs npm.
The npm package contains no license texts; those in the folder are the ones of the onnxruntime wheel.
"""

import gzip
import hashlib
import subprocess
import tarfile
import tempfile
from pathlib import Path

from sparsegen.common.files import atomic_write

VERSION = "1.30.0"
FOLDER = Path(__file__).parent / "engine"
# The build without WebGPU and WebNN is the smallest. It runs single-threaded where there is no SharedArrayBuffer.
FILES = {  # name of the part: file in the npm package, SHA-256
    "runtime.mjs": (
        "dist/ort.wasm.bundle.min.mjs",
        "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    ),
    "runtime.wasm": (
        "dist/ort-wasm-simd-threaded.wasm",
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    ),
}
LICENSE, NOTICES = "LICENSE", "notices.txt"


def read_engine() -> dict[str, bytes]:
    """Returns the parts, packed by gzip: `FILES` and the notices of third parties.

    Raises:
        FileNotFoundError: If the installation lacks a part.
        ValueError: If a part is not the pinned one.
    """
    parts = {name: _packed(FOLDER / f"{name}.gz") for name in (*FILES, NOTICES)}
    for name, (_, digest) in FILES.items():
        check_digest(name, gzip.decompress(parts[name]), digest)
    return parts


def read_license() -> str:
    """Returns the license of onnxruntime-web. Raises: FileNotFoundError if the installation lacks it."""
    return _packed(FOLDER / LICENSE).decode("utf-8")


def _packed(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing in this installation of sparsegen, and a web page needs it: install sparsegen again"
        ) from None


def check_digest(name: str, content: bytes, digest: str) -> None:
    """Raises: ValueError unless the SHA-256 of the content is `digest`."""
    if (found := hashlib.sha256(content).hexdigest()) != digest:
        raise ValueError(
            f"{name} is not that of onnxruntime-web {VERSION}: its SHA-256 is {found}, not {digest}; install sparsegen "
            "again"
        )


def fetch() -> None:
    """Downloads the npm package, checks its files, and writes them packed into this folder.

    zopfli packs 4 % smaller than gzip, for any browser's decoder; it takes half a minute.

    Raises:
        subprocess.CalledProcessError, FileNotFoundError, ImportError: If npm fails, or npm or zopfli is missing.
        ValueError: If a file has another SHA-256 than the pinned one.
    """
    import zopfli.gzip

    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, f"onnxruntime-web@{VERSION}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (package,) = Path(folder).glob("*.tgz")
        with tarfile.open(package) as archive:
            for name, (source, digest) in FILES.items():
                file = archive.extractfile(f"package/{source}")
                assert file is not None, f"{source} is not a file"
                content = file.read()
                check_digest(name, content, digest)
                with atomic_write(FOLDER / f"{name}.gz") as target:
                    target.write_bytes(zopfli.gzip.compress(content, numiterations=5))
                print(f"{name}: {source}, {len(content):,} bytes, SHA-256 as pinned")


if __name__ == "__main__":
    fetch()

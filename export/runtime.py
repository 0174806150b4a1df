"""Sampling from an exported generator with numpy and onnxruntime only; neither torch nor onnx is needed.

The same file, seed and k give the same pixels bit for bit here, over HTTP and on the page. `Generator.sample` in torch
differs by at most one gray level in a few of a million values; and if the k-th and the next magnitude of a needle are
equal up to rounding, it may keep the other entry.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from sparsegen.common.extras import check_one_of, explain

try:
    check_one_of(("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"))
    import onnxruntime
except ModuleNotFoundError as error:
    raise explain(error, "running ONNX files") from error

from onnxruntime.capi import onnxruntime_pybind11_state as state

from sparsegen.common.checks import check_integer
from sparsegen.common.files import check_utf8
from sparsegen.common.names import known_names
from sparsegen.pictures import images
from sparsegen.zoo import bundled, hub, noise
from sparsegen.zoo.k_range import KRange, resolve

onnxruntime.disable_telemetry_events()  # if onnxruntime was imported before sparsegen

FORMAT = 1
METADATA = "sparsegen"  # key in the model's metadata_props of the JSON of `onnx_file.describe`
_LOAD_ERRORS = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
)
_AGAIN = "download both files again, or export again"


class OnnxSampler:
    """Draws images from an exported generator. Thread-safe.

    Args:
        path: The .onnx file.
        threads: CPU threads of one call, 1 to 1024.

    Attributes:
        name, regularizer, license: E.g. `dcgan.ml`, `ml`, `apache-2.0`; the license is None if none is recorded.
        k_ranges: Level, unit, k of training and largest k of each projected level, Γ1 first; empty without
            projections.
        z_dim: Number of entries of z.
        image_size: Side of the square images in pixels.
        classes, class_names: Number of classes, 0 if unconditional; their names, if known.
        code_shapes: (C, H, W) of each Γ, Γ1 first, projected or not.
        metadata: The JSON metadata of the file.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If one is corrupt, too new, or not from sparsegen.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        self.path = Path(path)
        self.threads = check_integer("threads", threads, 1, 1024, "the CPU threads of one call")
        self._session, self.metadata = open_graph(self.path, self.threads)
        if self.metadata["graph"] != "generator":
            raise ValueError(
                f"{self.path} is a synthesis graph, from codes to images: open the file of its generator"
            )
        self.name: str = self.metadata["name"]
        self.regularizer: str = self.metadata["regularizer"]
        self.license: str | None = self.metadata["license"]
        self.k_ranges = [KRange(**k_range) for k_range in self.metadata["dials"]]
        self.z_dim: int = self.metadata["z_dim"]
        self.image_size: int = self.metadata.get("image_size", 32)  # older files lack it, and have 32 x 32
        self.classes: int = self.metadata.get("classes", 0)
        self.class_names: tuple[str, ...] = tuple(self.metadata.get("class_names", ()))
        self.code_shapes = tuple(tuple(shape) for shape in self.metadata["code_shapes"])
        self._synthesis: onnxruntime.InferenceSession | None = None
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"OnnxSampler({str(self.path)!r}): {self.name}"

    def sample(
        self,
        count: int,
        seed: int = 0,
        k: int | Sequence[int] | None = None,
        labels: int | str | Sequence[int | str] | None = None,
        truncation: float | None = None,
    ) -> NDArray[np.uint8]:
        """Draws `count` images of a seed; image i does not depend on the count, and is nearly that of torch.

        Args:
            count: 1 to 100,000.
            seed: 0 to 2⁶⁴ - 1.
            k: Non-zeros kept in these images: one number for all projected levels, or one per level, Γ1
                first; None for the k of training.
            labels: For a conditional generator, the class of each image or one for all, as numbers or names; None:
                drawn.
            truncation: Bound of the truncated normal that z is drawn from, at least 0.05; None: no bound.

        Shape: uint8 (count, H, W, 3).

        Raises:
            TypeError, ValueError: On a value out of range.
        """
        classes = noise.labels(count, self.classes, seed, labels, self.class_names)
        values, parts = resolve(k, self.k_ranges) or None, []
        for first, z in noise.batches(count, self.z_dim, seed, truncation):
            chosen = None if classes is None else classes[first : first + len(z)]
            image, _ = self.run(z, values, codes=False, labels=chosen)
            parts.append(images.to_uint8(image))
        return np.concatenate(parts)

    def run(
        self,
        z: np.ndarray,
        k: int | Sequence[int] | None = None,
        codes: bool = True,
        labels: Sequence[int] | np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Returns the images of given noise and their codes, Γ1 first (none if `codes` is false).

        Shape: z float32 (B, z_dim), labels (B,) for a conditional generator -> image float32 (B, 3, H, W) in [-1, 1];
        codes[i] float32 (B, C, H', W').

        Raises:
            TypeError, ValueError: If k, the labels or the shape of z do not fit.
        """
        z = np.asarray(z, np.float32)
        if z.ndim != 2 or z.shape[1] != self.z_dim or not len(z):
            raise ValueError(f"z must have the shape (B, {self.z_dim}), B at least 1; got {z.shape}")
        values = resolve(k, self.k_ranges)
        inputs = {"z": z}
        noise.check_conditional(labels is not None, self.classes, self.class_names)
        classes = None if labels is None else noise.labels(len(z), self.classes, 0, labels, self.class_names)
        if classes is not None:
            inputs["labels"] = classes
        for k_range, value in zip(self.k_ranges, values, strict=True):
            inputs[f"k_{k_range.level}"] = np.array(value, np.int64)
        names = [f"code_{level}" for level in range(1, len(self.code_shapes) + 1)] if codes else []
        image, *levels = self._session.run(["image", *names], inputs)
        return image, tuple(levels)

    def synthesize(self, code_1: np.ndarray) -> np.ndarray:
        """Returns the image of a Γ1, e.g. an edited one; it is not projected.

        Shape: Γ1 float32 (B, C, H', W') -> image float32 (B, 3, H, W) in [-1, 1].

        Raises:
            ValueError: On another shape.
            FileNotFoundError: If the folder of this file has no synthesis graph.
        """
        code_1 = np.asarray(code_1, np.float32)
        if code_1.ndim != 4 or code_1.shape[1:] != self.code_shapes[0] or not len(code_1):
            expected = ", ".join(map(str, self.code_shapes[0]))
            raise ValueError(f"Γ1 must have the shape (B, {expected}), B at least 1; got {code_1.shape}")
        return self._run_synthesis("image", code_1)

    def dictionary(self) -> np.ndarray:
        """Returns the atoms of D1: what one unit entry of Γ1 adds to the image, before bias and tanh.

        Shape: float32 (atoms, 3, h, w).

        Raises:
            FileNotFoundError: As `synthesize`.
        """
        return self._run_synthesis("dictionary", np.zeros((1, *self.code_shapes[0]), np.float32))

    def _run_synthesis(self, output: str, code_1: np.ndarray) -> np.ndarray:
        result: np.ndarray = self._open_synthesis().run([output], {"code_1": code_1})[0]
        return result

    def _open_synthesis(self) -> onnxruntime.InferenceSession:
        with self._lock:
            if self._synthesis is None:
                path = synthesis_path(self.path)
                if not path.is_file():
                    raise FileNotFoundError(f"{path} is missing: export again with the synthesis graph")
                self._synthesis, _ = open_graph(path, self.threads)
            return self._synthesis


def open_sampler(
    name_or_folder_or_file: str | Path,
    threads: int = 1,
    revision: str | None = None,
    **options: Unpack[hub.Download],
) -> OnnxSampler:
    """Opens a bundled model by its name, the generator.onnx of a folder, an .onnx file, or owner/name on the Hub.

    Args:
        name_or_folder_or_file: On the Hub also owner/name@revision.
        threads: CPU threads of one call, 1 to 1024.
        revision: Branch, tag or commit on the Hub; None: the default branch.
        options: Of a download, see `zoo.hub.Download`.

    Raises:
        ConnectionError: If the download fails.
        FileNotFoundError, ValueError: As `OnnxSampler`.
        ValueError: Listing the bundled models if it is none of these.
    """
    given, path = str(name_or_folder_or_file), Path(name_or_folder_or_file).expanduser()
    known = bundled.list_models()
    if given in known:
        bundled.warn_of_folder(path)
        path = bundled.MODELS / given
    check_utf8(path)
    if path.is_dir():
        path = path / bundled.GRAPH
    if not path.exists() and path.suffix.lower() != ".onnx" and hub.may_be_id(given):
        folder = hub.download(given, revision, **options)
        path = folder / bundled.GRAPH
        if not path.is_file():
            raise FileNotFoundError(
                f"{given!r} on the Hub has no {bundled.GRAPH}: push it again with sparsegen push, which exports it, or "
                "open it with sparsegen.from_pretrained"
            )
    if path.suffix.lower() != ".onnx" and not path.is_file():
        raise ValueError(
            f"no model {given!r}: neither bundled, nor a folder, nor an .onnx file, nor owner/name on the Hub. "
            f"Bundled: {known_names(given, known)}"
        )
    return OnnxSampler(path, threads)


def synthesis_path(path: Path) -> Path:
    """Returns the path of a generator's synthesis graph: m.synthesis.onnx for m.onnx, synthesis.onnx in a folder."""
    return path.with_name(bundled.SYNTHESIS if path.name == bundled.GRAPH else f"{path.stem}.synthesis.onnx")


def open_graph(path: Path, threads: int = 1) -> tuple[onnxruntime.InferenceSession, dict[str, Any]]:
    """Opens an exported graph on the CPU, with the weights in its folder; returns the session and the metadata.

    Raises:
        FileNotFoundError, ValueError: With the file and the reason.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: write it with sparsegen export")
    try:
        session = open_session(str(path), threads)
    except _LOAD_ERRORS as error:
        raise _explain(error, path) from None
    metadata = _metadata(session, path)
    _check_weights(metadata, path)
    return session, metadata


def open_session(model: str | bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """Opens a file or a serialized model on the CPU. Idle threads do not spin."""
    _share_arena()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # errors are raised, not logged
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@cache
def _share_arena() -> None:
    """Creates one memory arena for all sessions of this process.

    An arena keeps the memory of the largest batch so far, and by default each session has its own: 56 sessions, each
    after 64 images, took 1,360 MB, and 250 MB with one arena.
    """
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(memory, None)


def _explain(error: Exception, path: Path) -> Exception:
    reason, weights = str(error).splitlines()[0], path.with_name(bundled.WEIGHTS)
    if "xternal" not in reason:
        return ValueError(f"{path} is truncated, corrupt or not an ONNX file: {reason}")
    if not weights.exists():
        return FileNotFoundError(f"{weights} is missing: {path.name} reads its weights from there")
    if "escapes" in reason:
        return ValueError(
            f"{weights} is a link to another folder, which onnxruntime does not follow: copy the file here"
        )
    return ValueError(f"{weights} is truncated, or not the file that {path.name} was exported with: {_AGAIN}")


def _metadata(session: onnxruntime.InferenceSession, path: Path) -> dict[str, Any]:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    try:
        metadata: dict[str, Any] = json.loads(text or "")
        version = int(metadata["format"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} was not exported by sparsegen: its metadata has no JSON with a format under {METADATA!r}"
        ) from None
    if version > FORMAT:
        raise ValueError(
            f"{path} has format {version}, and this sparsegen reads up to format {FORMAT}: upgrade sparsegen"
        )
    return metadata


def _check_weights(metadata: dict[str, Any], path: Path) -> None:
    """Checks the digest of the weights, since the graph records only their positions in the file.

    Raises:
        ValueError: If the file has changed since the export.
    """
    if metadata["weights"] is not None:
        weights = path.with_name(bundled.WEIGHTS)
        if digest(weights) != metadata["weights"]:
            raise ValueError(f"{weights} is not the file that {path.name} was exported with: {_AGAIN}")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

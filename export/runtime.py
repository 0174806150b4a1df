"""Sampling from an exported generator with numpy and onnxruntime only; neither torch nor onnx is needed.

On a CPU, the same file, seed and k give the same pixels bit for bit here, over HTTP and on the page. `Generator.sample`
in torch differs by at most one gray level in a few of a million values; and if the k-th and the next magnitude of a
needle are equal up to rounding, it may keep the other entry.
"""

import contextlib
import ctypes
import hashlib
import io
import json
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
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
from sparsegen.common.text import check_text
from sparsegen.export.encoding import encode
from sparsegen.pictures import images
from sparsegen.zoo import bundled, hub, noise
from sparsegen.zoo.config import check_class_names, check_license
from sparsegen.zoo.fitting import ITERATIONS, Encoding
from sparsegen.zoo.k_range import UNITS, KRange, is_per_image, resolve, resolve_per_image

onnxruntime.disable_telemetry_events()  # if onnxruntime was imported before sparsegen

FORMAT = 2  # since 2, k may be one number per image
LARGEST = 2**16  # of the sizes in the metadata
GRAPHS = ("generator", "synthesis", "encoding")  # what a file computes
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
CPU_PROVIDER = "CPUExecutionProvider"
PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
GPU_BATCH = 512  # images; not measured
DIVIDE_FROM = 500  # images, for which importing numba and onnx, about half a second, pays
DEVICES = "auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N"

Run = Callable[[list[str], dict[str, np.ndarray]], list[np.ndarray]]  # outputs of a graph from its inputs

logger = logging.getLogger(__name__)


class OnnxSampler:
    """Draws images from an exported generator. Thread-safe.

    Args:
        path: The .onnx file.
        threads: CPU threads of one call, 1 to 1024.
        device: "auto": CUDA if onnxruntime can use it, else the CPU; a CUDA that fails although there is a driver is
            logged as a warning. Or "cpu", "cuda", "cuda:1", or "tensorrt", which "auto" never chooses.

    Attributes:
        provider: The execution provider that onnxruntime uses, e.g. CPUExecutionProvider.
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
        ValueError: If one is corrupt, too new, or not from sparsegen; if onnxruntime cannot use the device.
    """

    def __init__(self, path: str | Path, threads: int = 1, device: str = "auto") -> None:
        self.path = Path(path)
        self.threads = check_integer("threads", threads, 1, 1024, "the CPU threads of one call")
        session, self.metadata = open_graph(self.path, self.threads, device)
        self.device, self.provider = device, provider_of(session)
        if self.metadata["graph"] != "generator":
            raise ValueError(
                f"{self.path} is the {self.metadata['graph']} graph of a generator: open the file of the generator"
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
        self._others: dict[str, onnxruntime.InferenceSession] = {}
        self._lock = Lock()
        self._divided: bool | None = None  # None: not tried
        self._run: Run = session.run

    def __repr__(self) -> str:
        return f"OnnxSampler({str(self.path)!r}): {self.name}"

    def sample(
        self,
        count: int,
        seed: int = 0,
        k: int | Sequence[int] | np.ndarray | None = None,
        labels: int | str | Sequence[int | str] | None = None,
        truncation: float | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> NDArray[np.uint8]:
        """Draws `count` images of a seed; image i does not depend on the count, and is nearly that of torch.

        Args:
            count: 1 to 100,000.
            seed: 0 to 2⁶⁴ - 1.
            k: Non-zeros kept in these images: one number for all projected levels, or one per level, Γ1
                first; or an integer array (count, levels), one per image and projected level (a list of lists is not
                accepted); None for the k of training.
            labels: For a conditional generator, the class of each image or one for all, as numbers or names; None:
                drawn.
            truncation: Bound of the truncated normal that z is drawn from, at least 0.05; None: no bound.
            progress: Called with the number of images done, after each batch.

        Shape: uint8 (count, H, W, 3).

        Raises:
            TypeError, ValueError: On a value out of range.
        """
        if count >= DIVIDE_FROM:
            self.divide()
        classes = noise.labels(count, self.classes, seed, labels, self.class_names)
        values, parts = None if k is None else self._resolve(k, count), []
        batch = noise.BATCH if self.provider == CPU_PROVIDER else GPU_BATCH
        for first, z in noise.batches(count, self.z_dim, seed, truncation, batch):
            chosen = None if classes is None else classes[first : first + len(z)]
            some = values[first : first + len(z)] if is_per_image(values) else values
            image, _ = self.run(z, some, codes=False, labels=chosen)
            parts.append(images.to_uint8(image))
            if progress:
                progress(first + len(z))
        return np.concatenate(parts)

    def run(
        self,
        z: np.ndarray,
        k: int | Sequence[int] | np.ndarray | None = None,
        codes: bool = True,
        labels: Sequence[int] | np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Returns the images of given noise and their codes, Γ1 first (none if `codes` is false).

        Args:
            k: As in `sample`; per image, an integer array (B, levels).

        Shape: z float32 (B, z_dim), labels (B,) for a conditional generator -> image float32 (B, 3, H, W) in [-1, 1];
        codes[i] float32 (B, C, H', W').

        Raises:
            TypeError, ValueError: If k, the labels or the shape of z do not fit.
        """
        z = np.asarray(z, np.float32)
        if z.ndim != 2 or z.shape[1] != self.z_dim or not len(z):
            raise ValueError(f"z must have the shape (B, {self.z_dim}), B at least 1; got {z.shape}")
        values = self._resolve(k, len(z))
        inputs = {"z": z}
        noise.check_conditional(labels is not None, self.classes, self.class_names)
        classes = None if labels is None else noise.labels(len(z), self.classes, 0, labels, self.class_names)
        if classes is not None:
            inputs["labels"] = classes
        for index, k_range in enumerate(self.k_ranges):
            inputs[f"k_{k_range.level}"] = np.array(values[..., index], np.int64)
        names = [f"code_{level}" for level in range(1, len(self.code_shapes) + 1)] if codes else []
        image, *levels = self._compute(self._run, ["image", *names], inputs)
        shapes = [(3, self.image_size, self.image_size), *self.code_shapes]
        for name, found, shape in zip(["image", *names], [image, *levels], shapes, strict=False):
            if found.shape != (len(z), *shape):
                raise ValueError(
                    f"{self.path} made {name} of the shape {found.shape}, not {(len(z), *shape)}: {_AGAIN}"
                )
        return image, tuple(levels)

    def _resolve(self, k: int | Sequence[int] | np.ndarray | None, count: int) -> NDArray[np.int64]:
        """Checks k. Shape: int64 (levels,), or (count, levels) if there is one k per image."""
        if not is_per_image(k):
            return np.array(resolve(k, self.k_ranges), np.int64)
        values = resolve_per_image(k, self.k_ranges, count)
        if self.metadata["format"] < 2:
            raise ValueError(
                f"{self.path} was exported by an older sparsegen and takes one k for all images: export it again"
            )
        return values

    @property
    def divided(self) -> bool:
        """Whether `divide` has succeeded."""
        return bool(self._divided)

    def divide(self) -> bool:
        """Projects in compiled loops from now on: 1.1 to 1.9 times as fast, with the same pixels bit for bit.

        The graph is divided at its projections (`parts.py`). `sample` does so before it draws 500 images
        or more. Numba compiles the loops at the first use on a machine, which takes seconds.

        Returns: Whether it is divided. It is not if numba or onnx is missing (extra fast), on a GPU, or if the file has
            no projections of its own, such as one exported with --plain or --half.
        """
        with self._lock:
            if self._divided is None:
                self._divided = self._divide()
            return self._divided

    def _divide(self) -> bool:
        if self.provider != CPU_PROVIDER or not self.k_ranges:
            return False
        try:
            from sparsegen.export.parts import Parts

            weights = self.path.with_name(bundled.WEIGHTS)
            given = {weights.name: weights.read_bytes()} if self.metadata["weights"] else {}
            parts = Parts(
                self.path, lambda model: _open(model, self.threads, [CPU_PROVIDER], given), self.threads
            )
        except (ImportError, OSError, ValueError, *_LOAD_ERRORS) as error:
            logger.debug("%s is run as a whole: %s", self.path, error)
            return False
        self._run = parts.run
        return True

    def _compute(self, run: Run, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        try:
            results: list[np.ndarray] = run(outputs, inputs)
        except _LOAD_ERRORS as error:
            raise RuntimeError(f"{self.path} failed: {str(error).splitlines()[0]:.300}") from None
        return results

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
        session = self._open(synthesis_path(self.path), "synthesis")
        return self._compute(session.run, [output], {"code_1": code_1})[0]

    def encode(
        self,
        images: NDArray[np.uint8],
        k: int | Sequence[int] | None = None,
        iterations: int = ITERATIONS,
        mask: NDArray[np.bool_] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Encoding[NDArray[np.float32]]:
        """Finds the sparse codes of images: those whose images under the learned dictionaries are nearest to them.

        The search is that of `Generator.encode`, for the highest projected level.

        Args:
            images: uint8, of the size of the model.
            k: Non-zeros kept, one number or one per projected level; None: the k of training.
            iterations: Steps of the search, at least 1.
            mask: True where a pixel is known; the others do not count, and are filled in. None: all are known.
            progress: Called with the number of images done, after each batch of 16.

        Shape: images (B, H, W, 3), mask (H, W) or (B, H, W); see `Encoding`.

        Raises:
            TypeError, ValueError: On other images, or a value out of range.
            FileNotFoundError: If the folder of this file has no encoding graph.
        """
        values = resolve(k, self.k_ranges)
        session = self._open(encoding_path(self.path), "encoding")
        names = [each.name for each in session.get_outputs()]
        level = sum(name.startswith("code_") for name in names)
        given = {
            f"k_{k_range.level}": np.array(value, np.int64)
            for k_range, value in zip(self.k_ranges, values, strict=True)
        }

        def step(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return dict(zip(names, self._compute(session.run, names, dict(inputs)), strict=True))

        return encode(
            step, self.code_shapes[:level], self.image_size, given, images, iterations, mask, progress
        )

    def _open(self, path: Path, graph: str) -> onnxruntime.InferenceSession:
        """Opens another graph of the generator on its first use.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If it is another one.
        """
        with self._lock:
            if graph not in self._others:
                if not path.is_file():
                    raise FileNotFoundError(f"{path} is missing: export the model again with --{graph}")
                session, metadata = open_graph(path, self.threads, self.device)
                if metadata["graph"] != graph or metadata["name"] != self.name:
                    raise ValueError(f"{path} is not the {graph} graph of {self.name}: export again")
                self._others[graph] = session
            return self._others[graph]


def open_sampler(
    name_or_folder_or_file: str | Path,
    threads: int = 1,
    revision: str | None = None,
    device: str = "auto",
    **options: Unpack[hub.Download],
) -> OnnxSampler:
    """Opens a bundled model by its name, the generator.onnx of a folder, an .onnx file, or owner/name on the Hub.

    Args:
        name_or_folder_or_file: On the Hub also owner/name@revision.
        threads: CPU threads of one call, 1 to 1024.
        revision: Branch, tag or commit on the Hub; None: the default branch.
        device: As in `OnnxSampler`.
        options: Of a download, see `zoo.hub.Download`.

    Raises:
        ConnectionError: If the download fails.
        FileNotFoundError, ValueError: As `OnnxSampler`.
        ValueError: Listing the bundled models if it is none of these.
    """
    hub.check_options(options, hub.Download)
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
    return OnnxSampler(path, threads, device)


def synthesis_path(path: Path) -> Path:
    """Returns the path of a generator's synthesis graph: m.synthesis.onnx for m.onnx, synthesis.onnx in a folder."""
    return path.with_name(bundled.SYNTHESIS if path.name == bundled.GRAPH else f"{path.stem}.synthesis.onnx")


def encoding_path(path: Path) -> Path:
    """Returns the path of a generator's encoding graph: m.encoding.onnx for m.onnx, encoding.onnx in a folder."""
    return path.with_name(bundled.ENCODING if path.name == bundled.GRAPH else f"{path.stem}.encoding.onnx")


def open_graph(
    path: Path, threads: int = 1, device: str = "cpu"
) -> tuple[onnxruntime.InferenceSession, dict[str, Any]]:
    """Opens an exported graph with the weights in its folder; returns the session and the metadata.

    Raises:
        FileNotFoundError, ValueError: With the file and the reason.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: give a folder that `sparsegen export MODEL --out FOLDER` wrote"
        )
    try:
        session = open_session(str(path), threads, device)
    except _LOAD_ERRORS as error:
        raise _explain(error, path) from None
    metadata = _metadata(session, path)
    try:
        _check_metadata(metadata, session)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"the entry {error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is not as sparsegen exports it: {reason}") from None
    _check_weights(metadata, path)
    return session, metadata


def open_session(model: str | bytes, threads: int = 1, device: str = "cpu") -> onnxruntime.InferenceSession:
    """Opens a file or a serialized model on a device, see `OnnxSampler`. Idle threads do not spin.

    Raises:
        ValueError: If onnxruntime cannot use the device; "auto" falls back to the CPU instead.
    """
    kind, index = check_device(device)
    if kind == "auto":
        kind = "cuda" if _AutoCuda.problem() is None else "cpu"
    if kind == "cpu":
        return _open(model, threads, [CPU_PROVIDER])
    session, problem = _open_on_gpu(model, threads, kind, index)
    if session is not None:
        return session
    if device == "auto":
        _AutoCuda.give_up(problem)
        return _open(model, threads, [CPU_PROVIDER])
    raise ValueError(f"onnxruntime cannot use {device}: {problem}; or use the device cpu or auto")


def check_device(device: str) -> tuple[str, int]:
    """Splits the name of a device of onnxruntime into its kind and its index.

    Raises:
        TypeError, ValueError: If it is not such a name.
    """
    if not isinstance(device, str):
        raise TypeError(f"a device of onnxruntime must be {DEVICES}; got {device!r}")
    found = re.fullmatch(r"(auto|cpu)|(cuda|tensorrt)(?::(\d{1,4}))?", device)
    if not found:
        raise ValueError(f"a device of onnxruntime must be {DEVICES}; got {device!r}")
    return found[1] or found[2], int(found[3] or 0)


def provider_of(session: onnxruntime.InferenceSession) -> str:
    """Returns the first execution provider of a session, which runs all nodes that it can."""
    return str(session.get_providers()[0])


def expected_provider() -> str:
    """Returns the execution provider that "auto" tries first on this machine."""
    return CPU_PROVIDER if cpu_reason() else PROVIDERS["cuda"]


def cpu_reason() -> str | None:
    """Returns why "auto" is the CPU on this machine; None if it is CUDA, or CUDA has not been tried yet."""
    return _AutoCuda.problem()


class _AutoCuda:
    """Why "auto" does not use CUDA in this process; found once, since each attempt takes a tenth of a second."""

    reason: str | None = None
    lock = Lock()

    @classmethod
    def problem(cls) -> str | None:
        """Returns the reason, or None while CUDA may work."""
        with cls.lock:
            if cls.reason is None:
                if PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
                    cls.reason = "this build of onnxruntime has no CUDA"
                elif not _has_nvidia_driver():
                    cls.reason = "this machine has no NVIDIA driver"
                if cls.reason:  # the usual case on a machine without a GPU, so not a warning
                    logger.debug("onnxruntime computes on the CPU: %s", cls.reason)
            return cls.reason

    @classmethod
    def give_up(cls, reason: str) -> None:
        """Notes that CUDA does not work although there is a driver, and warns of it once."""
        with cls.lock:
            if cls.reason is None:
                cls.reason = reason
                logger.warning("onnxruntime computes on the CPU, since it cannot use CUDA: %s", reason)


def _has_nvidia_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _open_on_gpu(
    model: str | bytes, threads: int, kind: str, index: int
) -> tuple[onnxruntime.InferenceSession | None, str]:
    """Opens a session on a GPU; returns it, or None and the reason.

    onnxruntime only logs that a provider cannot be loaded, and goes on with the next one: so its providers are checked.
    """
    provider = PROVIDERS[kind]
    if provider not in (known := onnxruntime.get_available_providers()):
        return (
            None,
            f"this build has no {provider}, but {', '.join(known)}: install onnxruntime-gpu instead of onnxruntime",
        )
    _preload_cuda()
    # Without TF32, as on a CPU; and by a rule, not by timing, which may choose other algorithms in each process.
    cuda = (PROVIDERS["cuda"], {"device_id": index, "use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"})
    chosen = [cuda] if kind == "cuda" else [(provider, {"device_id": index}), cuda]
    libraries = "CUDA, cuDNN" + ", TensorRT" * (kind == "tensorrt")
    problem = (
        f"its {provider} was not loaded, since a library ({libraries}) is missing, or GPU {index} does not exist or is "
        "not supported: see https://onnxruntime.ai/docs/execution-providers"
    )
    onnxruntime.set_default_logger_severity(4)
    try:
        session = _open(model, threads, [*chosen, CPU_PROVIDER])
    except _LOAD_ERRORS:
        # A file that cannot be read raises here, too: then the CPU raises the same error, with its reason.
        _open(model, threads, [CPU_PROVIDER])
        return None, problem
    except RuntimeError:  # of TensorRT, whose libraries are missing
        return None, problem
    finally:
        onnxruntime.set_default_logger_severity(2)  # the default of onnxruntime
    return (session, "") if provider_of(session) == provider else (None, problem)


@cache
def _preload_cuda() -> None:
    """Loads the CUDA libraries of the nvidia packages, which PyTorch installs; what is missing is not reported here."""
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


def _open(
    model: str | bytes, threads: int, providers: Sequence[Any], weights: Mapping[str, bytes] | None = None
) -> onnxruntime.InferenceSession:
    """Opens a session; `weights` are the files that a serialized model reads its weights from."""
    _share_arena()
    options = onnxruntime.SessionOptions()
    if weights:
        sizes = [len(content) for content in weights.values()]
        options.add_external_initializers_from_files_in_memory(list(weights), list(weights.values()), sizes)
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # errors are raised, not logged
    # Without its own fallback, which prints, and replaces a GPU by the CPU without an error.
    return onnxruntime.InferenceSession(model, options, providers=list(providers), enable_fallback=0)


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
    if "escapes" in reason or "Absolute path" in reason:
        if weights.is_symlink():
            return ValueError(
                f"{weights} is a link to another folder, which onnxruntime does not follow: copy the file here"
            )
        return ValueError(f"{path} reads a file outside of its folder, and is not opened: {_AGAIN}")
    return ValueError(f"{weights} is truncated, or not the file that {path.name} was exported with: {_AGAIN}")


def _metadata(session: onnxruntime.InferenceSession, path: Path) -> dict[str, Any]:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA)
    try:
        metadata: dict[str, Any] = json.loads(text or "")
        version = int(metadata["format"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(
            f"{path} was not exported by sparsegen: its metadata has no JSON with a format under {METADATA!r}"
        ) from None
    if version > FORMAT:
        raise ValueError(
            f"{path} has format {version}, and this sparsegen reads up to format {FORMAT}: upgrade sparsegen"
        )
    return metadata


def _check_metadata(metadata: dict[str, Any], session: onnxruntime.InferenceSession) -> None:
    """Checks the metadata, which may be of anyone, and that the inputs and outputs are those that it describes.

    Raises:
        KeyError, TypeError, ValueError: With the entry and its value.
    """
    for name in ("name", "regularizer"):
        check_text(name, metadata[name])
    if metadata["license"] is not None:
        check_license(metadata["license"])
    if metadata["graph"] not in GRAPHS:
        raise ValueError(f"graph must be one of {', '.join(GRAPHS)}; got {metadata['graph']!r:.80}")
    weights = metadata["weights"]
    if weights is not None and not (isinstance(weights, str) and re.fullmatch("[0-9a-f]{64}", weights)):
        raise ValueError(f"weights must be a SHA-256 or null; got {weights!r:.80}")
    size = check_integer("image_size", metadata.get("image_size", 32), 1, LARGEST, "the side of the images")
    z_dim = check_integer("z_dim", metadata["z_dim"], 1, LARGEST, "the entries of z")
    classes = check_integer("classes", metadata.get("classes", 0), 0, LARGEST, "the number of labels")
    names = metadata.get("class_names", [])
    check_class_names(names)
    if len(names) > classes:
        raise ValueError(f"class_names must name at most the {classes} classes; got {len(names)}")
    shapes = metadata["code_shapes"]
    for channels, height, width in shapes:
        for side in (channels, height, width):
            check_integer("an entry of code_shapes", side, 1, LARGEST, "a side of a code")
    k_ranges = [KRange(**k_range) for k_range in metadata["dials"]]
    for k_range in k_ranges:
        check_integer("level", k_range.level, 1, len(shapes), "a level of the codes")
        if k_range.unit not in UNITS:
            raise ValueError(f"unit must be one of {', '.join(UNITS)}; got {k_range.unit!r:.80}")
        check_integer("limit", k_range.limit, 1, LARGEST**3, "the largest k")
        check_integer("k", k_range.k, 1, k_range.limit, "the k of training")
    levels = range(1, len(shapes) + 1)
    inputs: dict[str, list[int]]
    outputs: dict[str, list[int]]
    if metadata["graph"] == "synthesis":
        inputs, outputs = {"code_1": shapes[0]}, {"image": [3, size, size]}
    elif metadata["graph"] == "encoding":
        level = max((k_range.level for k_range in k_ranges), default=1)
        inputs = {"candidate": shapes[level - 1], "target": [3, size, size], "known": [1, size, size]}
        inputs |= {f"k_{k_range.level}": [] for k_range in k_ranges}
        outputs = {"image": [3, size, size], "loss": [], "gradient": shapes[level - 1]}
        outputs |= {f"code_{each}": shapes[each - 1] for each in range(1, level + 1)}
    else:
        inputs = {"z": [z_dim], **{f"k_{k_range.level}": [] for k_range in k_ranges}}
        inputs |= {"labels": []} if classes else {}
        outputs = {"image": [3, size, size], **{f"code_{level}": shapes[level - 1] for level in levels}}
    for expected, found in ((inputs, session.get_inputs()), (outputs, session.get_outputs())):
        sides = {each.name: each.shape[1:] for each in found}
        if missing := expected.keys() - sides.keys():
            raise ValueError(f"the graph has no {', '.join(sorted(missing))}")
        for name, shape in expected.items():
            fixed = [side if isinstance(side, int) else None for side in sides[name]]
            if len(fixed) != len(shape) or any(a not in (None, b) for a, b in zip(fixed, shape, strict=True)):
                raise ValueError(f"the graph has {name} of the shape {sides[name]}, and the metadata {shape}")
    if unknown := {each.name for each in session.get_inputs()} - inputs.keys():
        raise ValueError(f"the graph needs {', '.join(sorted(unknown))}, too")


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

"""The generator of all architectures: a coder, followed by dictionaries that act on its sparse codes."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sparsegen.common.checks import check_integer
from sparsegen.common.devices import batch_size, full_precision, in_batches
from sparsegen.common.files import write_json
from sparsegen.pictures import images
from sparsegen.zoo import noise
from sparsegen.zoo.blocks import Stage, weight_of
from sparsegen.zoo.bundled import CONFIG, WEIGHTS
from sparsegen.zoo.config import FORMAT, check_license
from sparsegen.zoo.encoding import encode
from sparsegen.zoo.fitting import ITERATIONS, Encoding
from sparsegen.zoo.k_range import KRange, is_per_image, resolve, resolve_per_image
from sparsegen.zoo.projections import Projection
from sparsegen.zoo.publishing import PushOptions, publish
from sparsegen.zoo.weights import digest, plain_state, save_weights

if TYPE_CHECKING:
    from sparsegen.zoo.spec import ModelSpec


class Generator(nn.Module):
    """Maps noise to a sparse code and multiplies it by convolutional dictionaries (eq. 2, App. D).

        z, y -> coder -> Γ_L -> D_L -> … -> Γ1 -> D1 -> image

    Every regularized Γ is projected; the other Γ pass through an identity.

    Args:
        coder: G^S, from (z, y) to Γ_L before its projection, and to the bypass, which a residual generator adds to
            D_L Γ_L; None in other generators. Its attribute `bypasses` says whether there is one.
        stages: `stages[i]` is D_{i+1} with its norm and activation: `stages[0]` returns the image, `stages[1]` Γ1.
        projections: `projections[i]` is applied to Γ_{i+1}.
        code_shapes: (C, H, W) of each Γ, Γ1 first.
        z_dim: Entries of z.
        classes: Number of labels; 0 if the generator is unconditional.

    Attributes:
        config: The config.json of the checkpoint; empty for a new generator.
    """

    def __init__(
        self,
        coder: nn.Module,
        stages: Sequence[Stage],
        projections: Sequence[nn.Module],
        code_shapes: Sequence[tuple[int, int, int]],
        z_dim: int,
        classes: int = 0,
    ):
        super().__init__()
        self.coder = coder
        self.stages = nn.ModuleList(stages)
        self.projections = nn.ModuleList(projections)
        self.code_shapes = tuple(code_shapes)
        self.z_dim, self.classes = z_dim, classes
        self.config: dict[str, Any] = {}
        self._digest: str | None = None
        self._names: frozenset[str] | None = None  # of the weights
        self._spec: ModelSpec | None = None

    @property
    def spec(self) -> "ModelSpec":
        """The specification of the model, with the current k. Raises: RuntimeError if it was not built from one."""
        if self._spec is None:
            raise RuntimeError("this generator has no spec: build it with sparsegen.create_model")
        return replace(self._spec, k=tuple(k_range.k for k_range in self.k_ranges))

    @spec.setter
    def spec(self, spec: "ModelSpec") -> None:
        self._spec, self._names = spec, frozenset(self.state_dict())

    def note_checkpoint(self, config: dict[str, Any]) -> None:
        """Notes that the weights are those of the checkpoint with this config.json."""
        self.config, self._digest = config, digest(self)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def image_size(self) -> int:
        """Side of the square images in pixels."""
        conv = self.stages[0].conv
        return self.code_shapes[0][1] * (conv.stride[0] if isinstance(conv, nn.ConvTranspose2d) else 1)

    @property
    def image_bytes(self) -> int:
        """Estimated peak memory of one image in a batch, without the weights.

        Choice: 64 bytes per entry of all codes, for the code, the keys of its projection and the layers around it.
        """
        return 64 * sum(math.prod(shape) for shape in self.code_shapes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels; empty if the config has none."""
        return tuple(self.config.get("class_names", ()))

    __call__: Callable[..., tuple[Tensor, tuple[Tensor, ...]]]  # for type checkers: of torch it returns Any

    def forward(
        self, z: Tensor, labels: Tensor | None = None, k: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Makes images and returns them with their codes, Γ1 first, in the dtype of the weights.

        Args:
            k: The k of each image and projected level, Γ1 first; None: the k of the projections for all images.

        Shape: z (B, z_dim), labels int (B,), k int (B, levels) -> image (B, 3, H, W) in [-1, 1];
        codes[i] (B, C, H', W').

        Raises:
            TypeError: If z, labels or k are not tensors.
            ValueError: On another shape, and if labels are missing, out of range, or given to an
                unconditional generator; on a k out of range, see `Projection`.
        """
        code, bypass = self.begin(z, labels)
        each, codes = self._k_by_level(k, z.shape[0]), []
        for level in range(len(self.stages), 0, -1):
            project = self.projections[level - 1]
            codes.append(project(code, each[level]) if level in each else project(code))
            code, bypass = self.stages[level - 1](codes[-1], bypass), None
        return code, tuple(reversed(codes))

    def _k_by_level(self, k: Tensor | None, count: int) -> dict[int, Tensor]:
        """Splits the k of each image by level.

        Raises:
            TypeError, ValueError: As `forward`.
        """
        if k is None:
            return {}
        if not isinstance(k, Tensor):
            raise TypeError(f"k must be a tensor of integers (B, levels); got {type(k).__name__}")
        k_ranges = self.k_ranges
        if k.device.type == "cpu" and not _is_traced(k):
            resolve_per_image(k.numpy(), k_ranges, count)
        elif k.shape != (count, len(k_ranges)):
            raise ValueError(f"k must have the shape ({count}, {len(k_ranges)}); got {tuple(k.shape)}")
        return dict(zip([k_range.level for k_range in k_ranges], k.unbind(1), strict=True))

    def bypass(self, z: Tensor, labels: Tensor | None = None) -> Tensor | None:
        """Returns the bypass of this noise, which `synthesize` adds to D_L Γ_L when Γ_L was edited.

        Shape: as Γ_{L-1} before its norm, (B, C, H', W'); None if the generator is not residual.
        """
        return self.begin(z, labels)[1]

    def begin(self, z: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Makes Γ_L before its projection, and the bypass.

        Raises:
            TypeError, ValueError: As `forward`.
        """
        z = self._real("z", z)
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z must have the shape (B, {self.z_dim}); got {tuple(z.shape)}")
        self._check_labels(labels, z.shape[0])
        begun: tuple[Tensor, Tensor | None] = self.coder(z, None if labels is None else labels.long())
        return begun

    def _real(self, name: str, values: object) -> Tensor:
        """Converts a tensor to the dtype of the generator.

        Raises:
            TypeError: If it is not a tensor, or complex or boolean.
        """
        if not isinstance(values, Tensor):
            raise TypeError(
                f"{name} must be a tensor, e.g. torch.from_numpy({name}); got {type(values).__name__}"
            )
        if values.is_complex() or values.dtype == torch.bool:
            raise TypeError(f"{name} must be a tensor of real numbers, e.g. {self.dtype}; got {values.dtype}")
        return values.to(self.dtype)

    def _check_labels(self, labels: Tensor | None, count: int) -> None:
        noise.check_conditional(labels is not None, self.classes, self.class_names)
        if labels is None:
            return
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels must be a tensor of integers ({count},); got {type(labels).__name__}")
        if labels.shape != (count,) or labels.dtype == torch.bool or labels.dtype.is_floating_point:
            raise ValueError(
                f"labels must be integers, one for each of the {count} z; got {labels.dtype} {tuple(labels.shape)}"
            )
        if labels.device.type == "cpu" and not _is_traced(
            labels
        ):  # on another device, reading them would synchronize
            noise.check_labels(labels.tolist(), count, self.classes, self.class_names)

    def synthesize(self, codes: Tensor | Sequence[Tensor | None], bypass: Tensor | None = None) -> Tensor:
        """Returns the image of a (possibly edited) code. The given code is not projected.

        Args:
            codes: Γ1; or (Γ1, Γ2, …), of which the first that is not None is used: to start from an edited Γ2,
                pass (None, Γ2). The codes computed from it are projected as in `forward`.
            bypass: See `bypass`; only for a residual generator and a given Γ_L. None adds nothing.

        Shape: Γ1 (B, C, H', W') -> image (B, 3, H, W) in [-1, 1].

        Raises:
            TypeError, ValueError: If there is no code, on another type or shape, and on a bypass that this
                code does not have.
        """
        if not isinstance(codes, Tensor | Sequence):
            raise TypeError(
                f"codes must be a tensor, Γ1, or a sequence (Γ1, Γ2, …); got {type(codes).__name__}"
            )
        codes = [codes] if isinstance(codes, Tensor) else list(codes)
        level = next((level for level, code in enumerate(codes, 1) if code is not None), None)
        if level is None or level > len(self.stages):
            found = "none" if level is None else f"the first as Γ{level}"
            raise ValueError(f"codes must hold one of Γ1 to Γ{len(self.stages)}, a tensor; got {found}")
        code = self._real(f"Γ{level}", codes[level - 1])
        if code.ndim != 4 or tuple(code.shape[1:]) != self.code_shapes[level - 1]:
            expected = ", ".join(map(str, self.code_shapes[level - 1]))
            raise ValueError(f"Γ{level} must have the shape (B, {expected}); got {tuple(code.shape)}")
        if bypass is not None:
            if not self.coder.bypasses:
                raise ValueError(
                    f"{self.spec.architecture} is not residual and has no bypass: omit the bypass"
                )
            if level < len(self.stages):
                raise ValueError(f"the bypass belongs to Γ{len(self.stages)}: omit it if Γ{level} is given")
            bypass, around = self._real("bypass", bypass), (len(code), *self.code_shapes[level - 2])
            if tuple(bypass.shape) != around:
                raise ValueError(
                    f"the bypass of this Γ{level} must have the shape {around}; got {tuple(bypass.shape)}"
                )
        image: Tensor = self.stages[level - 1](code, bypass)
        for index in range(level - 2, -1, -1):
            image = self.stages[index](self.projections[index](image))
        return image

    @torch.no_grad()
    def sample(
        self,
        count: int,
        seed: int = 0,
        k: int | Sequence[int] | NDArray[np.integer[Any]] | None = None,
        labels: int | str | Sequence[int | str] | None = None,
        truncation: float | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> NDArray[np.uint8]:
        """Draws `count` images of a seed; image i does not depend on the count.

        Samples in eval mode and does not change mode or k: several threads may sample at once.

        Args:
            count: 1 to 100,000.
            seed: 0 to 2⁶⁴ - 1.
            k: Non-zeros kept in these images: one number for all projected levels, or one per level, Γ1
                first; or an integer array (count, levels), one per image and projected level (a list of lists is not
                accepted); None: the current k.
            labels: For a conditional generator, one class for all images or one per image, as numbers or names; None:
                drawn from the seed.
            truncation: Bound of the truncated normal distribution of z; None: no bound.
            progress: Called with the number of images done, after each batch: 64 on a CPU, on an accelerator up to
                2048, by its free memory.

        Shape: uint8 (count, H, W, 3).

        Raises:
            TypeError, ValueError: On a value out of range.
            FloatingPointError: If the images hold NaN.
            RuntimeError: If the device has too little memory.
        """
        drawn = noise.labels(count, self.classes, seed, labels, self.class_names)
        each = resolve_per_image(k, self.k_ranges, count) if is_per_image(k) else None
        network, parts, done = self.view(None if each is not None else k), [], 0

        def part_of(rows: NDArray[Any] | None, first: int, stop: int) -> Tensor | None:
            return None if rows is None else torch.from_numpy(rows[first:stop]).to(self.device)

        def draw(first: int, stop: int) -> NDArray[np.uint8]:
            z = torch.from_numpy(noise.z(stop - first, self.z_dim, seed, first, truncation)).to(self.device)
            image, _ = network(z, part_of(drawn, first, stop), part_of(each, first, stop))
            return images.to_uint8(image.float().cpu().numpy())

        with full_precision(self.device):
            for part in in_batches(count, batch_size(self.device, self.image_bytes), draw):
                parts.append(part)
                done += len(part)
                if progress:
                    progress(done)
        return np.concatenate(parts)

    def encode(
        self,
        images: NDArray[np.uint8],
        k: int | Sequence[int] | None = None,
        level: int | None = None,
        iterations: int = ITERATIONS,
        mask: NDArray[np.bool_] | None = None,
        find_z: bool = False,
        labels: int | str | Sequence[int | str] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Encoding[Tensor]:
        """Finds the sparse codes of images, so that `synthesize` gives the images again.

            encoding = generator.encode(generator.sample(4), k=16)
            encoding.codes[0], encoding.reconstruction, encoding.psnr

        Runs in eval mode and does not change mode or k. Deterministic; the codes of an image do not depend on the
        others, up to rounding.

        Args:
            images: As `sample` returns them.
            k: As in `sample`.
            level: The code that is searched, counted from the image; the codes below it are computed from it. None:
                the highest projected one, 1 if none is.
            iterations: Steps of the search, 1 to 100,000.
            mask: True where a pixel is known; the others are free, so the reconstruction fills them. None: all.
            find_z: Also search z by the same descent, from the z of seed 0; as many steps.
            labels: Classes for `find_z`, as in `sample`; needed by a conditional generator.
            progress: Called with the number of images done, after each batch.

        Shape: images uint8 (B, H, W, 3), mask bool (H, W) or (B, H, W); see `Encoding`.

        Raises:
            TypeError, ValueError: On a value out of range or another shape.
            FloatingPointError: If the images of the codes hold NaN.
            RuntimeError: If the device has too little memory.
        """
        return encode(self, images, k, level, iterations, mask, find_z, labels, progress)

    def view(self, k: int | Sequence[int] | NDArray[np.integer[Any]] | None = None) -> "Generator":
        """Returns a generator that shares these weights, in eval mode, with its own k and mode.

        Raises:
            TypeError, ValueError: If k does not fit this generator's projections.
        """
        shared = {id(tensor): tensor for tensor in [*self.parameters(), *self.buffers()]}
        other = copy.deepcopy(self, shared).eval()
        other.set_k(k)
        return other

    @property
    def k_ranges(self) -> list[KRange]:
        """Level, unit, current k and largest k of each projected level, Γ1 first."""
        return [
            KRange(level, projection.unit, projection.k, projection.limit((1, *self.code_shapes[level - 1])))
            for level, projection in self._projected_levels
        ]

    @property
    def _projected_levels(self) -> list[tuple[int, Projection]]:
        levels = enumerate(self.projections, 1)
        return [(level, projection) for level, projection in levels if isinstance(projection, Projection)]

    def set_k(self, k: int | Sequence[int] | NDArray[np.integer[Any]] | None) -> None:
        """Sets k; None does not change it.

        Raises:
            TypeError, ValueError: If k does not fit this generator's projections.
        """
        for (_, projection), value in zip(self._projected_levels, resolve(k, self.k_ranges), strict=True):
            projection.k = value

    @contextmanager
    def use_k(self, k: int | Sequence[int] | None) -> Iterator[None]:
        """Sets k within a `with` block, for all threads; see `view` for one thread."""
        before = [k_range.k for k_range in self.k_ranges] or None
        self.set_k(k)
        try:
            yield
        finally:
            self.set_k(before)

    def save_pretrained(
        self,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        training: dict[str, Any] | None = None,
        evaluation: dict[str, Any] | None = None,
    ) -> Path:
        """Writes config.json and generator.safetensors, each atomically, the weights first; returns the folder.

        Args:
            dtype: Floating-point type of the stored weights. They are loaded as float32.
            training, evaluation: As in `make_config`.

        Raises:
            TypeError: Unless `dtype` is a floating-point type.
            ValueError: If parts were replaced or wrapped, except by `torch.compile` or `DistributedDataParallel`.
            OSError: If the folder cannot be written.
        """
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point type, e.g. torch.float16; got {dtype}")
        names = plain_state(self).keys()
        if self._names and names != self._names:
            changed = ", ".join(sorted(names ^ self._names)[:3])
            raise ValueError(
                f"parts of this generator were replaced or wrapped, and the result cannot be opened again: undo it "
                f"before you save; changed weights: {changed}"
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self, folder / WEIGHTS, dtype)
        write_json(folder / CONFIG, self.make_config(training, evaluation))
        return folder

    def make_config(
        self, training: dict[str, Any] | None = None, evaluation: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Makes the config.json of a checkpoint.

        Args:
            training, evaluation: Entries about how the weights were trained and measured. If both are None, those of
                the opened checkpoint; its evaluation is dropped if the weights or k have changed.

        Raises:
            TypeError, ValueError: If the license is not a text of one line.
        """
        spec, about = self.spec, {"training": training, "evaluation": evaluation}
        k = list(spec.k or ())
        if training is evaluation is None:
            about = {name: self.config.get(name) for name in about}
            edited = self._digest is not None and digest(self) != self._digest
            if edited or self.config.get("k", k) != k:
                about["evaluation"] = None
            if edited and about["training"]:
                about["training"] = {**about["training"], "edited": True}
        return {
            "format": FORMAT,
            "model": spec.name,
            "architecture": spec.architecture,
            "regularizer": spec.regularizer,
            "recipe": spec.recipe,
            "atoms": spec.atoms,
            "k": k,
            "image_size": spec.image_size,
            "classes": spec.labels,
            **({"license": check_license(self.config["license"])} if "license" in self.config else {}),
            **({"class_names": list(self.class_names)} if self.class_names else {}),
            **{name: entry for name, entry in about.items() if entry is not None},
        }

    def push_to_hub(self, repo_id: str, **options: Unpack[PushOptions]) -> str:
        """Pushes the generator to the Hugging Face Hub, as one commit: weights, config, ONNX files, and a card with
        pictures. Files of an earlier push are replaced; your own text in the card is kept.

            generator.push_to_hub("me/my-dcgan", private=True, license="mit")

        Args:
            repo_id: owner/name, or a name in your own namespace.
            options: See `PushOptions` and `Upload`: private, revision, token, create_pr, commit_message, license,
                dtype, onnx.

        Returns: The URL of its page, or of the pull request.

        Raises:
            TypeError, ValueError, ImportError, ConnectionError: As `zoo.publishing.publish`.
        """
        return publish(self, repo_id, **options)

    def dictionary(self, level: int = 1) -> Tensor:
        """Returns the atoms of D_level, after spectral normalization if there is one: the image (or the change of
        Γ_{level-1} before norm and ReLU) that one entry of value 1 adds.

        Shape: (atoms, C, h, w), C being 3 at level 1 and the atoms of the dictionary below at level 2.
        """
        check_integer("level", level, 1, len(self.stages), "the dictionary counted from the image")
        conv = self.stages[level - 1].conv
        weight = weight_of(conv).detach()
        if isinstance(conv, nn.ConvTranspose2d):
            return weight.clone()
        # A convolution correlates: the response to a unit impulse is the filter rotated by 180 degrees.
        return weight.transpose(0, 1).flip(2, 3).clone()

    def effective_dictionary(self) -> Tensor:
        """Returns the atoms of D_eff = D1 D2 … D_L (App. E): the image that one entry of Γ_L adds, without the norms
        and ReLUs between the dictionaries.

        Shape: (atoms, 3, h, w); 8 x 8 pixels for DCGAN.
        """
        atoms = self.dictionary(len(self.stages))
        for level in range(len(self.stages) - 1, 0, -1):
            stage: Any = self.stages[level - 1]
            atoms = F.conv_transpose2d(atoms, self.dictionary(level), stride=stage.conv.stride)
        return atoms


def _is_traced(values: Tensor) -> bool:
    """Returns whether the entries of a tensor cannot be read, e.g. in torch.export or vmap."""
    return (
        torch.compiler.is_compiling()
        or torch.onnx.is_in_onnx_export()
        or torch._C._functorch.is_functorch_wrapped_tensor(values)
    )

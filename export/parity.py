"""Compares an exported file, run in onnxruntime or as a program, with the generator in torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx  # noqa: TID253 (nothing here works without it)
import onnx.inliner  # noqa: TID253
import torch
from torch import Tensor, nn

from sparsegen.export.functions import DOMAIN, IR_VERSION, OPSET, PLAIN
from sparsegen.export.runtime import OnnxSampler, open_graph, open_session
from sparsegen.zoo import noise
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.projections import Projection

TOLERANCE = 1e-5
BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class ParityReport:
    """The measured agreement of an exported file with torch.

    If the k-th and the next magnitude are equal up to rounding, torch and the file may keep different entries, and
    both are right. Such swaps are counted; any other difference of the selections is an error.

    Attributes:
        path: The file.
        max_difference: Largest |torch - file| of images in [-1, 1], and of codes in units of their
            largest magnitude, over the samples in which both kept the same entries.
        samples, same: Number of samples compared, and of those in which both kept the same entries.
        units, swapped: Number of needles (or whole codes) compared, and of those in which both kept different entries.
        k: The values of k compared, Γ1 first.
        batches: The batch sizes compared.
        rounded: Number of weights that were rounded to float16; 0 if the file has the weights of the generator.
    """

    path: Path
    max_difference: float
    samples: int
    same: int
    units: int
    swapped: int
    k: tuple[tuple[int, ...], ...]
    batches: tuple[int, ...]
    rounded: int = 0


Run = Callable[..., tuple[np.ndarray, tuple[np.ndarray, ...]]]  # of z, k and labels, as `OnnxSampler.run`


def verify(generator: Generator, file: Path, path: Path) -> ParityReport:
    """Compares an exported file, run in onnxruntime, with the torch generator it was made from.

    Three conditions must hold:
    1. Each projection alone returns the same bits as torch, on codes with many ties.
    2. Each part between two codes, applied to the code that onnxruntime computed, agrees with torch to `TOLERANCE`, and
       each selection is right for the code that torch selects from.
    3. From z to the image, everything agrees to `TOLERANCE` in every sample in which both kept the same entries.
    4. With a k per image, each image and its codes are the same bits as with that k for all images.

    Args:
        file: The present path of the file.
        path: The path that the verified file will be moved to; recorded in the report.

    Raises:
        RuntimeError: If one of them does not hold.
    """
    _verify_functions(generator, onnx.load(file, load_external_data=False))
    return compare(generator, OnnxSampler(file, device="cpu").run, path)


def compare(generator: Generator, run: Run, path: Path) -> ParityReport:
    """Checks the conditions 2 to 4 of `verify`.

    Args:
        run: Runs the file.
        path: As in `verify`.

    Raises:
        RuntimeError: If one of them does not hold.
    """
    least, most = [1] * len(generator.k_ranges), [k_range.limit for k_range in generator.k_ranges]
    mixed = [(1, k_range.limit)[index % 2] for index, k_range in enumerate(generator.k_ranges)]
    settings = sorted({tuple(k) for k in (least, [k_range.k for k_range in generator.k_ranges], most, mixed)})
    first, parts, wholes = 0, [], []
    for k in settings:
        for batch in BATCHES:
            z = noise.z(batch, generator.z_dim, seed=0, first=first)
            labels = noise.labels(batch, generator.classes, names=generator.class_names, first=first)
            first += batch
            image_array, code_arrays = run(z, k or None, labels=labels)
            image, codes = torch.from_numpy(image_array), [torch.from_numpy(code) for code in code_arrays]
            given = [torch.from_numpy(array) for array in (z, labels) if array is not None]
            with torch.no_grad(), generator.use_k(k or None):
                parts += _compare_parts(generator, given, image, codes)
                wholes.append(_compare_whole(generator, given, image, codes))
    if generator.k_ranges:
        _verify_k_per_image(generator, run, settings)
    (differences, same), (units, swapped) = zip(*wholes, strict=True), zip(*parts, strict=True)
    return ParityReport(
        path, max(differences), first, sum(same), sum(units), sum(swapped), tuple(settings), BATCHES
    )


def _verify_k_per_image(generator: Generator, run: Run, settings: list[tuple[int, ...]]) -> None:
    """Compares the images of a batch in which each has its own k with those of batches with one k.

    Raises:
        RuntimeError: If they are not the same bits.
    """
    z = noise.z(len(settings), generator.z_dim, seed=0)
    labels = noise.labels(len(settings), generator.classes, names=generator.class_names)
    image, codes = run(z, np.array(settings), labels=labels)
    for index, k in enumerate(settings):
        wanted, wanted_codes = run(z, k, labels=labels)
        for got, one_k in zip((image, *codes), (wanted, *wanted_codes), strict=True):
            if got[index].tobytes() != one_k[index].tobytes():
                raise RuntimeError(
                    f"the exported graph makes another image with k={k} for this image than with k={k} for all "
                    "images: the wrong file was deleted"
                )


def verify_synthesis(generator: Generator, file: Path) -> None:
    """Compares an exported synthesis graph with torch: images, and atoms in units of the largest, to TOLERANCE.

    Raises:
        RuntimeError: If they differ.
    """
    session, _ = open_graph(file)
    shape = (3, *generator.code_shapes[0])
    code = np.random.default_rng(0).standard_normal(shape, np.float32)
    image, dictionary = session.run(["image", "dictionary"], {"code_1": code})
    with torch.no_grad():
        wanted = generator.synthesize(torch.from_numpy(code)).numpy()
    _require_close(np.abs(image - wanted).max(), "the synthesis graph")
    atoms = generator.dictionary()  # under spectral norm a quotient, so rounding may differ
    _require_close(((torch.from_numpy(dictionary) - atoms).abs().max() / _scale(atoms)).item(), "the atoms")


def verify_encoding(generator: Generator, file: Path) -> None:
    """Compares an exported encoding graph with torch: codes, images and errors, and the gradient with autograd, each
    in units of its largest entry, to TOLERANCE.

    The gradient is that through the entries that onnxruntime kept, which may be others of equal magnitude.

    Raises:
        RuntimeError: If they differ.
    """
    session, _ = open_graph(file)
    random, count, size = np.random.default_rng(0), 3, generator.image_size
    level = sum(each.name.startswith("code_") for each in session.get_outputs())
    candidate = random.standard_normal((count, *generator.code_shapes[level - 1]), np.float32)
    target = random.uniform(-1, 1, (count, 3, size, size)).astype(np.float32)
    known = (random.random((count, 1, size, size)) < 0.7).astype(np.float32)
    given = {"candidate": candidate, "target": target, "known": known}
    given |= {f"k_{k_range.level}": np.array(k_range.k, np.int64) for k_range in generator.k_ranges}
    names = [each.name for each in session.get_outputs()]
    found = {name: torch.from_numpy(each) for name, each in zip(names, session.run(None, given), strict=True)}
    code = found[f"code_{level}"].requires_grad_()
    with torch.no_grad():
        made = torch.from_numpy(candidate).relu()
        compare_selection(generator.projections[level - 1], made, code.detach(), level)
    image = code
    for index in range(level, 0, -1):
        image = generator.stages[index - 1](image, None)
        if index > 1:
            kept = found[f"code_{index - 1}"]
            compare_selection(generator.projections[index - 2], image.detach(), kept, index - 1)
            image = image * (kept != 0)
    loss = (torch.from_numpy(known) * (image - torch.from_numpy(target))).square().sum((1, 2, 3))
    (gradient,) = torch.autograd.grad(loss.sum(), code)
    for name, wanted in (("image", image), ("loss", loss), ("gradient", gradient)):
        difference = (found[name] - wanted.detach()).abs().max() / _scale(wanted.detach())
        _require_close(difference.item(), f"the {name} of the encoding graph")


def _verify_functions(generator: Generator, model: onnx.ModelProto) -> None:
    """Checks the function of each kind of projection; in a plain file, which has none, the inlined one."""
    functions = {function.name: function for function in model.functions}
    for name in {type(projection).__name__ for projection in generator.projections} & PLAIN.keys():
        function = functions.get(name) or onnx.parser.parse_function(PLAIN[name])
        _verify_function(generator, function, plain=name not in functions)


def _verify_function(generator: Generator, function: onnx.FunctionProto, plain: bool) -> None:
    """Runs a model of one projection on codes with many ties, and compares the bits with those of torch.

    Raises:
        RuntimeError: If they differ.
    """
    model = _one_node(function)
    model = onnx.inliner.inline_local_functions(model) if plain else model
    session = open_session(model.SerializeToString())
    random = np.random.default_rng(0)
    for k_range in generator.k_ranges:
        projection = generator.projections[k_range.level - 1]
        if not isinstance(projection, Projection) or type(projection).__name__ != function.name:
            continue
        shape = (2, *generator.code_shapes[k_range.level - 1])
        codes = [
            random.integers(-2, 3, shape).astype(np.float32),
            np.maximum(random.standard_normal(shape, np.float32), 0),
            np.full(shape, -1, np.float32),
        ]
        two = min(2, k_range.limit)
        for k in ([1, 1], [two, two], [1, k_range.limit], [k_range.k, two], [k_range.limit] * 2):
            given = torch.tensor(k)
            for code in codes:
                wanted = projection(torch.from_numpy(code), given).numpy().tobytes()
                fed = given.numpy() if k[0] != k[1] else np.array(k[0])
                (got,) = session.run(None, {"code": code, "k": fed})
                if got.tobytes() != wanted:
                    raise RuntimeError(
                        f"the exported {function.name} keeps other entries than torch, at k={k} in a code "
                        f"of shape {shape}: the wrong file was deleted"
                    )


def _one_node(function: onnx.FunctionProto) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f"""
        <ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}, "{DOMAIN}" : 1]>
        projection (float[B, C, H, W] code, int64 k) => (float[B, C, H, W] y) {{
            y = {DOMAIN}.{function.name} (code, k)
        }}
    """)
    model.functions.append(function)
    return model


def _compare_parts(
    generator: Generator, given: list[Tensor], image: Tensor, codes: list[Tensor]
) -> list[tuple[int, int]]:
    """Compares part by part, each applied to the code that onnxruntime computed.

    Args:
        given: z, and the labels of a conditional generator.

    Returns: The result of `compare_selection` for each level.
    """
    counts, (made, bypass) = [], generator.begin(*given)
    for level in range(len(codes), 0, -1):
        counts.append(compare_selection(generator.projections[level - 1], made, codes[level - 1], level))
        made, bypass = generator.stages[level - 1](codes[level - 1], bypass), None
    _require_close((image - made).abs().max().item(), "the image of one Γ1")
    return counts


def _compare_whole(
    generator: Generator, given: list[Tensor], image: Tensor, codes: list[Tensor]
) -> tuple[float, int]:
    """Compares from z to the image, in the samples in which both kept the same entries.

    Returns: The largest difference, and the number of these samples.
    """
    wanted_image, wanted_codes = generator(*given)
    differences = [(image - wanted_image).abs().flatten(1).amax(1)]  # (B,)
    same = torch.ones(len(image), dtype=torch.bool)
    for code, wanted in zip(codes, wanted_codes, strict=True):
        difference = (code - wanted).abs() / _scale(wanted)
        differences.append(difference.flatten(1).amax(1))
        same &= ~((difference > TOLERANCE) & ((code == 0) != (wanted == 0))).flatten(1).any(1)
    largest = torch.stack(differences)[:, same].max().item() if same.any() else 0.0
    _require_close(largest, "image and codes")
    return largest, int(same.sum())


def compare_selection(projection: nn.Module, code: Tensor, got: Tensor, level: int) -> tuple[int, int]:
    """Checks the Γ of onnxruntime against the code that torch projects.

    Returns: The number of units compared, and of those in which other entries of equal magnitude were kept.

    Raises:
        RuntimeError: If the selection is wrong.
    """
    if not isinstance(projection, Projection):
        _require_close(((got - code).abs().max() / _scale(code)).item(), f"Γ{level}")
        return 0, 0
    wanted, slack = projection(code), TOLERANCE * _scale(code)
    if projection.unit == "code":
        code, wanted, got = code.flatten(1), wanted.flatten(1), got.flatten(1)
    border = torch.where(wanted == 0, torch.inf, wanted.abs()).amin(1, keepdim=True)  # the smallest kept
    differs = ~((got - wanted).abs() <= slack)  # NaN differs
    added, dropped = differs & (wanted == 0), differs & (got == 0)
    at_border = (code.abs() - border).abs() <= slack
    right = at_border & (dropped | (added & ((got - code).abs() <= slack)))
    as_many = added.sum(1) == dropped.sum(1)
    if (differs & ~right).any() or not as_many.all() or ((got != 0).sum(1) > projection.k).any():
        raise RuntimeError(
            f"the exported projection of Γ{level} does not keep the largest magnitudes at k={projection.k}: "
            "the wrong file was deleted"
        )
    return as_many.numel(), int(differs.any(1).sum())


def _scale(code: Tensor) -> Tensor:
    return code.abs().max().clamp_min(torch.finfo(code.dtype).tiny)


def _require_close(difference: float, what: str) -> None:
    if not difference <= TOLERANCE:  # NaN fails too
        raise RuntimeError(
            f"the exported file and torch differ by {difference:.1e} in {what}, more than {TOLERANCE}: "
            "the wrong file was deleted"
        )

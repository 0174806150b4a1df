"""The graph that the search for the code of an image evaluates in each step: image, error and gradient of a code.

The gradient is written out, since ONNX has no automatic differentiation: below Γ_L, a generator is a chain of
(transposed) convolutions, norms, activations and projections.
"""

from collections.abc import Callable
from typing import cast

import onnx_ir as ir  # noqa: TID253 (nothing here works without it)
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsegen.export.graph import projection_node, to_graph
from sparsegen.zoo.blocks import BatchNorm, CenteredSigmoid, Stage
from sparsegen.zoo.encoding import default_level
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.projections import Projection

Convolution = nn.Conv2d | nn.ConvTranspose2d
Sides = tuple[int, ...]

# The derivative of an activation as a function of its output y.
DERIVATIVES: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.Tanh: lambda y: 1 - y * y,
    CenteredSigmoid: lambda y: (1 - y * y) / 2,
    nn.ReLU: lambda y: (y != 0).to(y.dtype),  # also of a projection after it, whose entries are kept or 0
}


def trace_pursuit(generator: Generator) -> ir.Graph:
    """Traces one step of the search, from a candidate of Γ_L to its projection, image, error and gradient.

    Inputs: candidate (batch, C, H', W'); target (batch, 3, H, W) in [-1, 1]; known (batch, 1, H, W), 1 where a pixel
    counts and 0 elsewhere; k_1, k_2, …
    Outputs: image; loss (batch,), the sum of the squared errors of the known pixels; gradient, of the loss at the
    projected candidate; code_1 to code_L.

    Raises:
        TypeError: If a stage has another norm or activation than the architectures of the package.
    """
    if reason := unsupported(generator):
        raise TypeError(f"this generator cannot be exported for encoding: {reason}")
    step = _Step(generator).eval()
    size, deepest = generator.image_size, generator.code_shapes[step.level - 1]
    batch = {0: torch.export.Dim("batch")}
    traced = torch.export.export(
        step,
        (
            torch.zeros(2, *deepest),
            torch.zeros(2, 3, size, size),
            torch.zeros(2, 1, size, size),
            [torch.tensor(k_range.k) for k_range in generator.k_ranges],
        ),
        dynamic_shapes=(batch, batch, batch, [None for _ in generator.k_ranges]),
    )
    inputs = ["candidate", "target", "known", *(f"k_{k_range.level}" for k_range in generator.k_ranges)]
    codes = [f"code_{level}" for level in range(1, step.level + 1)]
    return to_graph(traced, inputs, ["image", "loss", "gradient", *codes])


class _Step(nn.Module):
    def __init__(self, generator: Generator):
        super().__init__()
        self.generator, self.level = generator, default_level(generator)

    def forward(
        self, candidate: Tensor, target: Tensor, known: Tensor, k: list[Tensor]
    ) -> tuple[Tensor, ...]:
        k_of = {k_range.level: value for k_range, value in zip(self.generator.k_ranges, k, strict=True)}

        def project(code: Tensor, level: int) -> Tensor:
            projection = self.generator.projections[level - 1]
            if not isinstance(projection, Projection):
                return code
            return projection_node(projection, code, k_of[level])

        made = [project(candidate.relu(), self.level)]  # Γ_L, …, Γ1, the image
        stages = [cast(Stage, stage) for stage in self.generator.stages[: self.level]][::-1]
        convolutions = [cast(Convolution, stage.conv) for stage in stages]
        weights = [conv.weight for conv in convolutions]  # once, since a spectral norm computes them
        for index, (stage, conv, weight) in enumerate(zip(stages, convolutions, weights, strict=True)):
            out = stage.activation(stage.norm(_convolved(conv, weight, made[-1])))
            below = self.level - 1 - index
            made.append(project(out, below) if below else out)
        *codes, image = made
        error = known * (image - target)
        gradient = 2 * error
        for stage, conv, weight, out in list(zip(stages, convolutions, weights, made[1:], strict=True))[::-1]:
            gradient = gradient * DERIVATIVES[type(stage.activation)](out) * _slope(stage.norm)
            gradient = _backward(conv, weight, gradient)
        return image, (error * error).sum((1, 2, 3)), gradient, *reversed(codes)


def unsupported(generator: Generator) -> str | None:
    """Returns why a generator has no encoding graph, e.g. because of an activation of another package; else None."""
    for stage in generator.stages[: default_level(generator)]:
        norms, activations = (nn.Identity, BatchNorm), tuple(DERIVATIVES)
        for part, known in ((stage.norm, norms), (stage.activation, activations)):
            if type(part) not in known:
                names = ", ".join(each.__name__ for each in known)
                return f"its layer {type(part).__name__} is none of {names}"
        if not isinstance(stage.conv, Convolution):
            return f"its layer {type(stage.conv).__name__} is not a convolution"
        if isinstance(stage.conv.padding, str):
            return f"the padding {stage.conv.padding!r} of a convolution is not a number of pixels"
    return None


def _slope(norm: nn.Module) -> Tensor | float:
    """Returns the derivative of a norm in eval mode. Shape: (1, C, 1, 1)."""
    if not isinstance(norm, BatchNorm):
        return 1.0
    slope: Tensor = norm.weight / torch.sqrt(cast(Tensor, norm.running_var) + norm.eps)
    return slope[None, :, None, None]


def _convolved(conv: Convolution, weight: Tensor, x: Tensor) -> Tensor:
    if isinstance(conv, nn.ConvTranspose2d):
        return F.conv_transpose2d(
            x,
            weight,
            conv.bias,
            conv.stride,
            cast(Sides, conv.padding),
            cast(Sides, conv.output_padding),
            conv.groups,
            conv.dilation,
        )
    return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _backward(conv: Convolution, weight: Tensor, gradient: Tensor) -> Tensor:
    """Returns the gradient of the input of a convolution: the transposed convolution, and the reverse."""
    if isinstance(conv, nn.ConvTranspose2d):
        return F.conv2d(gradient, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    return F.conv_transpose2d(
        gradient, weight, None, conv.stride, cast(Sides, conv.padding), 0, conv.groups, conv.dilation
    )

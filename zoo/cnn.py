"""The plain convolutional body: a generator and a discriminator, parametrized by rows of layers."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from sparsegen.zoo.blocks import Conv, Stage, normal_init
from sparsegen.zoo.generator import Generator


class Coder(nn.Module):
    """G^S: noise, taken as a 1 x 1 map, through transposed convolutions to Γ_L.

    Shape: z (B, z_dim) -> Γ_L (B, C, H, W), before its projection.
    """

    def __init__(self, stages: Sequence[Stage]):
        super().__init__()
        self.stages = nn.Sequential(*stages)

    def forward(self, z: Tensor) -> Tensor:
        return self.stages(z[:, :, None, None])


def generator(
    layers: Sequence[Conv],
    output: Conv,
    *,
    atoms: int,
    z_dim: int,
    projections: Sequence[nn.Module],
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    init: Callable[[nn.Module], None] = normal_init,
) -> Generator:
    """Builds conv-norm-ReLU layers and the output dictionary with its tanh into a generator.

    The outputs of the last `len(projections)` layers are Γ_L … Γ1; what lies before is the coder.
    """
    stages, shapes, channels, side = [], [], z_dim, 1
    for layer in layers:
        width = layer.width * atoms
        stages.append(Stage(layer.build(channels, width), norm(width), nn.ReLU()))
        channels, side = width, layer.side(side)
        shapes.append((channels, side, side))
    image = Stage(output.build(channels, 3, bias=True), nn.Identity(), nn.Tanh())
    first = len(layers) - len(projections) + 1
    built = Generator(
        Coder(stages[:first]),
        [image, *reversed(stages[first:])],
        projections,
        list(reversed(shapes[first - 1 :])),
        z_dim,
    )
    init(built)
    return built


class Discriminator(nn.Module):
    """Convolutions with leaky ReLUs, then one score; no norm on the first layer (Radford et al., 2015).

    Shape: image (B, 3, H, W) in [-1, 1] -> scores (B,).
    """

    def __init__(
        self,
        layers: Sequence[Conv],
        head: Conv,
        *,
        atoms: int,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        slope: float = 0.2,
        init: Callable[[nn.Module], None] = normal_init,
    ):
        super().__init__()
        stages, channels = [], 3
        for index, layer in enumerate(layers):
            width = layer.width * atoms
            after = norm(width) if index else nn.Identity()
            conv = layer.build(channels, width, bias=isinstance(after, nn.Identity))
            stages.append(Stage(conv, after, nn.LeakyReLU(slope)))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.head = head.build(channels, 1, bias=True)
        init(self)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.stages(image)).flatten()

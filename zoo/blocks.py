"""The blocks that every architecture is assembled from."""

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn


@dataclass(frozen=True)
class Conv:
    """A convolution as data: its geometry, and its output channels as a multiple of the architecture's atoms
    (no matter where what it makes is an image or a score)."""

    width: int = 0
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    transposed: bool = False

    def build(self, inputs: int, outputs: int, bias: bool = False) -> nn.Conv2d | nn.ConvTranspose2d:
        kind = nn.ConvTranspose2d if self.transposed else nn.Conv2d
        return kind(inputs, outputs, self.kernel, self.stride, self.padding, bias=bias)

    def side(self, side: int) -> int:
        """Side of the square output for a square input of this side."""
        if self.transposed:
            return (side - 1) * self.stride - 2 * self.padding + self.kernel
        return (side + 2 * self.padding - self.kernel) // self.stride + 1


Up = partial(Conv, kernel=4, stride=2, transposed=True)
Down = partial(Conv, kernel=4, stride=2)


class Stage(nn.Module):
    """A convolution (a dictionary, where its input is a sparse code), a norm and an activation.

    Shape: (B, C, H, W) -> (B, C', H', W').
    """

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d, norm: nn.Module, activation: nn.Module):
        super().__init__()
        self.conv, self.norm, self.activation = conv, norm, activation

    def forward(self, code: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(code)))


def normal_init(module: nn.Module, deviation: float = 0.02) -> None:
    """Draws filters from N(0, 0.02²) and norm gains from N(1, 0.02²), biases 0 (Radford et al., 2015)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(part.weight, 0.0, deviation)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, deviation)
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)

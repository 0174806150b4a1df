"""The building blocks of all architectures."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

IMAGE_SIZES = (
    32,
    64,
    128,
)  # sides of the square images that networks can be built for; the paper's is the first
WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)


@dataclass(frozen=True)
class Conv:
    """The geometry of a convolution, and its output channels as a multiple of the architecture's atoms.

    `width` is ignored where the output is an image or a score.
    """

    width: int = 0
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    transposed: bool = False

    def build(self, inputs: int, outputs: int, bias: bool = False) -> nn.Conv2d | nn.ConvTranspose2d:
        kind = nn.ConvTranspose2d if self.transposed else nn.Conv2d
        return kind(inputs, outputs, self.kernel, self.stride, self.padding, bias=bias)

    def side(self, side: int) -> int:
        """Returns the side of the output for an input of this side, both square."""
        if self.transposed:
            return (side - 1) * self.stride - 2 * self.padding + self.kernel
        return (side + 2 * self.padding - self.kernel) // self.stride + 1


def doublings(image_size: int) -> int:
    """Returns the binary logarithm of an image size divided by the smallest one."""
    return (image_size // IMAGE_SIZES[0]).bit_length() - 1


Up = partial(Conv, kernel=4, stride=2, transposed=True)
Down = partial(Conv, kernel=4, stride=2)


@dataclass(frozen=True)
class Dense:
    """The size of a dense layer from a vector (a 1 x 1 map) to a small square map; used like `Conv`."""

    width: int
    size: int = 4

    def build(self, inputs: int, outputs: int, bias: bool = False) -> "DenseMap":
        return DenseMap(inputs, outputs, self.size, bias)

    def side(self, side: int) -> int:
        return self.size


class DenseMap(nn.Linear):
    """Shape: (B, C) or (B, C, 1, 1) -> (B, C', size, size)."""

    def __init__(self, inputs: int, outputs: int, size: int, bias: bool = True):
        super().__init__(inputs, outputs * size * size, bias)
        self.shape = outputs, size, size

    def forward(self, vector: Tensor) -> Tensor:
        return super().forward(vector.flatten(1)).unflatten(1, self.shape)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that accepts labels and ignores them."""

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        return super().forward(features)


class ConditionalBatchNorm(nn.Module):
    """Batch norm with a gain and bias per class (de Vries et al., 2017; Dumoulin et al., 2017).

    The embeddings have no spectral norm, because it harms training (a comment in the code of Brock et al., 2019).
    Choice: it is initialized like a batch norm (Radford et al., 2015), with gains near 1 and biases 0, whatever the
    initialization of the other weights.

    Shape: features (B, C, H, W), labels (B,) -> features.
    """

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain, self.bias = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        nn.init.normal_(self.gain.weight, 1.0, 0.02)
        nn.init.zeros_(self.bias.weight)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        gain, bias = self.gain(labels), self.bias(labels)
        return self.norm(features) * gain[:, :, None, None] + bias[:, :, None, None]


Norm = Callable[[int], nn.Module]  # from channels to a module of features and, in a generator, labels


def no_norm(channels: int) -> nn.Module:
    """Returns an identity in place of a norm."""
    return nn.Identity()


class Stage(nn.Module):
    """A convolution (a dictionary if its input is a sparse code), a norm and an activation.

    `bypass` is added to D_L Γ_L in a residual generator.

    Shape: (B, C, H, W) -> (B, C', H', W').
    """

    def __init__(self, conv: nn.Module, norm: nn.Module, activation: nn.Module):
        super().__init__()
        self.conv, self.norm, self.activation = conv, norm, activation

    def forward(self, code: Tensor, bypass: Tensor | None = None) -> Tensor:
        made = self.conv(code)
        return self.activation(self.norm(made if bypass is None else made + bypass))


class UpCode(nn.Module):
    """The first half of a residual block that doubles the side, up to the activation before its last convolution.

    Shape: x (B, C, H, W), labels (B,) or None -> code (B, C', 2H, 2W), output of the shortcut (B, C', 2H, 2W).
    """

    def __init__(self, inputs: int, outputs: int, norm: Norm):
        super().__init__()
        self.norm_1, self.conv_1 = norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm_2, self.shortcut = norm(outputs), nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        main = F.relu(self.norm_1(x, labels))
        main = F.relu(self.norm_2(self.conv_1(_doubled(main)), labels))
        # The 1 x 1 convolution commutes with the doubling; before it, it costs a quarter.
        return main, _doubled(self.shortcut(x))


class UpBlock(nn.Module):
    """A residual block that doubles the side (Miyato et al., 2018; Gulrajani et al., 2017).

    Shape: (B, C, H, W) -> (B, C', 2H, 2W).
    """

    def __init__(self, inputs: int, outputs: int, norm: Norm):
        super().__init__()
        self.code, self.conv_2 = UpCode(inputs, outputs, norm), nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        code, bypass = self.code(x, labels)
        return self.conv_2(code) + bypass


class DownBlock(nn.Module):
    """A residual block of a discriminator or an encoder.

    Args:
        pool: Builds a layer that halves the side, from a number of channels; None: the side does not change.
        first: Whether its input is the image; then no norm and activation precede the first convolution.

    Shape: (B, C, H, W) -> (B, C', H/2, W/2), or H x W without `pool`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        pool: Callable[[int], nn.Module] | None = None,
        *,
        first: bool = False,
        norm: Norm = no_norm,
        activation: Callable[[Tensor], Tensor] = F.relu,
    ):
        super().__init__()
        self.activation = activation
        self.norm_1 = nn.Identity() if first else norm(inputs)
        self.before = nn.Identity() if first else activation
        self.conv_1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm_2, self.conv_2 = norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.pool = pool(outputs) if pool else nn.Identity()
        self.shortcut = nn.Sequential()
        if pool:  # before the 1 x 1 convolution, which then costs a quarter
            self.shortcut.append(pool(inputs))
        if pool or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        main = self.conv_1(self.before(self.norm_1(x)))
        main = self.conv_2(self.activation(self.norm_2(main)))
        return self.pool(main) + self.shortcut(x)


def average_pool(channels: int) -> nn.Module:
    """Returns a 2 x 2 average pooling."""
    return nn.AvgPool2d(2)


class StridedConv(nn.Conv2d):
    """A 1 x 1 convolution of every second pixel.

    The pixels are selected before it: with a stride in the convolution itself, the gradient of fewer than 8 channels
    that lie last in memory overwrites other memory (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :, ::2, ::2])


class SelfAttention(nn.Module):
    """Each position attends to all positions of the map at half the side (Zhang et al., 2019, section 3).

    Shape: (B, C, H, W) -> the same.
    """

    def __init__(self, channels: int):
        super().__init__()
        narrow, half = max(1, channels // 8), max(1, channels // 2)
        self.query, self.key = (nn.Conv2d(channels, narrow, 1, bias=False) for _ in range(2))
        self.value, self.out = (
            nn.Conv2d(channels, half, 1, bias=False),
            nn.Conv2d(half, channels, 1, bias=False),
        )
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        query = self.query(x).flatten(2)  # (B, C/8, HW)
        key, value = (F.max_pool2d(part(x), 2).flatten(2) for part in (self.key, self.value))
        attention = (query.mT @ key).softmax(-1)  # (B, HW, HW/4)
        seen = (value @ attention.mT).unflatten(2, x.shape[2:])
        return x + self.weight * self.out(seen)


class Score(nn.Module):
    """A linear score of features pooled over all positions; with classes, plus the projection <e(y), h> of the label
    (Miyato & Koyama, 2018).

    Args:
        pooling: `torch.sum` or `torch.mean`.

    Shape: features (B, C, H, W), labels (B,) -> scores (B,).

    Raises:
        ValueError: If there are classes and no labels.
    """

    def __init__(self, channels: int, classes: int = 0, pooling: Callable[..., Tensor] = torch.sum):
        super().__init__()
        self.pooling = pooling
        self.linear = nn.Linear(channels, 1)
        self.embedding = nn.Embedding(classes, channels) if classes else None

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        pooled = self.pooling(features, (2, 3))
        scores = self.linear(pooled).flatten()
        if self.embedding is None:
            return scores
        return scores + (self.embedding(needed(labels)) * pooled).sum(1)


def needed(labels: Tensor | None) -> Tensor:
    """Returns the labels. Raises: ValueError if they are None."""
    if labels is None:
        raise ValueError("this network is conditional: give labels, one per image")
    return labels


class ConvScore(nn.Module):
    """A convolution whose kernel covers the whole map. Shape: features (B, C, H, W) -> scores (B,)."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.conv(features).flatten()


class CenteredSigmoid(nn.Module):
    """The sigmoid, scaled to [-1, 1]: 2 σ(x) - 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 2)


def one_hot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Returns one-hot vectors. Shape: labels (B,) -> (B, classes)."""
    return (labels[:, None] == torch.arange(classes, device=labels.device)).to(dtype)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


Init = Callable[[nn.Module], None]


def normal_init(network: nn.Module) -> None:
    """Draws weights from N(0, 0.02²) and norm gains from N(1, 0.02²), biases 0 (Radford et al., 2015).

    Choice: weights, gains and biases in all networks that use it, although public code does so only for the weights
    (cgan, msgan, biggan) or does not include a discriminator (wgan_gp).
    """
    for part in _parts(network):
        nn.init.normal_(part.weight, float(isinstance(part, nn.BatchNorm2d)), 0.02)
        _zero_bias(part)


def xavier_init(network: nn.Module) -> None:
    """Draws weights as in Glorot & Bengio (2010); norm gains are 1, biases 0.

    It lacks the gain of √2 of `residual_init`, which would accumulate in a discriminator without norms whose features
    are summed over all positions.
    """
    for part in _parts(network):
        init = nn.init.ones_ if isinstance(part, nn.BatchNorm2d) else nn.init.xavier_uniform_
        init(part.weight)
        _zero_bias(part)


def residual_init(network: nn.Module) -> None:
    """As `xavier_init`, with a gain of √2 in 3 x 3 convolutions (Miyato et al., 2018).

    Choice: the output convolution of the generator included.
    """
    xavier_init(network)
    for part in _parts(network):
        if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3):
            part.weight.data *= 2**0.5


def zero_init_score(init: Init) -> Init:
    """Returns `init` with initial scores of 0, where a sigmoid has its largest slope.

    Choice: a sum over 8 x 8 positions would otherwise start at some tens, where the sigmoid is flat.
    """

    def zero_score_init(network: nn.Module) -> None:
        init(network)
        for part in network.modules():
            if isinstance(part, Score):
                nn.init.zeros_(part.linear.weight)

    return zero_score_init


def orthogonal_init(network: nn.Module) -> None:
    """Draws orthogonal weights (Saxe et al., 2014); norm gains are 1, biases 0."""
    for part in _parts(network):
        init = nn.init.ones_ if isinstance(part, nn.BatchNorm2d) else nn.init.orthogonal_
        init(part.weight)
        _zero_bias(part)


def unconstrained(network: nn.Module) -> None:
    """Does not change the weights."""


def apply_spectral_norm(network: nn.Module) -> None:
    """Parametrizes every weight by spectral norm (Miyato et al., 2018), in place.

    Choice: torch's epsilon of 1e-12; public code has 1e-8 or 1e-6.

    Call it after the initialization, which does not change parametrized weights.
    """
    for part in list(_parts(network)):
        if isinstance(part, WEIGHTED):
            spectral_norm(part)


def weight_of(part: Any) -> Tensor:
    """Returns the effective weight of a layer, normalized if it has spectral norm, without changing the layer."""
    if not is_parametrized(part, "weight"):
        return part.weight
    normalized = part.parametrizations.weight
    training = normalized.training
    normalized.eval()  # in training mode each access is a step of the power iteration
    weight = part.weight
    normalized.train(training)
    return weight


def _parts(network: nn.Module) -> Iterator[Any]:
    """Yields the layers whose weights are initialized; a `ConditionalBatchNorm` initializes its own."""
    if isinstance(network, ConditionalBatchNorm):
        return
    if isinstance(network, (*WEIGHTED, nn.BatchNorm2d)):
        yield network
    for child in network.children():
        yield from _parts(child)


def _zero_bias(part: Any) -> None:
    if getattr(part, "bias", None) is not None:
        nn.init.zeros_(part.bias)

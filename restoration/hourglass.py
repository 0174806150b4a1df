"""The hourglass of the Deep Image Prior (Ulyanov et al., 2018), with a projection on each of its codes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsegen.restoration.settings import Padding, Widths

MakeProjection = Callable[[int, int], nn.Module]  # of the level and the channels of a code


class Hourglass(nn.Module):
    """Maps a noise tensor to an image, with one code per scale.

        Γ_i = project(act(act(Γ_{i-1} * 3x3, stride 2) * 3x3)),   Γ_0 = z
        X_i = act(act(norm([skip(Γ_{i-1}), up(X_{i+1})]) * 3x3) * 1x1),   X_{K+1} = Γ_K
        image = sigmoid(X_1 * 1x1)

    act is batch norm and LeakyReLU(0.2), skip a 1x1 convolution with act, up doubles the size bilinearly. The
    encoder is the pursuit of the codes; the next scale and the skip connection both read the projected code (App. G.1).

    Batch norm uses the statistics of the current image and keeps no running averages.

    Args:
        project: Makes the projection of a code from its level and its channels; None for no projections.

    Shape: z (1, inputs, H, W), H and W multiples of `widths.multiple` -> image (1, outputs, H, W) in (0, 1),
        and the codes, Γ_i of (1, down[i-1], H/2^i, W/2^i).
    """

    def __init__(
        self,
        widths: Widths,
        project: MakeProjection | None = None,
        inputs: int = 32,
        outputs: int = 3,
    ) -> None:
        super().__init__()
        self.widths = widths
        below = (inputs, *widths.down[:-1])  # channels of Γ_{i-1}
        above = (*widths.up[1:], widths.down[-1])  # channels of X_{i+1}
        pad = widths.padding
        self.encoder = nn.ModuleList(
            nn.Sequential(*_block(a, b, 3, pad, stride=2), *_block(b, b, 3, pad))
            for a, b in zip(below, widths.down, strict=True)
        )
        self.projections = nn.ModuleList(
            project(level, channels) if project else nn.Identity()
            for level, channels in enumerate(widths.down, 1)
        )
        self.skips = nn.ModuleList(
            nn.Sequential(*_block(a, s, 1, pad)) for a, s in zip(below, widths.skip, strict=True)
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(_norm(s + x), *_block(s + x, up, 3, pad), *_block(up, up, 1, pad))
            for s, x, up in zip(widths.skip, above, widths.up, strict=True)
        )
        self.head = nn.Conv2d(widths.up[0], outputs, 1)

    def forward(self, z: Tensor) -> tuple[Tensor, list[Tensor]]:
        code, codes, skipped = z, [], []
        for encode, project, skip in zip(self.encoder, self.projections, self.skips, strict=True):
            skipped.append(skip(code))
            code = project(encode(code))
            codes.append(code)
        x = code
        for skip, decode in zip(reversed(skipped), reversed(self.decoder), strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = decode(torch.cat([skip, x], dim=1))
        return torch.sigmoid(self.head(x).float()), codes


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, track_running_stats=False)


def _block(inputs: int, outputs: int, size: int, padding: Padding, stride: int = 1) -> Sequence[nn.Module]:
    convolution = nn.Conv2d(
        inputs, outputs, size, stride, size // 2, padding_mode=padding if size > 1 else "zeros"
    )
    return convolution, _norm(outputs), nn.LeakyReLU(0.2)

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sparsegen.restoration.hourglass import Hourglass
from sparsegen.restoration.settings import PRESETS, Widths
from sparsegen.zoo.projections import GlobalProjection, NeedleProjection

TINY = Widths((4, 6), (5, 3), (2, 1), "reflect")


def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt() * weight[:, None, None] + bias[:, None, None]


def reflected(x: torch.Tensor, padding: str) -> torch.Tensor:
    mode = {"reflect": "reflect", "zeros": "constant"}[padding]
    return torch.from_numpy(np.pad(x.detach().numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode))


def doubled(x: torch.Tensor) -> torch.Tensor:
    """Bilinear by hand: each new pixel center lies a quarter from an old one; clamped at the border."""
    for dim in (2, 3):
        n = x.shape[dim]
        at = (torch.arange(2 * n) + 0.5) / 2 - 0.5
        low = at.floor()
        part = (at - low).reshape([-1 if d == dim else 1 for d in range(4)])
        left, right = (x.index_select(dim, i.clamp(0, n - 1).long()) for i in (low, low + 1))
        x = left * (1 - part) + right * part
    return x


def naive(
    net: Hourglass, widths: Widths, z: torch.Tensor, project
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The network of the paper's code, layer by layer, on the weights in the order of creation."""
    encoder, skips, decoder = (
        [dict(part.named_parameters()) for part in parts] for parts in (net.encoder, net.skips, net.decoder)
    )

    def act(x: torch.Tensor, weights: dict, at: int) -> torch.Tensor:
        x = norm(x, weights[f"{at}.weight"], weights[f"{at}.bias"])
        return torch.where(x > 0, x, 0.2 * x)

    def conv(x: torch.Tensor, weights: dict, at: int, stride: int = 1) -> torch.Tensor:
        kernel = weights[f"{at}.weight"]
        x = reflected(x, widths.padding) if kernel.shape[-1] == 3 else x
        return F.conv2d(x, kernel, weights[f"{at}.bias"], stride)

    code, codes, skipped = z, [], []
    for down, skip in zip(encoder, skips, strict=True):
        skipped.append(act(conv(code, skip, 0), skip, 1))
        code = act(conv(code, down, 0, stride=2), down, 1)
        code = project(act(conv(code, down, 3), down, 4))
        codes.append(code)
    x = code
    for skip, up in zip(reversed(skipped), reversed(decoder), strict=True):
        x = torch.cat([skip, doubled(x)], 1)
        x = norm(x, up["0.weight"], up["0.bias"])
        x = act(conv(x, up, 1), up, 2)
        x = act(conv(x, up, 4), up, 5)
    return torch.sigmoid(F.conv2d(x, net.head.weight, net.head.bias)), codes


def needles(k: int):
    def project(code: torch.Tensor) -> torch.Tensor:
        kept = code.abs().argsort(dim=1, descending=True, stable=True)[:, :k]
        return torch.zeros_like(code).scatter(1, kept, code.gather(1, kept))

    return project


def test_the_number_of_parameters_is_that_of_the_original() -> None:
    net = Hourglass(PRESETS["paper"].widths)
    assert sum(parameter.numel() for parameter in net.parameters()) == 2_217_831
    assert list(net.buffers()) == []  # no state besides the parameters


@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_it_equals_a_rebuild_layer_by_layer(padding: str, k: int | None) -> None:
    torch.manual_seed(0)
    widths = Widths((4, 6, 5), (5, 3, 4), (2, 1, 3), padding)
    net = Hourglass(widths, (lambda level, channels: NeedleProjection(k)) if k else None, inputs=3).double()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    z = torch.rand(1, 3, 40, 24, dtype=torch.float64)
    image, codes = net(z)
    expected, expected_codes = naive(net, widths, z, needles(k) if k else lambda code: code)
    assert torch.allclose(image.double(), expected, atol=1e-6)  # the image itself is float32
    for code, expected_code in zip(codes, expected_codes, strict=True):
        assert torch.allclose(code, expected_code, atol=1e-12)


def test_the_paper_s_network_equals_its_rebuild_at_full_width() -> None:
    torch.manual_seed(0)
    widths = PRESETS["paper"].widths
    net = Hourglass(widths, lambda level, channels: NeedleProjection(32))
    z = torch.rand(1, 32, 64, 64) / 10
    with torch.no_grad():
        image, codes = net(z)
        expected, _ = naive(net, widths, z, needles(32))
    assert [tuple(code.shape) for code in codes] == [(1, 128, 64 >> i, 64 >> i) for i in range(1, 6)]
    assert torch.allclose(image, expected, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_widths_make_an_image_of_the_size_of_z(data: st.DataObject) -> None:
    scales = data.draw(st.integers(1, 3))
    channels = st.tuples(*[st.integers(1, 6)] * scales)
    widths = Widths(data.draw(channels), data.draw(channels), data.draw(channels), "zeros")
    height, width = (widths.multiple * data.draw(st.integers(2, 4)) for _ in "hw")
    outputs = data.draw(st.sampled_from([1, 3]))
    image, codes = Hourglass(widths, None, 2, outputs)(torch.rand(1, 2, height, width))
    assert image.shape == (1, outputs, height, width)
    assert 0 <= image.min() and image.max() <= 1
    assert [code.shape[1] for code in codes] == list(widths.down)


@pytest.mark.parametrize("kind", [NeedleProjection, GlobalProjection])
def test_deeper_stages_and_skips_read_the_projected_code(kind: type) -> None:
    """Entries that the projection zeroes do not influence the image: their gradient is zero."""
    torch.manual_seed(0)
    net = Hourglass(TINY, lambda level, channels: kind(2), inputs=3)
    seen = []
    net.encoder[0].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    image, codes = net(torch.rand(1, 3, 16, 16))
    seen[0].retain_grad()
    image.square().sum().backward()
    dropped = codes[0] == 0
    assert dropped.any() and (seen[0].grad[dropped] == 0).all() and (seen[0].grad[~dropped] != 0).any()


@pytest.mark.parametrize(
    ("down", "up", "skip", "padding", "message"),
    [
        ((4, 4), (4,), (1, 1), "zeros", "2, 1 and 2 numbers"),
        ((), (), (), "zeros", "0, 0 and 0 numbers"),
        ((4, 0), (4, 4), (1, 1), "zeros", "channels must be at least 1"),
        ((4,), (4,), (1,), "mirror", "got 'mirror'"),
    ],
)
def test_invalid_widths_are_refused(
    down: tuple[int, ...], up: tuple[int, ...], skip: tuple[int, ...], padding: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Widths(down, up, skip, padding)

"""Each block against its definition, computed position by position or from torch layers in the usual order."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from sparsegen.zoo import blocks
from sparsegen.zoo.blocks import BatchNorm, ConditionalBatchNorm, DownBlock, Score, SelfAttention, UpBlock
from sparsegen.zoo.discriminator import in_unit_range, with_label_maps
from sparsegen.zoo.residual import uniform_prior
from sparsegen.zoo.spec import ModelSpec


def test_self_attention_equals_a_loop_over_positions() -> None:
    attention = SelfAttention(16)
    x = torch.randn(2, 16, 4, 6)
    assert torch.equal(attention(x), x)  # its weight starts at 0
    nn.init.constant_(attention.weight, 0.7)
    query, key, value = (
        part.weight[:, :, 0, 0] for part in (attention.query, attention.key, attention.value)
    )
    wanted = x.clone()
    for image, pixels in enumerate(x):
        keys, values = [], []
        for i in range(0, 4, 2):
            for j in range(0, 6, 2):
                quad = pixels[:, i : i + 2, j : j + 2].flatten(1)
                keys.append((key @ quad).amax(1))
                values.append((value @ quad).amax(1))
        for row in range(4):
            for column in range(6):
                own = query @ pixels[:, row, column]
                weights = [(own @ key).exp() for key in keys]
                seen = sum(weight * value for weight, value in zip(weights, values, strict=True))
                wanted[image, :, row, column] += (
                    0.7 * attention.out.weight[:, :, 0, 0] @ (seen / sum(weights))
                )
    torch.testing.assert_close(attention(x), wanted)


@pytest.mark.parametrize("train", [True, False])
def test_a_conditional_batch_norm_has_the_gain_and_bias_of_each_label(
    train: bool,
) -> None:
    norm, plain = ConditionalBatchNorm(5, 3).train(train), nn.BatchNorm2d(5, affine=False).train(train)
    nn.init.normal_(norm.bias.weight)
    for other in (norm.norm, plain):
        other.running_mean.copy_(torch.arange(5) / 10)
        other.running_var.copy_(1 + torch.arange(5) / 5)
    x, labels = torch.randn(6, 5, 4, 4) * 3 + 1, torch.tensor([2, 0, 0, 1, 2, 2])
    made, normed = norm(x, labels), plain(x)
    for image, label in enumerate(labels.tolist()):
        for channel in range(5):
            gain, bias = norm.gain.weight[label, channel], norm.bias.weight[label, channel]
            torch.testing.assert_close(made[image, channel], normed[image, channel] * gain + bias)
    torch.testing.assert_close(norm.norm.running_var, plain.running_var)


def test_an_up_block_equals_one_that_doubles_before_the_shortcuts_convolution() -> None:
    block = UpBlock(6, 4, partial(ConditionalBatchNorm, classes=3)).eval()
    x, labels = torch.randn(2, 6, 5, 5), torch.tensor([0, 2])
    up = partial(F.interpolate, scale_factor=2, mode="nearest")
    code = block.code
    main = code.conv_1(up(F.relu(code.norm_1(x, labels))))
    main = block.conv_2(F.relu(code.norm_2(main, labels)))
    torch.testing.assert_close(block(x, labels), main + code.shortcut(up(x)))


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 4), (4, 6)])
@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("norm", [blocks.no_norm, BatchNorm])
def test_a_down_block_equals_one_that_pools_after_the_shortcuts_convolution(
    inputs: int, outputs: int, pooled: bool, norm: type
) -> None:
    leaky = partial(F.leaky_relu, negative_slope=0.2)
    block = DownBlock(inputs, outputs, blocks.average_pool if pooled else None, norm=norm, activation=leaky)
    x = torch.randn(3, inputs, 8, 8)
    before = x.clone()
    pool = nn.AvgPool2d(2) if pooled else nn.Identity()
    main = block.conv_2(leaky(block.norm_2(block.conv_1(leaky(block.norm_1(x))))))
    one = next((part for part in block.shortcut if isinstance(part, nn.Conv2d)), None)
    assert (one is None) == (inputs == outputs and not pooled)
    made = block(x)
    torch.testing.assert_close(made, pool(main) + pool(x if one is None else one(x)))
    assert made.shape == (3, outputs, 4, 4) if pooled else (3, outputs, 8, 8)
    assert torch.equal(x, before)  # no activation works in place, or the shortcut would see it


def test_the_first_block_has_no_activation_before_its_convolution() -> None:
    block = DownBlock(3, 4, blocks.average_pool, first=True)
    x = torch.randn(2, 3, 8, 8)
    main = F.avg_pool2d(block.conv_2(F.relu(block.conv_1(x))), 2)
    torch.testing.assert_close(block(x), main + F.avg_pool2d(block.shortcut[1](x), 2))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_strided_convolution_selects_every_second_pixel(layout: torch.memory_format) -> None:
    conv = blocks.StridedConv(3).to(memory_format=layout)
    x = torch.randn(64, 3, 32, 32).contiguous(memory_format=layout).requires_grad_()
    made, slope = conv(x), torch.randn(64, 3, 16, 16).contiguous(memory_format=layout)
    wanted = (
        torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x[:, :, ::2, ::2]) + conv.bias[:, None, None]
    )
    torch.testing.assert_close(made, wanted)
    of = (x, conv.weight, conv.bias)
    for found, true in zip(
        torch.autograd.grad(made, of, slope), torch.autograd.grad(wanted, of, slope), strict=True
    ):
        torch.testing.assert_close(found, true, rtol=1e-4, atol=1e-3)


def test_a_score_is_linear_in_the_summed_features_plus_the_projection_of_the_label() -> None:
    score, features, labels = Score(4, 3), torch.randn(5, 4, 2, 3), torch.tensor([0, 1, 2, 2, 1])
    made = score(features, labels)
    for image, label in enumerate(labels.tolist()):
        summed = sum(features[image, :, row, column] for row in range(2) for column in range(3))
        wanted = (
            score.linear.weight[0] @ summed + score.linear.bias[0] + score.embedding.weight[label] @ summed
        )
        torch.testing.assert_close(made[image], wanted)
    alone = Score(4)
    torch.testing.assert_close(alone(features), alone.linear(features.flatten(2).sum(2))[:, 0])


def test_a_convolution_of_the_whole_map_is_a_linear_score() -> None:
    conv, features = nn.Conv2d(4, 1, 3), torch.randn(5, 4, 3, 3)
    wanted = features.flatten(1) @ conv.weight.flatten() + conv.bias
    torch.testing.assert_close(blocks.ConvScore(conv)(features), wanted)


def test_a_dense_map_is_a_matrix_product_reshaped_to_channels_rows_columns() -> None:
    dense, vector = blocks.Dense(1, 3).build(5, 2, bias=True), torch.randn(4, 5)
    made = dense(vector)
    assert made.shape == (4, 2, 3, 3)
    for channel in range(2):
        for row in range(3):
            for column in range(3):
                index = (channel * 3 + row) * 3 + column
                wanted = vector @ dense.weight[index] + dense.bias[index]
                torch.testing.assert_close(made[:, channel, row, column], wanted)
    assert torch.equal(dense(vector[:, :, None, None]), made)
    assert blocks.Dense(1, 3).build(5, 2).bias is None


def test_label_maps_are_one_everywhere_at_the_label_and_zero_elsewhere() -> None:
    image, labels = torch.randn(3, 3, 4, 4), torch.tensor([2, 0, 2])
    seen = with_label_maps(4)(image, labels)
    assert seen.shape == (3, 7, 4, 4) and torch.equal(seen[:, :3], image)
    for index, label in enumerate(labels.tolist()):
        for channel in range(4):
            assert torch.equal(seen[index, 3 + channel], torch.full((4, 4), float(channel == label)))


def test_in_unit_range_maps_minus_one_and_one_to_zero_and_one() -> None:
    assert in_unit_range(torch.tensor([-1.0, 0, 0.5, 1]), None).tolist() == [0, 0.5, 0.75, 1]


@given(x=st.floats(-20, 20))
@settings(max_examples=100, deadline=None)
def test_the_centered_sigmoid_is_two_sigmoids_less_one(x: float) -> None:
    made = blocks.CenteredSigmoid()(torch.tensor(x, dtype=torch.float64)).item()
    assert made == pytest.approx(2 / (1 + math.exp(-x)) - 1, abs=1e-12)


def test_the_uniform_prior_maps_normal_noise_to_uniform_noise() -> None:
    z = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = uniform_prior(z)
    assert stats.kstest(made.numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-3
    torch.testing.assert_close(made, torch.from_numpy(2 * stats.norm.cdf(z.numpy()) - 1))


def largest(weight: Tensor, transposed: bool = False) -> float:
    matrix = weight.movedim(1, 0) if transposed else weight
    return torch.linalg.matrix_norm(matrix.flatten(1), 2).item()


@pytest.mark.parametrize(
    "part",
    [nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(4, 6, 4), nn.Linear(5, 7), nn.Embedding(5, 7)],
    ids=lambda part: type(part).__name__,
)
def test_the_largest_singular_value_of_a_normalized_weight_is_one(part: nn.Module) -> None:
    nn.init.normal_(part.weight)
    raw = part.weight.detach().clone()
    blocks.apply_spectral_norm(part)
    for _ in range(200):  # each look in training is a step of the power iteration
        normalized = part.weight
    transposed = isinstance(part, nn.ConvTranspose2d)
    assert largest(normalized.detach(), transposed) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(normalized, raw / largest(raw, transposed), rtol=1e-3, atol=1e-4)


def test_reading_a_normalized_weight_does_not_change_its_singular_vectors() -> None:
    conv = nn.Conv2d(4, 6, 3)
    assert blocks.weight_of(conv) is conv.weight
    blocks.apply_spectral_norm(conv)
    before = {key: value.clone() for key, value in conv.state_dict().items()}
    looks = [blocks.weight_of(conv) for _ in range(3)]
    assert all(torch.equal(look, looks[0]) for look in looks)
    assert all(torch.equal(value, before[key]) for key, value in conv.state_dict().items())
    assert conv.parametrizations.weight.training
    assert torch.equal(conv.eval().weight, looks[0])


@pytest.mark.parametrize("name", ["sagan-8.ml", "biggan-8.ml"])
def test_a_normalized_generator_does_not_normalize_label_embeddings(name: str) -> None:
    spec = ModelSpec.parse(name)
    generator, discriminator = spec.generator(), spec.auxiliary_networks()["discriminator"]
    norms = [part for part in generator.modules() if isinstance(part, ConditionalBatchNorm)]
    assert len(norms) == 6
    kept = {id(embedding) for norm in norms for embedding in (norm.gain, norm.bias)}
    for network in (generator, discriminator):
        for part in network.modules():
            if isinstance(part, blocks.WEIGHTED):
                assert nn.utils.parametrize.is_parametrized(part, "weight") == (id(part) not in kept)
    gains = torch.cat([norm.gain.weight.flatten() for norm in norms])
    assert gains.mean().item() == pytest.approx(1, abs=0.01)
    assert gains.std().item() == pytest.approx(0.02, rel=0.2)
    assert not any(norm.bias.weight.any() for norm in norms)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(40, 50, 3), nn.ConvTranspose2d(30, 40, 4), nn.Conv2d(60, 40, 1), nn.Linear(60, 50)
    ).append(nn.BatchNorm2d(900))


def test_the_normal_init_has_the_deviation_and_means_of_radford_et_al() -> None:
    drawn = network()
    blocks.normal_init(drawn)
    for part in drawn:
        centered = part.weight - (1 if isinstance(part, nn.BatchNorm2d) else 0)
        assert abs(centered.mean().item()) < 5 * 0.02 / part.weight.numel() ** 0.5
        assert centered.std().item() == pytest.approx(0.02, rel=0.15)
        assert not part.bias.any()


def test_the_xavier_init_has_variance_two_over_the_fans() -> None:
    drawn = network()
    blocks.xavier_init(drawn)
    for part, fans in zip(drawn, (90 * 9, 70 * 16, 100, 110), strict=False):
        assert part.weight.var().item() == pytest.approx(2 / fans, rel=0.1)
        assert part.weight.abs().max().item() <= math.sqrt(6 / fans)
        assert not part.bias.any()
    assert (drawn[-1].weight == 1).all() and not drawn[-1].bias.any()


def test_the_orthogonal_init_has_singular_values_of_one() -> None:
    drawn = network()
    blocks.orthogonal_init(drawn)
    for part in drawn[:-1]:
        values = torch.linalg.svdvals(part.weight.flatten(1))
        torch.testing.assert_close(values, torch.ones_like(values))
        assert not part.bias.any()
    assert (drawn[-1].weight == 1).all()

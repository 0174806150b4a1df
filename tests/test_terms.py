"""Every loss against its formula, computed with numpy, in float64 or by finite differences."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sparsegen.training import augment, terms
from sparsegen.training.augment import Augment, nothing
from sparsegen.training.recipes import LOW_DATA, PENALTIES, RECIPES, recipe_of
from sparsegen.training.terms import Batch, LossInputs
from sparsegen.zoo.regularizers import REGULARIZERS
from sparsegen.zoo.residual import uniform_prior
from sparsegen.zoo.spec import ModelSpec

scores = st.lists(st.floats(-90, 90), min_size=1, max_size=5)


class Made(nn.Module):
    """A fake generator that returns given images and codes."""

    def __init__(self, images: Tensor, codes: tuple[Tensor, ...] = ()):
        super().__init__()
        self.images, self.codes = nn.Parameter(images), codes

    def forward(self, z: Tensor, labels: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.images * 1, self.codes


class Scorer(nn.Module):
    """A fake discriminator that applies a function and records its inputs."""

    def __init__(self, score: Callable[[Tensor], Tensor] = lambda images: images.flatten(1).sum(1)):
        super().__init__()
        self.score, self.shown = score, []

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        self.shown.append((images, labels))
        return self.score(images)


def forward(
    real: Tensor,
    fake: Tensor,
    trains: str = "generator",
    *,
    discriminator: nn.Module | None = None,
    codes: tuple[Tensor, ...] = (),
    augmented: Augment = nothing,
    **options: object,
) -> LossInputs:
    networks = {"generator": Made(fake, codes), "discriminator": discriminator or Scorer()}
    batch = {"labels": None, "z": torch.zeros(len(fake), 1), "random": torch.Generator().manual_seed(0)}
    more = {"encoder": options.pop("encoder")} if "encoder" in options else {}
    return LossInputs(Batch({**networks, **more}, real, **{**batch, **options}), trains, augmented)


def pixels(values: list[float]) -> Tensor:
    """Returns images of one pixel, which is their score."""
    return torch.tensor(values).view(-1, 1, 1, 1)


def log_sigmoid(score: float) -> float:
    return -math.log1p(math.exp(-score)) if score > 0 else score - math.log1p(math.exp(score))


def sigmoid(score: float) -> float:
    return math.exp(log_sigmoid(score))


LOSSES = {
    terms.cross_entropy: lambda real, fake: (
        np.mean([-log_sigmoid(x) for x in real]) + np.mean([-log_sigmoid(-x) for x in fake])
    ),
    terms.non_saturating: lambda real, fake: np.mean([-log_sigmoid(x) for x in fake]),
    terms.hinge: lambda real, fake: (
        np.mean([max(0, 1 - x) for x in real]) + np.mean([max(0, 1 + x) for x in fake])
    ),
    terms.wasserstein: lambda real, fake: np.mean(fake) - np.mean(real),
    terms.negative_score: lambda real, fake: -np.mean(fake),
    terms.score_matching: lambda real, fake: abs(
        np.mean([sigmoid(x) for x in real]) - np.mean([sigmoid(x) for x in fake])
    ),
}


@pytest.mark.parametrize("term", LOSSES, ids=lambda term: term.__name__)
@given(real=scores, fake=scores)
@settings(max_examples=40, deadline=None)
def test_a_loss_of_scores_is_its_formula(term: terms.Term, real: list[float], fake: list[float]) -> None:
    found = term(forward(pixels(real), pixels(fake))).item()
    assert found == pytest.approx(LOSSES[term](real, fake), rel=1e-4, abs=1e-5)


def test_a_weight_multiplies_its_term() -> None:
    assert terms.Weighted(3, terms.negative_score)(forward(pixels([1.0]), pixels([2.0]))).item() == -6


def test_the_l1_penalty_is_the_mean_magnitude_of_gamma_1() -> None:
    codes = (torch.tensor([[[[-2.0, 0.0], [1.0, 3.0]]]]), torch.full((1, 1, 2, 2), 100.0))
    assert (
        terms.CodeL1(2.0)(forward(pixels([0.0]), pixels([0.0]), codes=codes)).item()
        == 2 * (2 + 0 + 1 + 3) / 4
    )


# ---- what one update sees ----


@pytest.mark.parametrize("trains", ["generator", "discriminator", "encoder"])
def test_only_the_generators_phase_has_gradients_of_the_fakes(trains: str) -> None:
    found = forward(pixels([0.0]), pixels([0.0]), trains)
    assert found.fake.requires_grad == found.fake_scores.requires_grad == (trains == "generator")


@pytest.mark.parametrize("differentiable", [True, False])
def test_a_batch_is_generated_once_and_with_a_graph_only_if_it_is_differentiable(
    differentiable: bool,
) -> None:
    found = forward(pixels([0.0]), pixels([0.0]), differentiable=differentiable)
    generator = found.batch.networks["generator"].requires_grad_(False)  # it stands still in this phase
    image, _ = found.batch.generated
    assert image.requires_grad == differentiable and not generator.images.requires_grad
    generator.requires_grad_(True)  # and learns in the next one, from the same images
    fake = LossInputs(found.batch, "generator").fake
    assert fake is image
    if differentiable:
        fake.sum().backward()
        assert generator.images.grad.item() == 1


def test_the_input_of_the_discriminator_is_each_augmented_image_with_its_label() -> None:
    labels = torch.tensor([3, 1])
    real, fake = torch.rand(2, 3, 8, 8), torch.rand(4, 3, 8, 8)
    scorer = Scorer()
    found = forward(
        real, fake, discriminator=scorer, labels=labels, augmented=lambda images, random: images.flip(3)
    )
    assert found.real_scores.shape == (2,) and found.fake_scores.shape == (4,)
    (seen_real, real_labels), (seen_fake, fake_labels) = scorer.shown
    assert torch.equal(seen_real, real.flip(3)) and torch.equal(seen_fake, fake.flip(3))
    assert real_labels.tolist() == [3, 1] and fake_labels.tolist() == [3, 1, 3, 1]


# ---- gradient penalty ----


@given(w=st.lists(st.floats(-3, 3), min_size=12, max_size=12), norm=st.floats(0.5, 5))
@settings(max_examples=40, deadline=None)
def test_the_penalty_of_a_linear_discriminator_depends_on_the_norm_of_its_weights(
    w: list[float], norm: float
) -> None:
    if np.linalg.norm(w) < 1e-2:
        return
    weight = nn.Parameter(torch.tensor(w))
    linear = Scorer(lambda images: images.flatten(1) @ weight)
    found = forward(torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2), "discriminator", discriminator=linear)
    penalty = terms.GradientPenalty(10, norm)(found)
    length = np.linalg.norm(w)
    assert penalty.item() == pytest.approx(10 * (length / norm - 1) ** 2, rel=1e-4, abs=1e-5)
    penalty.backward()
    wanted = 20 * (length / norm - 1) / norm * np.array(w) / length
    np.testing.assert_allclose(weight.grad.numpy(), wanted, rtol=1e-3, atol=1e-4)


def test_the_penalty_is_computed_at_a_random_point_between_each_pair() -> None:
    real, fake, scorer = torch.rand(50, 3, 4, 4), torch.rand(100, 3, 4, 4) + 2, Scorer()
    terms.GradientPenalty(1)(forward(real, fake, "discriminator", discriminator=scorer))
    (between, _) = scorer.shown[-1]
    shares = (between.detach() - real) / (fake[:50] - real)
    assert (shares.flatten(1).std(1) < 1e-5).all()
    shares = shares.flatten(1).mean(1)
    assert ((shares >= 0) & (shares <= 1)).all() and shares.unique().numel() == 50
    assert shares.min() < 0.2 and shares.max() > 0.8


def test_the_penalty_and_its_gradient_agree_with_finite_differences() -> None:
    torch.manual_seed(3)
    conv, head = nn.Conv2d(2, 5, 3, padding=1), nn.Linear(5 * 9, 1)

    def score(images: Tensor) -> Tensor:
        return head(torch.tanh(conv(images)).flatten(1))[:, 0]

    scorer = Scorer(score)
    found = forward(torch.randn(3, 2, 3, 3), torch.randn(3, 2, 3, 3), "discriminator", discriminator=scorer)
    penalty = terms.GradientPenalty(10, 0.7)(found)
    penalty.backward()
    slopes = conv.weight.grad[:2, 0].double(), head.weight.grad[0, :4].double()
    x = scorer.shown[-1][0].detach().double()
    conv.double(), head.double()

    @torch.no_grad()
    def naive(h: float = 1e-5) -> float:
        steps = h * torch.eye(18, dtype=torch.float64).view(18, 1, 2, 3, 3)
        ahead, behind = ((score((x + sign * steps).flatten(0, 1))).view(18, 3) for sign in (1, -1))
        return 10 * (((ahead - behind) / (2 * h)).norm(dim=0) / 0.7 - 1).square().mean().item()

    assert penalty.item() == pytest.approx(naive(), rel=1e-5)
    for values, slope in ((conv.weight.data[:2, 0], slopes[0]), (head.weight.data[0, :4], slopes[1])):
        for index in np.ndindex(*values.shape):
            kept, sides = values[index].item(), []
            for sign in (1, -1):
                values[index] = kept + sign * 1e-4
                sides.append(naive())
            values[index] = kept
            assert slope[index].item() == pytest.approx((sides[0] - sides[1]) / 2e-4, rel=1e-3, abs=1e-4)


# ---- mode seeking, consistency ----


def test_mode_seeking_is_the_distance_in_z_over_that_in_pixels() -> None:
    fake, z = torch.randn(6, 3, 4, 4), torch.randn(6, 5)
    found = terms.ModeSeeking(2.0)(forward(torch.zeros(3, 3, 4, 4), fake, z=z))
    images, noise = fake.double().numpy(), z.double().numpy()
    ratio = np.mean([np.abs(images[i + 3] - images[i]) for i in range(3)]) / np.mean(
        [np.abs(noise[i + 3] - noise[i]) for i in range(3)]
    )
    assert found.item() == pytest.approx(2 / (ratio + 1e-5), rel=1e-5)
    alike = forward(torch.zeros(1, 1, 1, 1), torch.zeros(2, 1, 1, 1), z=torch.tensor([[0.0], [1.0]]))
    assert terms.ModeSeeking(1)(alike).item() == pytest.approx(1e5)


def test_consistency_is_the_mean_square_of_the_score_differences() -> None:
    real = torch.randn(5, 3, 4, 4)
    found = forward(real, real, "discriminator", augmented=lambda images, random: images * 3)
    sums = real.flatten(1).sum(1).double().numpy()
    assert terms.Consistency(10, terms.untouched)(found).item() == pytest.approx(
        10 * np.mean((3 * sums - sums) ** 2), rel=1e-4
    )
    other = terms.Consistency(2, lambda found: found.real + 1)
    assert other(found).item() == pytest.approx(2 * 48**2, rel=1e-4)


def test_moved_flips_and_shifts_the_augmented_images_by_at_most_an_eighth() -> None:
    found = forward(torch.rand(12, 1, 16, 16) + 1, torch.zeros(1, 1, 16, 16), augmented=augment.cutout)
    seen = set()
    for image, moved in zip(found.real, terms.moved(found), strict=True):
        padded = F.pad(torch.stack([image, image.flip(2)]), (2, 2, 2, 2))
        matches = [
            (flipped, row, column)
            for flipped in range(2)
            for row in range(5)
            for column in range(5)
            if torch.equal(padded[flipped, :, row : row + 16, column : column + 16], moved)
        ]
        assert len(matches) == 1
        seen.update(matches)
    assert {flipped for flipped, *_ in seen} == {0, 1} and len(seen) > 5


# ---- rotations ----


class Turner(Scorer):
    """A fake discriminator whose features are the pixels and whose rotation head is linear."""

    def __init__(self, size: int):
        super().__init__()
        self.rotation_head = nn.Linear(size, 5)

    def rotation_logits(self, images: Tensor) -> Tensor:
        return self.rotation_head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        self.shown.append((images, None))
        return images.flatten(1)


def cross_entropies(turner: Turner, images: Tensor, classes: list[int]) -> float:
    logits = (
        (images.flatten(1) @ turner.rotation_head.weight.T + turner.rotation_head.bias)
        .detach()
        .double()
        .numpy()
    )
    return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[range(len(classes)), classes]))


def turn_of(image: Tensor, original: Tensor) -> int:
    turns = [t for t in range(4) if np.array_equal(np.rot90(original.numpy(), t, (1, 2)), image.numpy())]
    assert len(turns) == 1
    return turns[0]


def test_rotated_images_are_numpys_quarter_turns() -> None:
    images, turns = torch.randn(8, 2, 5, 5), torch.tensor([0, 1, 2, 3, 3, 1, 0, 2])
    for image, turn, made in zip(images, turns.tolist(), terms.rotated(images, turns), strict=True):
        assert np.array_equal(made.numpy(), np.rot90(image.numpy(), turn, (1, 2)))


def test_rotation_classification_has_four_rotations_of_real_images_and_unrotated_generated_ones() -> None:
    real, fake, turner = torch.randn(200, 1, 3, 3), torch.randn(200, 1, 3, 3), Turner(9)
    loss = terms.RotationClassification(0.5)(forward(real, fake, "discriminator", discriminator=turner))
    shown, _ = turner.shown[-1]
    classes = [
        4 if torch.equal(shown[i], fake[i]) else turn_of(shown[i].detach(), real[i]) for i in range(200)
    ]
    assert min(np.bincount(classes, minlength=5)) > 20  # of 40; 20 are more than 3 deviations away
    assert loss.item() == pytest.approx(0.5 * cross_entropies(turner, shown, classes), rel=1e-5)


def test_rotation_matching_is_the_difference_of_the_cross_entropies() -> None:
    real, fake, turner = torch.randn(100, 1, 3, 3), torch.randn(100, 1, 3, 3) * 2, Turner(9)
    loss = terms.RotationMatching(0.1)(forward(real, fake, discriminator=turner))
    (shown_fake, _), (shown_real, _) = turner.shown
    turns = [turn_of(shown_real[i], real[i]) for i in range(100)]
    assert turns == [turn_of(shown_fake[i].detach(), fake[i]) for i in range(100)]
    assert min(np.bincount(turns, minlength=4)) > 10
    wanted = cross_entropies(turner, shown_fake, turns) - cross_entropies(turner, shown_real, turns)
    assert loss.item() == pytest.approx(0.1 * abs(wanted), rel=1e-4)


def test_a_discriminator_without_features_or_a_rotation_head_is_refused_by_name() -> None:
    inputs = forward(torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 3, 3))
    with pytest.raises(TypeError, match="Scorer has no rotation head"):
        terms.RotationMatching(0.1)(inputs)
    with pytest.raises(TypeError, match="Scorer has no features"):
        inputs.discriminator_features(inputs.real)


# ---- reconstructions of encoded images ----


class Doubling(nn.Module):
    """A fake generator of images that are twice the noise, or an encoder that multiplies the image by a weight."""

    def __init__(self, encodes: bool = False):
        super().__init__()
        self.encodes, self.weight = encodes, nn.Parameter(torch.tensor(0.5 if encodes else 2.0))

    def forward(self, given: Tensor, labels: Tensor | None = None) -> object:
        made = self.weight * given
        return made.flatten(1) if self.encodes else (made[:, :, None, None], ())


def encoded(real: Tensor, z: Tensor, trains: str, fraction: float = 0.0) -> LossInputs:
    scorer = Scorer(lambda images: images.flatten(1).sum(1))
    scorer.features = lambda images: images**2
    networks = {"generator": Doubling(), "discriminator": scorer, "encoder": Doubling(encodes=True)}
    return LossInputs(Batch(networks, real, None, z, torch.Generator(), fraction), trains)


@pytest.mark.parametrize(
    ("fraction", "weight"), [(0, 0.95), (0.5, 0.95), (0.625, 0.975), (0.75, 1), (0.99, 1)]
)
def test_the_weight_of_reconstructions_in_the_hinge_falls_to_zero(fraction: float, weight: float) -> None:
    real, z = torch.tensor([0.3, -0.7, 2.0]).view(3, 1, 1, 1), torch.tensor([[0.1], [-0.4], [1.5]])
    found = encoded(real, z, "discriminator", fraction)
    found.batch.networks["generator"].weight.data.fill_(3.0)  # so that 1.5 x is made again
    wanted = (
        weight * np.mean([1 - sigmoid(x) for x in (0.3, -0.7, 2.0)])
        + (1 - weight) * np.mean([1 - sigmoid(1.5 * x) for x in (0.3, -0.7, 2.0)])
        + np.mean([1 + sigmoid(3 * x) for x in (0.1, -0.4, 1.5)])
    )
    assert terms.reconstruction_hinge(found).item() == pytest.approx(wanted, rel=1e-5)


def test_the_encoders_loss_is_its_formula() -> None:
    real, z = torch.randn(4, 3, 1, 1), torch.randn(4, 3)
    found = encoded(real, z, "encoder")
    found.batch.networks["encoder"].weight.data.fill_(0.4)
    x, noise = real.double().flatten(1).numpy(), z.double().numpy()
    again, made = (0.8 * x) ** 2, (2 * noise) ** 2
    uniform = np.vectorize(lambda value: 2 * NormalDist().cdf(value) - 1)
    in_noise = (uniform(0.4 * x) - uniform(noise)).mean()
    scale = math.sqrt(3 / 3)
    wanted = ((x**2 - again) ** 2).mean() + 0.7 * ((again - made).mean() - scale * in_noise) ** 2
    loss = terms.Encoding(0.7, uniform_prior)(found)
    assert loss.item() == pytest.approx(wanted, rel=1e-4)
    loss.backward()
    assert found.batch.networks["encoder"].weight.grad is not None


def test_the_distance_in_noise_is_scaled_by_the_number_of_features() -> None:
    real, z = torch.zeros(2, 3, 1, 1), torch.ones(2, 3)
    found = encoded(real, z, "encoder")
    found.discriminator.features = lambda images: images.repeat(1, 4, 1, 1)  # 12 features of 3 noises
    # Apart by -2 in features and -(2 Φ(1) - 1) in noise.
    wanted = (-2 + math.sqrt(3 / 12) * (2 * NormalDist().cdf(1) - 1)) ** 2
    assert terms.Encoding(1, uniform_prior)(found).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("trains", ["encoder", "discriminator"])
def test_reconstructions_have_gradients_only_for_the_encoder(trains: str) -> None:
    found = encoded(torch.randn(3, 2, 1, 1), torch.randn(3, 2), trains)
    torch.testing.assert_close(found.reconstructed, found.batch.real)
    assert found.reconstructed.requires_grad == (trains == "encoder")


def test_reconstructions_do_not_change_the_running_statistics_of_the_generator() -> None:
    spec = ModelSpec.parse("ssgan-8.ml")
    networks = {"generator": spec.generator(), **spec.auxiliary_networks()}
    batch = Batch(networks, torch.rand(4, 3, 32, 32), None, torch.randn(4, 128), torch.Generator())
    generator = networks["generator"]

    def statistics() -> list[Tensor]:
        return [value.clone() for key, value in generator.named_buffers() if "running" in key]

    before = statistics()
    _ = LossInputs(batch, "discriminator").reconstructed
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(), strict=True))
    _ = batch.generated
    assert not any(torch.equal(a, b) for a, b in zip(before, statistics(), strict=True))


# ---- recipes ----


ADVERSARIAL = {  # the losses of discriminator and generator, by name
    "cross-entropy": ({"cross_entropy": terms.cross_entropy}, {"non_saturating": terms.non_saturating}),
    "hinge": ({"hinge": terms.hinge}, {"negative_score": terms.negative_score}),
    "wasserstein": (
        {"wasserstein": terms.wasserstein, "gradient_penalty": terms.GradientPenalty(10, 1.0)},
        {"negative_score": terms.negative_score},
    ),
    "both copies": (  # Mao et al. (2019)
        {"cross_entropy": terms.Weighted(2, terms.cross_entropy)},
        {"non_saturating": terms.Weighted(2, terms.non_saturating), "mode_seeking": terms.ModeSeeking(1)},
    ),
    "multi-class": (  # Tran et al. (2019), but for the penalty's target: 1 of images in [0, 1]
        {
            "reconstruction_hinge": terms.reconstruction_hinge,
            "rotation_classification": terms.RotationClassification(0.5),
            "gradient_penalty": terms.GradientPenalty(0.5, 0.5),
        },
        {"score_matching": terms.score_matching, "rotation_matching": terms.RotationMatching(0.1)},
    ),
    "consistent hinge": (  # Zhao et al. (2020)
        {"hinge": terms.hinge, "consistency": terms.Consistency(10, terms.moved)},
        {"negative_score": terms.negative_score},
    ),
}


@pytest.mark.parametrize(
    ("architecture", "loss", "copies", "ema"),
    [
        ("dcgan", "cross-entropy", 1, 0.999),
        ("cgan", "cross-entropy", 1, 0.999),
        ("wgan_gp", "wasserstein", 1, 0.999),
        ("msgan", "both copies", 2, 0.999),
        ("sngan", "hinge", 1, 0.999),
        ("sagan", "hinge", 1, 0.999),
        ("ssgan", "multi-class", 1, 0.999),
        ("biggan", "hinge", 1, 0.9999),
        ("diffcr_biggan", "consistent hinge", 1, 0.9999),
    ],
)
def test_each_row_minimizes_the_losses_of_its_paper(
    architecture: str, loss: str, copies: int, ema: float
) -> None:
    recipe = RECIPES[architecture]
    found = {phase.network: phase.terms for phase in recipe.phases}
    encoding = {"encoder": {"encoding": terms.Encoding(1, uniform_prior)}} if architecture == "ssgan" else {}
    discriminator, generator = ADVERSARIAL[loss]
    assert found == {**encoding, "discriminator": discriminator, "generator": generator}
    assert list(found) == [*encoding, "discriminator", "generator"]  # in this order
    assert (recipe.fakes_per_real, recipe.ema) == (copies, ema)
    augmented = "cutout" if architecture == "diffcr_biggan" else "nothing"
    assert recipe.augment is getattr(augment, augmented)


@pytest.mark.parametrize("architecture", RECIPES)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_a_column_adds_its_penalty_only_to_the_generator(architecture: str, regularizer: str) -> None:
    own = {phase.network: phase.terms for phase in RECIPES[architecture].phases}
    got = {phase.network: phase.terms for phase in recipe_of(ModelSpec.of(architecture, regularizer)).phases}
    more = PENALTIES["l1"] if regularizer == "l1" else {}
    assert got == {**own, "generator": {**own["generator"], **more}}


def test_with_a_share_of_the_data_diffcr_biggan_also_shifts_and_uses_unaugmented_images_for_consistency() -> (
    None
):
    spec = ModelSpec.parse("diffcr_biggan.baseline")
    assert recipe_of(spec, 0.1) != recipe_of(spec)
    images = torch.ones(64, 1, 16, 16)
    for share, columns in ((1.0, 64), (0.1, 40)):
        recipe = recipe_of(spec, share)
        made = recipe.augment(images, torch.Generator().manual_seed(0))
        whole = (
            (made != 0).any(2).all(2).flatten()
        )  # no shift brings in an empty column, and no hole is as high
        assert whole.sum() == 64 if columns == 64 else whole.sum() < columns
        (consistency,) = (phase.terms["consistency"] for phase in recipe.phases if phase.network[0] == "d")
        assert consistency.weight == 10
        assert consistency.other is (terms.moved if share == 1 else terms.untouched)
    assert recipe_of(ModelSpec.parse("biggan.baseline"), 0.1) == RECIPES["biggan"]
    assert set(LOW_DATA) <= set(RECIPES)

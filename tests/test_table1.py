import pytest
import torch

from sparsegen.reproduce import paper
from sparsegen.zoo.architectures import ARCHITECTURES
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.regularizers import REGULARIZERS
from sparsegen.zoo.spec import ModelSpec, create_model

cells = pytest.mark.parametrize(
    ("architecture", "regularizer"), [(row, column) for row in ARCHITECTURES for column in REGULARIZERS]
)


def noise(generator: Generator, count: int) -> tuple[torch.Tensor, ...]:
    """Returns z, and labels if the generator is conditional."""
    return torch.randn(count, generator.z_dim), *[torch.arange(count)][: generator.classes]


@cells
def test_every_cell_of_table_1_draws_images_from_projected_codes(architecture: str, regularizer: str) -> None:
    generator = create_model(architecture, regularizer, width=8)
    image, codes = generator(*noise(generator, 2))
    assert image.shape == (2, 3, 32, 32)
    assert image.abs().max() <= 1
    assert [code.shape[1:] for code in codes] == list(generator.code_shapes)
    for code, project in zip(codes, generator.projections, strict=True):
        assert torch.equal(project(code), code)


@cells
def test_a_projected_code_has_at_most_k_non_zeros_per_unit(architecture: str, regularizer: str) -> None:
    generator = create_model(architecture, regularizer, width=8)
    _, codes = generator(*noise(generator, 4))
    for k_range in generator.k_ranges:
        support = codes[k_range.level - 1] != 0
        per_unit = support.sum(1) if k_range.unit == "needle" else support.flatten(1).sum(1)
        assert per_unit.max() <= k_range.k
        assert k_range.k == k_range.limit // 4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_discriminator_scores_each_image_with_its_label(architecture: str) -> None:
    discriminator = ModelSpec.of(architecture, "ml", 8).auxiliary_networks()["discriminator"].eval()
    labels = [torch.tensor([1, 2, 1])] if ARCHITECTURES[architecture].classes else []
    image = torch.randn(1, 3, 32, 32)
    scores = discriminator(image.expand(3, -1, -1, -1), *labels)
    assert scores.shape == (3,)
    torch.testing.assert_close(scores[0], scores[2])
    assert torch.allclose(scores[0], scores[1], rtol=1e-6) == (not labels)
    torch.testing.assert_close(discriminator(image, *[some[1:2] for some in labels])[0], scores[1])
    if labels:
        with pytest.raises(ValueError, match="give labels, one per image"):
            discriminator(image)


COUNTS = {  # of generator, discriminator and encoder: architectures.md, section 4.10
    "dcgan": (3_825_667, 2_637_441),
    "cgan": (3_531_395, 2_658_689),
    "wgan_gp": (3_813_379, 5_860_865),
    "msgan": (3_531_395, 2_658_689),
    "sngan": (3_813_379, 5_860_865),
    "sagan": (4_386_308, 1_075_586),
    "ssgan": (4_276_739, 1_144_338, 4_273_024),
    "biggan": (4_304_387, 4_207_361),
    "diffcr_biggan": (4_304_387, 4_207_361),
    "wgan_gp_resnet": (4_276_739, 1_053_825),
    "sngan_resnet": (4_276_739, 1_053_825),
    # Layer by layer: dense 528,384; blocks 1,256,192, 483,200 and 122,816 with D2; norm 128; D1 1,731.
    "biggan_tapered": (2_392_451, 265_409),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_full_width_networks_have_the_parameters_of_the_tables(architecture: str) -> None:
    spec = ModelSpec.of(architecture, "ml")
    with torch.device("meta"):
        networks = spec.generator(), *spec.auxiliary_networks().values()
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert tuple(counts) == COUNTS[architecture]


def test_the_discriminator_of_ssgan_keeps_32_channels_at_any_width() -> None:
    for atoms, channels in ((8, 32), (64, 32), (128, 64)):
        discriminator = ModelSpec.of("ssgan", "ml", atoms).auxiliary_networks()["discriminator"]
        assert discriminator.features(torch.zeros(1, 3, 32, 32)).shape == (1, channels, 8, 8)


CODES = {  # of Γ1 and Γ2, and the size of an atom of D1, D2 and D_eff: architectures.md, section 3
    "dcgan": ((128, 16, 16), (128, 16, 16), 4, 3, 8),
    "cgan": ((128, 16, 16), (256, 8, 8), 4, 4, 10),
    "msgan": ((128, 16, 16), (256, 8, 8), 4, 4, 10),
    "wgan_gp": ((64, 32, 32), (128, 16, 16), 3, 4, 6),
    "sngan": ((64, 32, 32), (128, 16, 16), 3, 4, 6),
    **dict.fromkeys(
        ("sagan", "ssgan", "biggan", "diffcr_biggan", "wgan_gp_resnet", "sngan_resnet"),
        ((256, 32, 32), (256, 32, 32), 3, 3, 5),
    ),
    "biggan_tapered": ((64, 32, 32), (64, 32, 32), 3, 3, 5),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_codes_and_dictionaries_have_the_sizes_of_the_tables(architecture: str) -> None:
    gamma_1, gamma_2, d1, d2, d_eff = CODES[architecture]
    generator = create_model(architecture, "ml")
    assert generator.code_shapes == (gamma_1, gamma_2)
    assert generator.dictionary(1).shape == (gamma_1[0], 3, d1, d1)
    assert generator.dictionary(2).shape == (gamma_2[0], gamma_1[0], d2, d2)
    assert generator.effective_dictionary().shape == (gamma_2[0], 3, d_eff, d_eff)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_columns_share_their_weights(architecture: str) -> None:
    states = [create_model(architecture, column, width=8).state_dict() for column in REGULARIZERS]
    for state in states[1:]:
        assert {key: value.shape for key, value in state.items()} == {
            key: value.shape for key, value in states[0].items()
        }


@pytest.mark.parametrize("name", ["dcgan.ml", "dcgan-64.l0", "dcgan-16.baseline"])
def test_a_name_states_architecture_width_and_regularizer(name: str) -> None:
    assert ModelSpec.parse(name).name == name
    assert ModelSpec.parse("dcgan-128.ml").name == "dcgan.ml"


def test_a_row_may_have_a_hyphen_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "wgan-gp", ARCHITECTURES["dcgan"])
    for name in ("wgan-gp.ml", "wgan-gp-64.ml"):
        assert ModelSpec.parse(name).architecture == "wgan-gp"
        assert ModelSpec.parse(name).name == name


@pytest.mark.parametrize("k", [(), (1,), (1, 2, 3)])
def test_a_cell_needs_one_k_per_projected_level(k: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="2 in ml"):
        ModelSpec.of("dcgan", "ml", 8, k)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dcgna.ml", "did you mean 'dcgan'"),
        ("dcgan.lo", "there are baseline, l0_inf, l0, l1, ml"),
        ("dcgan", "architecture.regularizer"),
        ("dcgan-wide.ml", "did you mean 'dcgan'"),
        ("dcgan-2.ml", "from 4 to 1024; got 2"),
        ("dcgan.ml.projekted", "no recipe 'projekted': there are paper, projected; did you mean 'projected'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSpec.parse(name)


def test_the_paper_has_a_figure_for_each_cell_of_its_own_rows() -> None:
    rows = ARCHITECTURES.keys() - {"wgan_gp_resnet", "sngan_resnet", "biggan_tapered"}
    assert {row: set(figures) for row, figures in paper.FID.items()} == {
        row: set(REGULARIZERS) for row in rows
    }


def test_a_recipe_is_the_last_part_of_a_name_unless_it_is_the_papers() -> None:
    spec = ModelSpec.parse("biggan-64.ml.projected")
    assert (spec.architecture, spec.atoms, spec.regularizer, spec.recipe) == ("biggan", 64, "ml", "projected")
    assert spec.name == "biggan-64.ml.projected"
    config = {
        "architecture": "biggan",
        "regularizer": "ml",
        "atoms": 64,
        "k": [16, 16],
    }  # as older ones have it
    assert ModelSpec.from_config(config).name == "biggan-64.ml" == ModelSpec.parse("biggan-64.ml.paper").name
    assert ModelSpec.from_config(config | {"recipe": "projected"}).recipe == "projected"


@pytest.mark.parametrize(("row", "pooling"), [("wgan_gp_resnet", torch.mean), ("sngan_resnet", torch.sum)])
def test_features_are_averaged_or_summed_before_they_are_scored(row: str, pooling: object) -> None:
    discriminator = ModelSpec.of(row, "ml", 8).auxiliary_networks()["discriminator"].eval()
    discriminator.head.linear.bias.data.fill_(0.3)
    images = torch.randn(2, 3, 32, 32)
    scores = pooling(discriminator.features(images), (2, 3)) @ discriminator.head.linear.weight.T
    torch.testing.assert_close(discriminator(images), scores.flatten() + 0.3)


def test_only_the_scores_of_ssgan_start_at_zero() -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(4, 3, 32, 32) * 2 - 1, torch.arange(4)
    for row in ARCHITECTURES:
        spec = ModelSpec.of(row, "baseline", 8)
        scores = spec.auxiliary_networks()["discriminator"](images, labels)
        assert (scores == 0).all() if row == "ssgan" else (scores != 0).all()

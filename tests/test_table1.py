import pytest
import torch

from sparsegen.zoo.table1 import ARCHITECTURES, PAPER_FID, REGULARIZERS, ModelSpec, build

cells = pytest.mark.parametrize(
    ("architecture", "regularizer"), [(row, column) for row in ARCHITECTURES for column in REGULARIZERS]
)


@cells
def test_every_cell_of_table_1_draws_images_from_projected_codes(architecture: str, regularizer: str) -> None:
    generator = build(architecture, regularizer, atoms=8)
    image, codes = generator(torch.randn(2, generator.z_dim))
    assert image.shape == (2, 3, 32, 32)
    assert image.abs().max() <= 1
    assert [code.shape[1:] for code in codes] == list(generator.code_shapes)
    for code, project in zip(codes, generator.projections, strict=True):
        assert torch.equal(project(code), code)


@cells
def test_a_projected_code_holds_at_most_k_non_zeros_a_unit(architecture: str, regularizer: str) -> None:
    generator = build(architecture, regularizer, atoms=8)
    _, codes = generator(torch.randn(4, generator.z_dim))
    for dial in generator.dials:
        support = codes[dial.level - 1] != 0
        per_unit = support.sum(1) if dial.unit == "needle" else support.flatten(1).sum(1)
        assert per_unit.max() <= dial.k
        assert dial.k == dial.limit // 4


@cells
def test_the_discriminator_scores_each_image_once(architecture: str, regularizer: str) -> None:
    spec = ModelSpec.of(architecture, regularizer, 8)
    assert spec.discriminator()(torch.zeros(3, 3, 32, 32)).shape == (3,)


def test_the_full_width_networks_have_the_parameters_of_the_tables() -> None:
    spec = ModelSpec.parse("dcgan.ml")
    counts = [
        sum(p.numel() for p in network.parameters()) for network in (spec.generator(), spec.discriminator())
    ]
    assert counts == [
        3_825_667,
        2_637_441,
    ]  # design A with z of 128, counted on paper: layers, norms, one bias


def test_all_columns_share_their_weights() -> None:
    states = [build("dcgan", column, atoms=8).state_dict() for column in REGULARIZERS]
    for state in states[1:]:
        assert {key: value.shape for key, value in state.items()} == {
            key: value.shape for key, value in states[0].items()
        }


@pytest.mark.parametrize("name", ["dcgan.ml", "dcgan-64.l0", "dcgan-16.baseline"])
def test_a_name_says_architecture_width_and_regularizer(name: str) -> None:
    assert ModelSpec.parse(name).name == name
    assert ModelSpec.parse("dcgan-128.ml").name == "dcgan.ml"


def test_a_row_may_have_a_hyphen_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "wgan-gp", ARCHITECTURES["dcgan"])
    for name in ("wgan-gp.ml", "wgan-gp-64.ml"):
        assert ModelSpec.parse(name).architecture == "wgan-gp"
        assert ModelSpec.parse(name).name == name


@pytest.mark.parametrize("k", [(), (1,), (1, 2, 3)])
def test_a_cell_takes_one_k_a_projected_level(k: tuple[int, ...]) -> None:
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
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSpec.parse(name)


def test_the_paper_has_a_figure_for_each_cell() -> None:
    assert {row: set(figures) for row, figures in PAPER_FID.items()} == {
        row: set(REGULARIZERS) for row in ARCHITECTURES
    }

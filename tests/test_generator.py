import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import warmed
from torch import nn
from torch.nn import functional as F

from sparsegen.zoo import noise
from sparsegen.zoo.generator import Generator
from sparsegen.zoo.registry import get_architecture
from sparsegen.zoo.spec import create_model


def test_one_unit_of_gamma_1_adds_one_atom_of_d1(tiny_ml: Generator) -> None:
    conv, atoms = tiny_ml.stages[0].conv, tiny_ml.dictionary(1)
    assert create_model("dcgan", "ml").dictionary(1).shape == (128, 3, 4, 4)
    for atom in range(8):
        impulse = torch.zeros(1, 8, 16, 16)
        impulse[0, atom, 5, 7] = 1
        image = F.conv_transpose2d(impulse, conv.weight, stride=2, padding=1)[0]
        assert torch.equal(image[:, 9:13, 13:17], atoms[atom])  # 2·5 - 1, 2·7 - 1
        assert image.count_nonzero() == atoms[atom].count_nonzero()


def test_one_unit_of_gamma_2_adds_one_atom_of_d2(tiny_ml: Generator) -> None:
    conv, atoms = tiny_ml.stages[1].conv, tiny_ml.dictionary(2)
    assert create_model("dcgan", "ml").dictionary(2).shape == (128, 128, 3, 3)
    for atom in range(8):
        impulse = torch.zeros(1, 8, 16, 16)
        impulse[0, atom, 5, 7] = 1
        assert torch.equal(conv(impulse)[0, :, 4:7, 6:9], atoms[atom])


def test_an_effective_atom_is_a_unit_of_gamma_2_through_both_dictionaries(tiny_ml: Generator) -> None:
    d1, d2 = tiny_ml.stages[0].conv, tiny_ml.stages[1].conv
    atoms = tiny_ml.effective_dictionary()
    assert atoms.shape == (8, 3, 8, 8)
    assert create_model("dcgan", "ml").effective_dictionary().shape == (128, 3, 8, 8)
    for atom in range(8):
        impulse = torch.zeros(1, 8, 16, 16)
        impulse[0, atom, 5, 7] = 1
        image = F.conv_transpose2d(d2(impulse), d1.weight, stride=2, padding=1)[0]
        torch.testing.assert_close(image[:, 7:15, 11:19], atoms[atom])
        assert image.abs().sum().item() == pytest.approx(float(atoms[atom].abs().sum()), rel=1e-5)


def test_a_generator_without_a_spec_is_refused_with_the_remedy() -> None:
    body = get_architecture("dcgan").generator
    with pytest.raises(RuntimeError, match="build it with sparsegen.create_model"):
        _ = body.build(8, 128, 0, 32, [nn.Identity(), nn.Identity()]).spec


def test_the_image_is_the_code_times_the_dictionary(tiny_ml: Generator) -> None:
    image, (gamma_1, _) = tiny_ml(torch.randn(2, 128))
    atoms, bias = tiny_ml.dictionary(1), tiny_ml.stages[0].conv.bias
    canvas = torch.zeros(2, 3, 34, 34)
    for row in range(16):
        for column in range(16):
            patch = torch.einsum("ba,acij->bcij", gamma_1[:, :, row, column], atoms)
            canvas[:, :, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4] += patch
    naive = torch.tanh(canvas[:, :, 1:33, 1:33] + bias[:, None, None])
    torch.testing.assert_close(image, naive, rtol=1e-4, atol=1e-6)


def test_synthesis_from_any_level_reproduces_the_image(tiny_ml: Generator) -> None:
    image, codes = tiny_ml(torch.randn(3, 128))
    for given in (codes[0], codes, (None, codes[1])):
        assert torch.equal(tiny_ml.synthesize(given), image)


def test_synthesis_does_not_project_an_edited_code(tiny_ml: Generator) -> None:
    dense = torch.randn(1, 8, 16, 16)
    assert torch.equal(tiny_ml.synthesize(dense), tiny_ml.stages[0](dense))


@pytest.mark.parametrize("codes", [(), (None, None), torch.zeros(1, 9, 16, 16), torch.zeros(8, 16, 16)])
def test_synthesis_names_the_expected_shape(tiny_ml: Generator, codes: object) -> None:
    with pytest.raises(ValueError, match="Γ1"):
        tiny_ml.synthesize(codes)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (None, "codes must be a tensor, Γ1, or a sequence.*got NoneType"),
        (np.zeros((1, 8, 16, 16)), "codes must be a tensor.*got ndarray"),
        ([np.zeros((1, 8, 16, 16))], r"Γ1 must be a tensor, e.g. torch.from_numpy\(Γ1\); got ndarray"),
        (
            torch.zeros(1, 8, 16, 16, dtype=torch.complex64),
            "Γ1 must be a tensor of real numbers.*got torch.complex64",
        ),
    ],
    ids=["none", "array", "list", "complex"],
)
def test_synthesis_names_the_expected_type(tiny_ml: Generator, codes: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        tiny_ml.synthesize(codes)


def test_real_numbers_of_any_dtype_are_converted_to_that_of_the_generator(tiny_ml: Generator) -> None:
    z = torch.randn(2, 128)
    image, (gamma_1, _) = tiny_ml(z.double())
    assert torch.equal(image, tiny_ml(z)[0]) and torch.equal(image, tiny_ml.synthesize(gamma_1.double()))
    with pytest.raises(
        TypeError, match="z must be a tensor of real numbers, e.g. torch.float32; got torch.bool"
    ):
        tiny_ml(z > 0)


def test_a_bypass_is_refused_for_a_code_without_one() -> None:
    generator = create_model("biggan", "ml", width=8).eval()
    z, labels = torch.randn(2, 128), torch.tensor([1, 2])
    _, codes = generator(z, labels)
    bypass = generator.bypass(z, labels)
    with pytest.raises(ValueError, match="the bypass belongs to Γ2: omit it if Γ1 is given"):
        generator.synthesize(codes, bypass)
    with pytest.raises(ValueError, match=r"shape \(2, 8, 32, 32\); got \(1, 8, 32, 32\)"):
        generator.synthesize((None, codes[1]), bypass[:1])
    plain = create_model("dcgan", "ml", width=8).eval()
    code = plain(z)[1][1]
    with pytest.raises(ValueError, match="dcgan is not residual and has no bypass: omit"):
        plain.synthesize((None, code), torch.ones_like(code))


def test_vmap_maps_over_labels() -> None:
    generator, z, labels = (
        create_model("biggan", width=8).eval(),
        torch.randn(3, 128),
        torch.tensor([3, 9, 0]),
    )
    image = torch.func.vmap(lambda z, label: generator(z[None], label[None])[0][0])(z, labels)
    torch.testing.assert_close(image, generator(z, labels)[0])


def test_labels_may_be_of_any_integer_type() -> None:
    generator, z = create_model("cgan", width=8).eval(), torch.randn(2, 100)
    wanted, _ = generator(z, torch.tensor([3, 9]))
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert torch.equal(generator(z, torch.tensor([3, 9], dtype=dtype))[0], wanted)
    with pytest.raises(ValueError, match="labels must be integers"):
        generator(z, torch.tensor([True, False]))
    with pytest.raises(TypeError, match="labels must be a tensor of integers .* got list"):
        generator(z, [3, 9])
    with pytest.raises(TypeError, match="torch.from_numpy.* got ndarray"):
        generator(z.numpy(), torch.tensor([3, 9]))


def test_an_image_depends_only_on_its_seed_and_index(tiny_ml: Generator) -> None:
    many = tiny_ml.sample(70, seed=5)
    assert many.shape == (70, 32, 32, 3)
    assert many.dtype == np.uint8
    few = tiny_ml.sample(3, seed=5)
    # The batch size may change the order of additions: a pixel at a rounding border may move by one.
    assert np.abs(many[:3].astype(int) - few).max() <= 1
    assert np.array_equal(many, tiny_ml.sample(70, seed=5))
    assert not np.array_equal(few, tiny_ml.sample(3, seed=6))


def test_k_changes_the_image_and_is_restored(tiny_ml: Generator) -> None:
    plain = tiny_ml.sample(2)
    assert not np.array_equal(tiny_ml.sample(2, k=1), plain)
    assert np.array_equal(tiny_ml.sample(2), plain)
    assert np.array_equal(tiny_ml.sample(2, k=[2, 2]), plain)
    with tiny_ml.use_k((1, 8)):
        assert [k_range.k for k_range in tiny_ml.k_ranges] == [1, 8]
    with pytest.raises(RuntimeError), tiny_ml.use_k(8):
        raise RuntimeError
    assert [k_range.k for k_range in tiny_ml.k_ranges] == [2, 2]


def test_the_largest_k_equals_the_network_without_projections() -> None:
    ml, baseline = (
        warmed(create_model("dcgan", "ml", width=8)),
        create_model("dcgan", "baseline", width=8).eval(),
    )
    baseline.load_state_dict(ml.state_dict())
    assert np.array_equal(ml.sample(4, k=8), baseline.sample(4))


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"count": 0}, ValueError, "from 1 to 100000; got 0"),
        ({"count": 10**9}, ValueError, "got 1000000000"),
        ({"count": 2.0}, TypeError, "got 2.0"),
        ({"seed": -1}, ValueError, "got -1"),
        ({"seed": 2**64}, ValueError, "from 0 to 18446744073709551615"),
        ({"k": 0}, ValueError, "each needle of Γ1, from 1 to 8; got 0"),
        ({"k": 9}, ValueError, "each needle of Γ1, from 1 to 8; got 9"),
        ({"k": True}, TypeError, "got True"),
        ({"k": "2"}, TypeError, "got '2'"),
        ({"k": b"\1\2"}, TypeError, "got b"),
        ({"k": np.array([1.0, 2.0])}, TypeError, "got 1.0"),
        ({"k": []}, ValueError, "one for each of Γ1, Γ2; got 0"),
        ({"k": [1, 2, 3]}, ValueError, "one for each of Γ1, Γ2; got 3"),
        ({"k": [1, 99]}, ValueError, "Γ2, from 1 to 8; got 99"),
        ({"truncation": "1"}, TypeError, "a number, or None for no bound; got '1'"),
        ({"truncation": True}, TypeError, "got True"),
        ({"truncation": 0.0}, ValueError, "at least 0.05"),
        ({"truncation": float("nan")}, ValueError, "at least 0.05"),
        ({"labels": [1]}, ValueError, "has no labels: omit them"),
    ],
)
def test_invalid_input_is_refused_with_its_limit(
    tiny_ml: Generator, wrong: dict, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        tiny_ml.sample(**{"count": 1, **wrong})


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (10, ValueError, "0 airplane, 1 automobile, .*9 truck, from 0 to 9; got 10"),
        (-1, ValueError, "got -1"),
        ([1, 2], ValueError, "one for each of 3; got 2"),
        ([1, 2, 3.0], TypeError, "0 airplane, .*got 3.0"),
        (True, TypeError, "got True"),
        ("cow", ValueError, "no class 'cow'.*airplane"),
    ],
)
def test_invalid_labels_are_refused_with_the_classes(
    tiny_conditional: Generator, labels: object, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        tiny_conditional.sample(3, labels=labels)


@pytest.mark.parametrize(
    ("z", "labels", "message"),
    [
        ((2, 127), (2,), r"z must have the shape .B, 128.; got .2, 127."),
        ((128,), (1,), r"z must have the shape .B, 128.; got .128,."),
        ((2, 128), None, "conditional: give labels .0 airplane"),
        ((2, 128), (3,), "integers, one for each of the 2 z; got torch.int64 .3,."),
        ((2, 128), (2, 1), "one for each of the 2 z"),
    ],
)
def test_noise_and_labels_of_another_shape_are_refused(
    tiny_conditional: Generator, z: tuple[int, ...], labels: tuple[int, ...] | None, message: str
) -> None:
    given = None if labels is None else torch.zeros(labels, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        tiny_conditional(torch.zeros(z), given)


def test_labels_of_a_forward_pass_are_integers_of_the_classes_and_of_a_conditional_generator(
    tiny_conditional: Generator, tiny_ml: Generator
) -> None:
    z = torch.zeros(2, 128)
    with pytest.raises(ValueError, match="integers.*got torch.float32"):
        tiny_conditional(z, torch.zeros(2))
    with pytest.raises(ValueError, match="9 truck, from 0 to 9; got 10"):
        tiny_conditional(z, torch.tensor([0, 10]))
    with pytest.raises(ValueError, match="unconditional and has no labels"):
        tiny_ml(z, torch.tensor([0, 1]))


def test_one_label_applies_to_all_images_and_labels_may_be_an_array(tiny_conditional: Generator) -> None:
    wanted = tiny_conditional.sample(3, labels=[4, 4, 4])
    for labels in (4, np.int64(4), np.array([4, 4, 4]), torch.tensor([4, 4, 4]), (4, 4, 4)):
        assert np.array_equal(tiny_conditional.sample(3, labels=labels), wanted)
    assert not np.array_equal(tiny_conditional.sample(3, labels=[4, 4, 5]), wanted)


def test_the_class_of_an_image_does_not_depend_on_the_count(
    tiny_conditional: Generator,
) -> None:
    many, few = tiny_conditional.sample(70, seed=5).astype(int), tiny_conditional.sample(3, seed=5)
    assert np.abs(many[:3] - few).max() <= 1
    last = tiny_conditional.sample(70, seed=5, labels=noise.labels(70, 10, seed=5))
    assert np.array_equal(last, many)  # beyond the first batch too


def test_the_dictionary_of_a_normalized_network_does_not_change_its_singular_vectors(
    tiny_conditional: Generator,
) -> None:
    tiny_conditional.train()
    before = {key: value.clone() for key, value in tiny_conditional.state_dict().items()}
    assert torch.equal(tiny_conditional.dictionary(1), tiny_conditional.dictionary(1))
    tiny_conditional.effective_dictionary(), tiny_conditional.sample(2)
    assert all(torch.equal(value, before[key]) for key, value in tiny_conditional.state_dict().items())


def test_a_generator_without_projections_refuses_k() -> None:
    with pytest.raises(ValueError, match="without a projection"):
        create_model("dcgan", "baseline", width=8).sample(1, k=4)


@pytest.mark.parametrize("k", [np.array([1, 2]), torch.tensor([1, 2]), (np.int64(1), 2)])
def test_k_may_be_an_array(tiny_ml: Generator, k: object) -> None:
    assert np.array_equal(tiny_ml.sample(2, k=k), tiny_ml.sample(2, k=[1, 2]))
    assert np.array_equal(tiny_ml.sample(2, k=np.int64(1)), tiny_ml.sample(2, k=1))


@pytest.mark.parametrize("train", [False, True])
def test_threads_sample_at_their_own_k_and_do_not_change_the_generator(
    tiny_ml: Generator, train: bool
) -> None:
    expected = {k: tiny_ml.sample(70, k=k) for k in (1, 2, 4, 8)}
    tiny_ml.train(train)
    before = copy.deepcopy(tiny_ml.state_dict())
    with ThreadPoolExecutor(4) as threads:
        drawn = [(k, threads.submit(tiny_ml.sample, 70, k=k)) for _ in range(5) for k in expected]
    for k, images in drawn:
        assert np.array_equal(images.result(), expected[k])
    assert [k_range.k for k_range in tiny_ml.k_ranges] == [2, 2]
    assert all(torch.equal(tensor, before[key]) for key, tensor in tiny_ml.state_dict().items())


def test_sampling_is_in_eval_mode_and_restores_the_mode_of_all_modules(tiny_ml: Generator) -> None:
    expected = tiny_ml.sample(4)
    tiny_ml.train()
    tiny_ml.coder.eval()
    modes = [module.training for module in tiny_ml.modules()]
    assert np.array_equal(tiny_ml.sample(4), expected)
    assert [module.training for module in tiny_ml.modules()] == modes


def test_a_view_shares_the_weights_but_not_k(tiny_ml: Generator) -> None:
    view = tiny_ml.view(1)
    for mine, its in zip(tiny_ml.state_dict().values(), view.state_dict().values(), strict=True):
        assert mine.data_ptr() == its.data_ptr()
    assert ([k_range.k for k_range in view.k_ranges], [k_range.k for k_range in tiny_ml.k_ranges]) == (
        [1, 1],
        [2, 2],
    )


def test_copies_and_pickles_sample_the_same_images(tiny_ml: Generator) -> None:
    for other in (copy.deepcopy(tiny_ml), pickle.loads(pickle.dumps(tiny_ml))):
        assert np.array_equal(other.sample(2, k=1), tiny_ml.sample(2, k=1))
        assert other.spec == tiny_ml.spec


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_generator_of_another_dtype_takes_float32_noise(tiny_ml: Generator, dtype: torch.dtype) -> None:
    expected = tiny_ml.sample(4).astype(int)
    assert tiny_ml.to(dtype)(torch.randn(2, 128))[0].dtype == dtype
    assert np.abs(tiny_ml.sample(4) - expected).mean() < 5


def test_weights_that_have_diverged_are_an_error(tiny_ml: Generator) -> None:
    with torch.no_grad():
        tiny_ml.stages[0].conv.bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match="3 of 3 generated images hold NaN.*earlier checkpoint"):
        tiny_ml.sample(3)


def test_the_spec_of_a_generator_has_its_current_k(tiny_ml: Generator) -> None:
    assert (tiny_ml.spec.name, tiny_ml.spec.k, tiny_ml.config) == ("dcgan-8.ml", (2, 2), {})
    tiny_ml.set_k([1, 3])
    assert tiny_ml.spec.k == (1, 3)

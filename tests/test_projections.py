"""The projections against a definition by loops, in every implementation, dtype and layout; and `sparsify`."""

import copy
import io
import itertools
import math
import os
import subprocess
import sys
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from sparsegen.zoo import projections
from sparsegen.zoo.projections import GlobalProjection, NeedleProjection, Projection, backend, sparsify

PROJECTIONS = [NeedleProjection, GlobalProjection]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
FORMS = {
    "the layer": lambda code, k, whole: (GlobalProjection if whole else NeedleProjection)(k)(code),
    "keys": lambda code, k, whole: torch.where(projections._by_keys(code, k, whole), code, 0),
    "threshold": lambda code, k, whole: torch.where(projections._by_threshold(code, k, whole), code, 0),
}

quick = settings(deadline=None, max_examples=40, derandomize=True)
values = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, float("inf"), float("-inf")]),
    st.floats(-4, 4, width=16),
)


def codes(least_dims: int = 2) -> st.SearchStrategy[np.ndarray]:
    shapes = hnp.array_shapes(min_dims=least_dims, max_dims=4, min_side=1, max_side=9)
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=values, fill=values))


def by_definition(code: np.ndarray, k: int, whole: bool) -> np.ndarray:
    """Sorts the entries of each needle or code by (-|value|, index) and keeps the first k."""
    kept = np.zeros_like(code)
    samples, atoms, *pixels = code.shape
    for sample in range(samples):
        places = itertools.product(range(atoms), *map(range, pixels))
        groups = [list(places)] if whole else []
        if not whole:
            for pixel in itertools.product(*map(range, pixels)):
                groups.append([(atom, *pixel) for atom in range(atoms)])
        for group in groups:
            ranked = sorted(range(len(group)), key=lambda i: (-abs(float(code[sample][group[i]])), i))
            for i in ranked[:k]:
                kept[sample][group[i]] = code[sample][group[i]]
    return kept


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Compares bits: 0 differs from -0, and NaN equals itself."""
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.element_size()]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


def layouts(code: Tensor) -> dict[str, Tensor]:
    padded = torch.zeros(*code.shape[:-1], 2 * code.shape[-1], dtype=code.dtype)
    padded[..., ::2] = code
    found = {"contiguous": code, "strided": padded[..., ::2], "transposed": code.mT.contiguous().mT}
    if code.ndim == 4:
        found["channels_last"] = code.contiguous(memory_format=torch.channels_last)
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("whole", [False, True], ids=["needle", "global"])
@quick
@given(code=codes(), data=st.data())
def test_every_implementation_agrees_with_the_definition(
    form: str, whole: bool, code: np.ndarray, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, int(np.prod(code.shape[1:])) if whole else code.shape[1]))
    expected = torch.from_numpy(by_definition(code, k, whole))
    for projected in (FORMS[form](layout, k, whole) for layout in layouts(torch.from_numpy(code)).values()):
        assert same_bits(projected, expected)


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@quick
@given(code=codes(), data=st.data())
def test_every_dtype_and_layout_gives_the_same_selection(
    kind: type[Projection], dtype: torch.dtype, code: np.ndarray, data: st.DataObject
) -> None:
    narrow = torch.from_numpy(code).to(dtype)  # may make new ties, so the definition sees the narrow values
    k = data.draw(st.integers(1, kind(1).limit(code.shape)))
    expected = torch.from_numpy(by_definition(narrow.double().numpy(), k, kind is GlobalProjection)).to(dtype)
    for layout in layouts(narrow).values():
        projected = kind(k)(layout)
        assert projected.dtype == dtype
        assert same_bits(projected, expected)


EACH_FORMS = {
    "the layer": lambda code, k, whole: (GlobalProjection if whole else NeedleProjection)(1)(code, k),
    "rank": lambda code, k, whole: torch.where(projections._by_rank(code, k, whole), code, 0),
}


def each_by_definition(code: np.ndarray, k: Tensor, whole: bool) -> Tensor:
    parts = [by_definition(code[i : i + 1], value, whole) for i, value in enumerate(k.tolist())]
    return torch.from_numpy(np.concatenate(parts))


@pytest.mark.parametrize("form", EACH_FORMS)
@pytest.mark.parametrize("whole", [False, True], ids=["needle", "global"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@quick
@given(code=codes(), data=st.data())
def test_each_sample_may_have_its_own_k(
    form: str, whole: bool, dtype: torch.dtype, code: np.ndarray, data: st.DataObject
) -> None:
    narrow = torch.from_numpy(code).to(dtype)
    limit = int(np.prod(code.shape[1:])) if whole else code.shape[1]
    k = torch.tensor([data.draw(st.integers(1, limit)) for _ in code])
    expected = each_by_definition(narrow.double().numpy(), k, whole).to(dtype)
    for layout in layouts(narrow).values():
        assert same_bits(EACH_FORMS[form](layout, k, whole), expected)


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("shape", [(6, 24, 16, 16), (5, 130, 5, 5), (7, 40)])
def test_many_samples_with_their_own_k_are_those_with_one_k(kind: type[Projection], shape) -> None:
    """Also with several threads, which share the samples."""
    code = torch.randint(-3, 4, shape).float()
    k = torch.randint(1, kind(1).limit(shape) + 1, shape[:1], dtype=torch.int32)
    wanted = torch.cat([kind(value)(code[i : i + 1]) for i, value in enumerate(k.tolist())])
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for layout in layouts(code).values():
            projected = kind(1)(layout, k)
            assert torch.equal(projected, wanted)
            assert projected.stride() == torch.empty_like(layout).stride()


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_gradient_is_exact_with_a_k_per_sample(kind: type[Projection], dtype: torch.dtype) -> None:
    code = torch.randint(-2, 3, (3, 6, 2, 2)).to(dtype).requires_grad_()
    k = torch.tensor([1, 6, 3])
    slope = torch.randn_like(code)
    kind(1)(code, k).backward(slope)
    for sample, value in enumerate(k.tolist()):
        one = code[sample : sample + 1].detach().requires_grad_()
        kind(value)(one).backward(slope[sample : sample + 1])
        assert torch.equal(code.grad[sample : sample + 1], one.grad)
    apart = torch.randn(3, 6, 2, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: kind(1)(x, k), apart)
    mapped = torch.vmap(lambda x, value: kind(1)(x[None], value[None])[0])(code.detach(), k)
    assert torch.equal(mapped, kind(1)(code, k))


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_one_compiled_or_exported_graph_serves_every_k_per_sample(kind: type[Projection]) -> None:
    code, k = torch.randint(-2, 3, (4, 6, 2, 2)).float(), torch.tensor([1, 6, 3, 2])
    compiled = torch.compile(kind(1), backend="eager", fullgraph=True)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(kind(1), (code, k), dynamic_shapes=(batch, batch)).module()
    for each in (k, k.flip(0)):
        assert torch.equal(compiled(code, each), kind(1)(code, each))
        assert torch.equal(program(code[:3], each[:3]), kind(1)(code[:3], each[:3]))


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (torch.tensor([1, 7, 2]), ValueError, "1 to 6; got 7 for sample 1"),
        (torch.tensor([1, 2, 0]), ValueError, "got 0 for sample 2"),
        (torch.tensor([1, 2]), ValueError, r"\(3,\).*got the shape \(2,\)"),
        (torch.tensor(2), ValueError, r"got the shape \(\)"),
        (torch.ones(3), TypeError, "got torch.float32"),
        (torch.ones(3) > 0, TypeError, "got torch.bool"),
        (np.ones(3, int), TypeError, "got ndarray"),
        (2, TypeError, "got int"),
    ],
)
def test_a_bad_k_per_sample_is_refused(k: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NeedleProjection(1)(torch.randn(3, 6, 2, 2), k)


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("shape", [(3, 40, 9, 13), (2, 128, 8, 8), (2, 7, 1, 200), (5, 33, 4, 4), (4, 50)])
@pytest.mark.parametrize("draw", [torch.randn, lambda *s: torch.randint(-2, 3, s).float(), torch.zeros])
def test_numba_and_torch_agree_to_the_bit_on_large_codes(kind, shape, draw) -> None:
    code = draw(*shape)
    limit = kind(1).limit(shape)
    for k in {1, 2, limit // 8 or 3, limit // 4, limit // 2, limit - 1, limit}:
        for layout in layouts(code).values():
            projected, mask = projections._project(layout, k, kind is GlobalProjection)
            expected = projections._by_keys(layout, k, kind is GlobalProjection)
            assert torch.equal(mask, expected)
            assert same_bits(projected, torch.where(expected, layout, 0))


SHAPES = [(n, pixels) for n in (1, 2, 5, 16, 33, 48, 49, 96, 97, 130, 300) for pixels in (1, 3, 16, 40, 257)]


@pytest.mark.parametrize(("n", "pixels"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_kernel_agrees_with_a_stable_sort(n, pixels, dtype) -> None:
    """Lines and planes of each kernel, at the borders between them; with ties, zeros, infinities and NaN."""
    generator = torch.Generator().manual_seed(n * pixels)
    code = torch.randn(5, n, pixels, generator=generator).relu()
    code[1] = torch.randint(-2, 3, (n, pixels), generator=generator).float()
    code[2], code[3, :, ::2], code[4, ::3] = 0, float("inf"), float("nan")
    code = code.to(dtype)
    order = code.abs().sort(dim=1, descending=True, stable=True).indices
    rows = code.movedim(1, -1).contiguous().movedim(-1, 1)
    for k in sorted({1, 2, n // 4, n // 2, n - 1, n} & set(range(1, n + 1))):
        expected = torch.zeros_like(code, dtype=torch.bool).scatter(1, order[:, :k], True)
        for layout in (code, rows):
            projected, mask = projections._project(layout, k, False)
            assert torch.equal(mask, expected), k
            assert same_bits(projected, torch.where(expected, layout, 0))


@pytest.mark.parametrize("n", [24, 200])
def test_the_result_does_not_depend_on_the_number_of_threads(n) -> None:
    kernels = pytest.importorskip("sparsegen.zoo.kernels")
    code = torch.randint(-50, 51, (7, n, 2**20 // n)).float()  # with ties
    for part in (code, code.movedim(1, -1).flatten(0, 1).contiguous()):
        bits, outputs = part.view(torch.int32).numpy(), []
        for threads in (1, 3):
            y, mask = np.empty_like(bits), np.empty(bits.shape, np.uint8)
            kernels.project(bits, y, mask, 5, threads=threads)
            outputs.append((y, mask))
        assert all(np.array_equal(a, b) for a, b in zip(*outputs, strict=True))
    assert (outputs[0][1].sum(1) == 5).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_threads_are_created_again_after_a_fork() -> None:
    program = """
import os, torch
from sparsegen.zoo.projections import NeedleProjection
torch.set_num_threads(2)
code = torch.randn(8, 64, 64, 64)
expected = NeedleProjection(5)(code)
child = os.fork()
same = torch.equal(NeedleProjection(5)(code), expected)
if child == 0:
    os._exit(not same)
assert same and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "dim"), [((3, 7, 5), -1), ((3, 7, 5), 2), ((2, 4, 5, 6), 3), ((4, 9), -1)])
def test_a_needle_may_be_any_dim_except_the_first(shape, dim, dtype) -> None:
    code = torch.randn(shape).to(dtype).requires_grad_()
    projected = NeedleProjection(2, dim=dim)(code)
    expected = NeedleProjection(2)(code.movedim(dim, 1)).movedim(1, dim)
    assert same_bits(projected.detach(), expected.detach()) and projected.stride() == code.stride()
    assert ((projected != 0).sum(dim) == 2).all()
    gradient = torch.autograd.grad(projected.sum(), code)[0]
    assert torch.equal(gradient, (projected != 0).to(dtype))


def test_a_bad_dim_is_refused() -> None:
    for dim, error in [(0, ValueError), (1.0, TypeError), (True, TypeError), ("1", TypeError)]:
        with pytest.raises(error, match=f"dim, the dim of a needle, must .*; got {dim!r}"):
            NeedleProjection(1, dim=dim)
    for dim in (3, -3):
        with pytest.raises(ValueError, match=rf"1 to 2 or -2 to -1 for a code of \(2, 3, 4\); got {dim}"):
            NeedleProjection(1, dim=dim)(torch.randn(2, 3, 4))
    assert repr(NeedleProjection(3, dim=-1)) == "NeedleProjection(k=3, dim=-1)"


@pytest.mark.parametrize("whole", [False, True], ids=["needle", "global"])
@pytest.mark.parametrize("form", FORMS)
def test_nan_ranks_above_infinity_and_ties_with_nan_as_in_a_stable_sort(form: str, whole: bool) -> None:
    negative_nan = torch.tensor([-4194303], dtype=torch.int32).view(torch.float32).item()  # another payload
    code = torch.tensor([[1.0, float("inf"), float("nan"), -float("inf"), negative_nan, float("nan")]])
    order = code.abs().sort(dim=1, descending=True, stable=True).indices[0]
    for k in range(1, 7):
        kept = torch.zeros(6, dtype=torch.bool)
        kept[order[:k]] = True
        assert torch.equal(FORMS[form](code, k, whole)[0] != 0, kept)


@pytest.mark.parametrize("kind", PROJECTIONS)
@quick
@given(code=codes(), data=st.data())
def test_a_projection_is_idempotent_and_at_its_limit_the_identity(kind, code, data) -> None:
    code = torch.from_numpy(code)
    project = kind(data.draw(st.integers(1, kind(1).limit(code.shape))))
    once = project(code)
    assert same_bits(project(once), once)
    project.k = project.limit(code.shape)
    assert same_bits(project(code), code)


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_output_keeps_the_memory_format_and_the_input_does_not_change(kind, dtype, memory_format) -> None:
    code = torch.randn(2, 6, 5, 4).to(dtype).contiguous(memory_format=memory_format)
    before = code.clone()
    assert kind(3)(code).is_contiguous(memory_format=memory_format)
    assert torch.equal(code, before)
    assert kind(3)(code[:0]).shape == (0, 6, 5, 4)


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_k_can_be_set_between_calls_and_is_not_in_the_state_dict(kind: type[Projection]) -> None:
    code, project = torch.randn(2, 8, 3, 3), kind(1)
    for k in (5, 2, np.int64(8)):
        project.k = k
        assert (project(code) != 0).flatten(1).sum(1).tolist() == [
            k * (9 if kind is NeedleProjection else 1)
        ] * 2
    assert project.state_dict() == {} and list(project.parameters()) == [] and list(project.buffers()) == []
    assert repr(project) == f"{kind.__name__}(k=8)"
    assert copy.deepcopy(project).k == 8


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize(
    ("k", "error"), [(0, ValueError), (-3, ValueError), (True, TypeError), (2.0, TypeError), ("4", TypeError)]
)
def test_a_bad_k_is_refused_with_its_value_meaning_and_range(kind, k, error) -> None:
    project = kind(2)
    message = rf"k, the entries kept in each {project.unit}, must be an integer from 1 to .*C.*; got {k!r}$"
    with pytest.raises(error, match=message):
        kind(k)
    with pytest.raises(error, match=message):
        project.k = k
    assert project.k == 2


@pytest.mark.parametrize(("kind", "limit"), [(NeedleProjection, 6), (GlobalProjection, 72)])
def test_a_k_above_the_code_is_refused_at_the_forward(kind: type[Projection], limit: int) -> None:
    code, project = torch.randn(2, 6, 4, 3), kind(limit + 1)
    assert project.limit(code.shape) == limit
    with pytest.raises(ValueError, match=rf"1 to {limit} for a code of \(2, 6, 4, 3\); got {limit + 1}"):
        project(code)


@pytest.mark.parametrize("code", [torch.randn(5), torch.arange(12).view(2, 6)])
def test_a_tensor_that_is_not_a_code_is_refused(code: Tensor) -> None:
    with pytest.raises(TypeError, match="a code must be a floating-point tensor"):
        NeedleProjection(1)(code)


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_the_gradient_is_that_of_the_selection_including_kept_zeros(kind: type[Projection]) -> None:
    code = torch.zeros(2, 6, 3, 3, requires_grad=True)
    gradient = torch.autograd.grad(kind(2)(code).sum(), code)[0]
    budget = 2 * 9 if kind is NeedleProjection else 2
    assert gradient.flatten(1).sum(1).tolist() == [budget, budget]
    assert gradient[:, :2, 0, 0].flatten(1).all(1).tolist() == [kind is NeedleProjection] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dropped_entries_have_no_gradient_even_if_the_incoming_one_is_not_finite(dtype: torch.dtype) -> None:
    code = torch.randn(2, 6, 3, 3).to(dtype, memory_format=torch.channels_last).requires_grad_()
    projected = NeedleProjection(2)(code)
    infinite = torch.full((2, 6, 3, 3), math.inf, dtype=dtype)
    assert torch.equal(
        torch.autograd.grad(projected, code, infinite)[0], torch.where(projected != 0, infinite, 0)
    )


@pytest.mark.parametrize(
    "shape", [(3, 8), (2, 6, 5), (2, 6, 4, 3), (8, 64, 32, 32)], ids=str
)  # the last: threads
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_gradient_is_masked_in_every_layout_of_code_and_gradient(dtype, shape) -> None:
    values, incoming = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    incoming.view(-1)[::3] = -0.0
    for code in layouts(values).values():
        code = code.detach().requires_grad_()
        projected = NeedleProjection(2)(code)
        kept = projected.detach() != 0
        for gradient in layouts(incoming).values():
            found = torch.autograd.grad(projected, code, gradient, retain_graph=True)[0]
            assert same_bits(found, torch.where(kept, incoming, 0))


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_gradients_agree_with_finite_differences_twice(kind: type[Projection]) -> None:
    distinct = torch.randperm(36).double().view(2, 6, 3) - 17.3
    code = (distinct / 7).requires_grad_()
    assert torch.autograd.gradcheck(kind(2), (code,))
    assert torch.autograd.gradgradcheck(lambda x: kind(2)(x) ** 3, (code,))
    single = code.detach().float().requires_grad_()  # the compiled implementation has its own gradient
    first = torch.autograd.grad((kind(2)(single) ** 3).sum(), single, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), single)[0]
    torch.testing.assert_close(first, 3 * kind(2)(single) ** 2)
    torch.testing.assert_close(second, 6 * kind(2)(single))


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_vmap_and_grad_of_torch_func_work(kind: type[Projection], dtype: torch.dtype) -> None:
    project, batches = kind(3), torch.randint(-3, 4, (4, 2, 6, 3, 3)).to(dtype)
    expected = torch.stack([project(batch) for batch in batches])
    for dim in (0, 2):
        assert torch.equal(torch.func.vmap(project, in_dims=dim)(batches.movedim(0, dim)), expected)
    gradient = torch.func.vmap(torch.func.grad(lambda x: (project(x) ** 2).sum() / 2))(batches)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forward_mode_derivatives_are_those_of_the_selection(
    kind: type[Projection], dtype: torch.dtype
) -> None:
    project, code = kind(3), torch.randn(2, 6, 3, 3, dtype=dtype)
    direction = torch.randn_like(code)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        projected, along = torch.func.jvp(project, (code,), (direction,))
        forward, reverse = torch.func.jacfwd(project)(code), torch.func.jacrev(project)(code)
        hessian = torch.func.hessian(lambda x: (project(x) ** 3).sum())(code)  # forward over reverse
    assert torch.equal(along, torch.where(projected != 0, direction, 0))
    assert torch.equal(forward, reverse)
    torch.testing.assert_close(hessian.view(108, 108), torch.diag(6 * projected.flatten()))


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_autocast_does_not_change_the_dtype(kind: type[Projection]) -> None:
    code = torch.randn(2, 6, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kind(2)(code), kind(2)(code).float())


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_torch_compile_needs_no_graph_break_and_follows_k(kind: type[Projection]) -> None:
    project = kind(2)
    code = torch.randn(2, 8, 4, 4, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on the way to its compiler
        compiled = torch.compile(project, fullgraph=True, backend="aot_eager")
        for k in (2, 3, 5):
            project.k = k
            projected = compiled(code)
            assert torch.equal(projected, project(code))
            gradient = torch.autograd.grad(projected.sum(), code)[0]
            assert torch.equal(gradient, (projected != 0).float())


def test_one_compiled_graph_can_serve_every_k() -> None:
    project, code = NeedleProjection(1), torch.randn(2, 40, 3, 3)
    from torch._dynamo.utils import counters

    torch._dynamo.reset()  # the limit of graphs counts those of other tests
    before = counters["stats"]["unique_graphs"]
    with warnings.catch_warnings(), torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True):
        warnings.simplefilter("ignore")  # torch's own
        compiled = torch.compile(project, fullgraph=True, backend="aot_eager")
        for k in range(1, 21):
            project.k = k
            assert torch.equal(compiled(code), project(code))
    assert counters["stats"]["unique_graphs"] - before <= 2


def small_network(kind: type[Projection]) -> nn.Sequential:
    torch.manual_seed(0)
    return (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), kind(3), nn.Conv2d(8, 3, 1)).eval().requires_grad_(False)
    )


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_a_traced_network_can_be_saved_and_takes_any_batch_size(kind: type[Projection]) -> None:
    network, images, file = small_network(kind), torch.randn(5, 3, 12, 12), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the checks of shapes and k are not traced
        torch.jit.save(torch.jit.trace(network, images[:2]), file)
        file.seek(0)
        loaded = torch.jit.load(file)
    torch.testing.assert_close(loaded(images), network(images))


@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.parametrize("dynamo", [False, True])
def test_both_onnx_exporters_of_torch_export_a_projection(kind: type[Projection], dynamo: bool) -> None:
    network, images, file = small_network(kind), torch.randn(2, 3, 12, 12), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (images,), file, dynamo=dynamo, input_names=["x"], verbose=False)
    session = onnxruntime.InferenceSession(file.getvalue())
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": images.numpy()})[0]), network(images))


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_torch_fx_traces_a_projection_as_a_leaf_whose_k_can_be_set(kind: type[Projection]) -> None:
    network, images = small_network(kind), torch.randn(2, 3, 12, 12)
    traced = torch.fx.symbolic_trace(network)
    for k in (3, 1):
        network[2].k = k
        torch.testing.assert_close(traced(images), network(images))
    assert network[2] in list(traced.modules())


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_an_exported_program_has_only_aten_operators_and_any_batch_size(kind: type[Projection]) -> None:
    code = torch.randint(-3, 4, (3, 8, 4, 4)).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        program = torch.export.export(kind(3), (code,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            assert node.target.namespace == "aten", node.target
    for batch in (code, torch.cat([code, -code, code + 1])):
        assert torch.equal(program.module()(batch), kind(3)(batch))


@pytest.mark.parametrize("whole", [False, True])
def test_the_custom_operator_passes_the_checks_of_torch(whole: bool) -> None:
    code = torch.randn(3, 6, 4, 5)
    for layout in layouts(code).values():
        torch.library.opcheck(projections._project, (layout, 3, whole), raise_exception=True)


def test_the_result_without_numba_is_the_same(tmp_path) -> None:
    code = torch.randint(-3, 4, (2, 8, 5, 5)).float()
    torch.save((code, NeedleProjection(3)(code), GlobalProjection(21)(code)), tmp_path / "expected.pt")
    program = f"""
import sys
sys.modules["numba"] = None  # import numba raises ImportError
import torch
from sparsegen.zoo.projections import GlobalProjection, NeedleProjection, backend
assert backend() == "torch", backend()
code, needle, whole = torch.load({str(tmp_path / "expected.pt")!r})
for layout in (code, code.contiguous(memory_format=torch.channels_last), code.mT.contiguous().mT):
    projected = NeedleProjection(3)(layout), GlobalProjection(21)(layout)
    each = torch.tensor([3, 3]), torch.tensor([21, 21])
    assert torch.equal(NeedleProjection(1)(layout, each[0]), needle)
    assert torch.equal(GlobalProjection(1)(layout, each[1]), whole)
    assert torch.equal(projected[0], needle) and torch.equal(projected[1], whole)
    assert all(p.stride() == layout.stride() for p in projected)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_projecting_does_not_import_the_compiler_of_torch() -> None:
    """The import takes seconds, and the first call of a custom operator would cause it."""
    program = """
import sys, torch
from sparsegen.zoo.projections import GlobalProjection, NeedleProjection
code = torch.randn(2, 8, 4, 4, requires_grad=True)
GlobalProjection(9)(NeedleProjection(2)(code)).sum().backward()
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_backend_is_named() -> None:
    pytest.importorskip("numba")
    assert backend() == "numba"


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 6, 3), nn.Identity()), nn.LSTM(3, 2)
    )


class TestSparsify:
    def test_projects_the_named_layers_and_does_not_change_the_state_dict(self) -> None:
        net, image = network()[:3], torch.randn(2, 3, 8, 8)
        before, keys = net(image), list(net.state_dict())
        handle = sparsify(net, {"1": NeedleProjection(2), "2.0": GlobalProjection(5)})
        seen = []
        net[1].register_forward_hook(lambda layer, inputs, output: seen.append(output))
        assert (net(image) != 0).flatten(1).sum(1).tolist() == [5, 5]
        assert (seen[0] != 0).sum(1).max() <= 2
        assert list(net.state_dict()) == keys
        handle["2.0"].k = 9
        assert (net(image) != 0).flatten(1).sum(1).tolist() == [9, 9]
        assert dict(handle) == {"1": handle["1"], "2.0": handle["2.0"]}
        handle.remove()
        handle.remove()
        assert torch.equal(net(image), before)

    def test_is_removed_at_the_end_of_its_context(self) -> None:
        net, image = network()[:3], torch.randn(1, 3, 8, 8)
        before = net(image)
        with pytest.raises(KeyError), sparsify(net, {"1": NeedleProjection(1)}) as handle:
            assert not torch.equal(net(image), before)
            handle["2"]
        assert torch.equal(net(image), before)

    def test_applies_to_a_network_that_was_compiled_and_called_before(self) -> None:
        net, image = network()[:3], torch.randn(2, 3, 8, 8)
        compiled = torch.compile(net, backend="eager")
        before = compiled(image)
        with sparsify(net, {"2": GlobalProjection(4)}) as handle:
            assert (compiled(image) != 0).flatten(1).sum(1).tolist() == [4, 4]
            handle["2"].k = 6
            assert (compiled(image) != 0).flatten(1).sum(1).tolist() == [6, 6]
        assert torch.equal(compiled(image), before)

    def test_a_deep_copy_has_its_own_k(self) -> None:
        net, image = network()[:3], torch.randn(1, 3, 8, 8)
        handle = sparsify(net, {"2": GlobalProjection(4)})
        twin = copy.deepcopy(net)
        handle["2"].k = 7
        assert (twin(image) != 0).sum() == 4
        handle.remove()
        assert (twin(image) != 0).sum() == 4

    @pytest.mark.parametrize(
        ("layers", "error", "message"),
        [
            (
                {"1": NeedleProjection(1), "2.7": NeedleProjection(1)},
                ValueError,
                "no layer '2.7'; similar names: .*2.0",
            ),
            (
                {"1": NeedleProjection(1), "2.0": 5},
                TypeError,
                "layer '2.0' needs a NeedleProjection or Global.*; got 5",
            ),
            (["1"], TypeError, "mapping from layer names, .*; got \\['1'\\]"),
        ],
    )
    def test_checks_all_layers_before_it_adds_any_projection(self, layers, error, message) -> None:
        net = network()
        with pytest.raises(error, match=message):
            sparsify(net, layers)
        assert not any(layer._forward_hooks for layer in net.modules())

    def test_names_the_layer_that_does_not_return_a_tensor(self) -> None:
        net = network()[3:]
        with sparsify(net, {"3": NeedleProjection(1)}):
            with pytest.raises(TypeError, match="layer '3', a LSTM, returned a tuple"):
                net(torch.randn(4, 1, 3))

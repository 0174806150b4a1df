"""A divided generator: the same bits as the whole graph in onnxruntime."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession

from sparsegen.export import runtime
from sparsegen.export.onnx_file import export_onnx
from sparsegen.export.parts import split
from sparsegen.export.runtime import DIVIDE_FROM, OnnxSampler, open_sampler
from sparsegen.zoo import bundled, noise
from sparsegen.zoo.generator import Generator

PROJECTED = [name for name in bundled.list_models() if open_sampler(name).k_ranges]


def pair(path: str | Path) -> tuple[OnnxSampler, OnnxSampler]:
    """A whole sampler and a divided one."""
    whole, divided = (open_sampler(path, device="cpu") for _ in range(2))
    assert divided.divide() and divided.divide()
    return whole, divided


@pytest.mark.parametrize("name", PROJECTED)
def test_a_divided_model_draws_the_same_bits_with_any_k(name: str) -> None:
    whole, divided = pair(name)
    limits = [k_range.limit for k_range in whole.k_ranges]
    drawn = np.random.default_rng(0).integers(1, np.array(limits) + 1, (5, len(limits)))
    z = noise.z(5, whole.z_dim, seed=2)
    labels = np.arange(5) % whole.classes if whole.classes else None
    for k in (None, 1, limits, drawn):
        (image, codes), (other, others) = (each.run(z, k, labels=labels) for each in (whole, divided))
        assert image.tobytes() == other.tobytes()
        assert [code.tobytes() for code in codes] == [code.tobytes() for code in others]
    some = None if labels is None else labels[:1]
    image, none = divided.run(z[:1], codes=False, labels=some)
    assert none == () and image.tobytes() == whole.run(z, labels=labels)[0][:1].tobytes()


def test_each_node_is_in_one_part_and_only_projections_are_left_out() -> None:
    """In a residual body, a skip passes the projection of Γ2: its value is read, not computed again."""
    for name in ("biggan-32.ml", "dcgan.ml"):
        model = onnx.load(bundled.MODELS / name / bundled.GRAPH, load_external_data=False)
        parts = [part for part, _ in split(model)]
        assert len(parts) == 3
        convolutions = [[node.name for node in part.graph.node if "Conv" in node.op_type] for part in parts]
        assert all(convolutions) and sorted(sum(convolutions, [])) == sorted(
            node.name for node in model.graph.node if "Conv" in node.op_type
        )
        assert not any(node.domain for part in parts for node in part.graph.node)
        read = [{value.name for value in part.graph.input} for part in parts]
        assert "z" in read[0] and "code_2" in read[1] and read[2] == {"code_1"}
        assert (len(read[1]) > 1) == name.startswith("biggan")


def test_many_images_divide_a_graph_and_few_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = open_sampler("wgan_gp-16.ml")
    whole_runs = []
    run = InferenceSession.run

    def counted(session: InferenceSession, outputs: list[str], inputs: dict, *rest: object) -> list:
        whole_runs.append("k_1" in inputs)
        return run(session, outputs, inputs, *rest)

    monkeypatch.setattr(InferenceSession, "run", counted)
    few = sampler.sample(DIVIDE_FROM - 1)
    assert all(whole_runs)
    whole_runs.clear()
    many = sampler.sample(DIVIDE_FROM)
    assert not any(whole_runs) and np.array_equal(many[:-1], few)


@pytest.mark.parametrize("missing", ["numba", "onnx"])
def test_without_numba_or_onnx_the_graph_stays_whole(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("sparsegen.export.parts", "sparsegen.zoo.kernels"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    for package in ("sparsegen.zoo", "sparsegen.export"):
        monkeypatch.delattr(package + (".kernels" if package.endswith("zoo") else ".parts"), raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    sampler = open_sampler("dcgan.l0_inf")
    assert not sampler.divide()
    assert np.array_equal(sampler.sample(2), open_sampler("dcgan.l0_inf").sample(2))


def test_what_has_no_projection_nodes_stays_whole(tiny_ml: Generator, tmp_path: Path) -> None:
    assert not open_sampler("dcgan.baseline").divide()
    export_onnx(tiny_ml, tmp_path / "plain.onnx", plain=True)
    sampler = OnnxSampler(tmp_path / "plain.onnx")
    assert not sampler.divide() and sampler.sample(2).shape == (2, 32, 32, 3)
    with pytest.raises(ValueError, match="no projection"):
        split(onnx.load(tmp_path / "plain.onnx"))


def test_a_graph_may_be_divided_while_others_draw_from_it() -> None:
    sampler = open_sampler("wgan_gp-16.l0_inf")
    wanted = sampler.sample(40)
    with ThreadPoolExecutor(4) as pool:
        drawn = [pool.submit(sampler.sample, 40) for _ in range(20)]
        assert pool.submit(sampler.divide).result()
        drawn += [pool.submit(sampler.sample, 40) for _ in range(4)]
        assert all(np.array_equal(each.result(), wanted) for each in drawn)


def test_threads_share_the_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = open_sampler("dcgan.ml", threads=2)
    wanted = sampler.sample(33)
    assert sampler.divide() and np.array_equal(sampler.sample(33), wanted)


def test_the_files_of_a_divided_graph_are_those_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are found from any current folder."""
    monkeypatch.chdir(tmp_path)
    sampler = OnnxSampler(bundled.MODELS / "dcgan.ml" / bundled.GRAPH)
    assert sampler.divide() and runtime.CPU_PROVIDER == sampler.provider

"""Speed of the projections relative to topk + scatter, in torch and in onnxruntime.

    python -m benchmarks.projection
    python -m benchmarks.projection --quick

Every candidate is first checked against a stable sort in numpy, also with ties. Then the candidates run in turns on one
thread, each turn with other values, since the time of a sort depends on them. The median of the ratios of each turn, in
CPU time of the thread, is reported, so that other load on the machine slows all of them equally. `benchmarks.sampling`
measures the share of the projections in trained models. Writes records/projection.json unless --quick is given.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime
import torch
from onnx import ModelProto
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.machine import processor, versions
from sparsegen.common.files import write_json
from sparsegen.zoo import projections
from sparsegen.zoo.projections import GlobalProjection, NeedleProjection, backend

RECORDS = Path(__file__).parent / "records" / "projection.json"
SHAPES = (64, 128, 16, 16), (64, 64, 32, 32), (8, 256, 32, 32)
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
ROWS = ((2048, 768), 32), ((512, 4096), 32), ((512, 16384), 64), ((128, 65536), 64)
DRAWS = 4  # different inputs
PROJECTIONS = {"needle": NeedleProjection, "global": GlobalProjection}

# The bodies of a function (x, k) => (y) of domain ai.sparsegen. k is clamped to [0, limit] in each of them.
CLAMP = """
    one = Constant <value_ints: ints = [1]> ()
    none = Constant <value_ints: ints = [0]> ()
    wanted = Reshape (k, one)
    limit = Shape <start: int = 1, end: int = 2> (LINES)
    few = Min (wanted, limit)
    count = Max (few, none)
    zero_float = Constant <value_float: float = 0.0> ()
    zero = CastLike (zero_float, x)
"""
FLATTEN = "    lines = Flatten <axis: int = 1> (x)\n"
RESTORE = "    whole = Shape (x)\n    y = Reshape (kept, whole)\n"

SCATTER = """
    magnitude = Abs (LINES)
    largest, index = TopK <axis: int = 1, largest: int = 1, sorted: int = 0> (magnitude, count)
    values = GatherElements <axis: int = 1> (LINES, index)
    shape = Shape (LINES)
    zeros = Expand (zero, shape)
    KEPT = ScatterElements <axis: int = 1> (zeros, index, values)
"""
MASK = """
    magnitude = Abs (LINES)
    largest, index = TopK <axis: int = 1, largest: int = 1, sorted: int = 0> (magnitude, count)
    shape = Shape (LINES)
    false_int = Constant <value_int: int = 0> ()
    false = Cast <to: int = 9> (false_int)
    true = Not (false)
    nowhere = Expand (false, shape)
    index_shape = Shape (index)
    marks = Expand (true, index_shape)
    mask = ScatterElements <axis: int = 1> (nowhere, index, marks)
    KEPT = Where (mask, LINES, zero)
"""
PERMUTED = """
    last = Transpose <perm: ints = [0, 2, 3, 1]> (x)
    magnitude = Abs (last)
    largest, index = TopK <axis: int = -1, largest: int = 1, sorted: int = 0> (magnitude, count)
    values = GatherElements <axis: int = -1> (last, index)
    shape = Shape (last)
    zeros = Expand (zero, shape)
    kept = ScatterElements <axis: int = -1> (zeros, index, values)
    y = Transpose <perm: ints = [0, 3, 1, 2]> (kept)
"""
PERMUTED_MASK = """
    magnitude = Abs (x)
    last = Transpose <perm: ints = [0, 2, 3, 1]> (magnitude)
    largest, index = TopK <axis: int = -1, largest: int = 1, sorted: int = 0> (last, count)
    false_int = Constant <value_int: int = 0> ()
    false = Cast <to: int = 9> (false_int)
    true = Not (false)
    shape = Shape (last)
    nowhere = Expand (false, shape)
    index_shape = Shape (index)
    marks = Expand (true, index_shape)
    mask_last = ScatterElements <axis: int = -1> (nowhere, index, marks)
    mask = Transpose <perm: ints = [0, 3, 1, 2]> (mask_last)
    y = Where (mask, x, zero)
"""
NEEDLES = """
    last = Transpose <perm: ints = [0, 2, 3, 1]> (x)
    minus = Constant <value_ints: ints = [-1]> ()
    row = Concat <axis: int = 0> (minus, limit)
    needles = Reshape (last, row)
    magnitude = Abs (needles)
    largest, index = TopK <axis: int = -1, largest: int = 1, sorted: int = 0> (magnitude, count)
    values = GatherElements <axis: int = -1> (needles, index)
    shape = Shape (needles)
    zeros = Expand (zero, shape)
    rows = ScatterElements <axis: int = -1> (zeros, index, values)
    last_shape = Shape (last)
    kept = Reshape (rows, last_shape)
    y = Transpose <perm: ints = [0, 3, 1, 2]> (kept)
"""
# The k-th largest magnitude; for k = 0 the largest, of which none is kept.
THRESHOLD = """
    magnitude = Abs (LINES)
    asked = Max (count, one)
    largest, index = TopK <axis: int = 1, largest: int = 1, sorted: int = 0> (magnitude, asked)
    kth = ReduceMin <keepdims: int = 1> (largest, one)
"""
REPAIR = """
    above = Greater (magnitude, kth)
    tie = Equal (magnitude, kth)
    above_int = Cast <to: int = 6> (above)
    taken = ReduceSum <keepdims: int = 1> (above_int, one)
    count_int = CastLike (count, taken)
    free = Sub (count_int, taken)
    tie_int = Cast <to: int = 6> (tie)
    axis = Squeeze (one)
    order = CumSum (tie_int, axis)
    early = LessOrEqual (order, free)
    first = And (tie, early)
    mask = Or (above, first)
    KEPT = Where (mask, LINES, zero)
"""
# Ties at zero need no repair, since a kept zero is zero. Other ties are rare; the repair runs only for them.
REPAIR_IF_TIED = """
    reach = GreaterOrEqual (magnitude, kth)
    reach_int = Cast <to: int = 6> (reach)
    reached = ReduceSum <keepdims: int = 1> (reach_int, one)
    exactly = CastLike (count, reached)
    fits = Equal (reached, exactly)
    at_zero = Equal (kth, zero)
    good = Or (fits, at_zero)
    good_int = Cast <to: int = 6> (good)
    worst = ReduceMin <keepdims: int = 0> (good_int)
    all_good = Cast <to: int = 9> (worst)
    KEPT = If (all_good) <
        then_branch = plain () => (kept_plain) { kept_plain = Where (reach, LINES, zero) },
        else_branch = repaired () => (kept_repaired) { REPAIR }
    >
"""
# Bisects [low, high) of floats until it holds one value: 31 counts over the shape of x.
BISECT = """
    magnitude = Abs (LINES)
    tiny = Constant <value_float: float = 1e-38> ()
    half = Constant <value_float: float = 0.5> ()
    top = ReduceMax <keepdims: int = 1> (magnitude, one)
    twice = Add (top, top)
    beyond = Add (twice, tiny)
    low_0 = Mul (top, zero)
    rounds = Constant <value_int: int = 64> ()
    go = Constant <value_int: int = 1> ()
    go_bool = Cast <to: int = 9> (go)
    kth, high_end = Loop (rounds, go_bool, low_0, beyond) <
        body = narrow (int64 i, bool on, low, high) => (bool open, low_next, high_next) {
            sum = Add (low, high)
            middle = Mul (sum, half)
            reach = GreaterOrEqual (magnitude, middle)
            reach_int = Cast <to: int = 6> (reach)
            reached = ReduceSum <keepdims: int = 1> (reach_int, one)
            count_int = CastLike (count, reached)
            enough = GreaterOrEqual (reached, count_int)
            low_next = Where (enough, middle, low)
            high_next = Where (enough, high, middle)
            moved_low = Equal (low_next, low)
            moved_high = Equal (high_next, high)
            still = And (moved_low, moved_high)
            done = Equal (reached, count_int)
            settled = Or (still, done)
            unsettled = Not (settled)
            unsettled_int = Cast <to: int = 6> (unsettled)
            worst = ReduceMax <keepdims: int = 0> (unsettled_int)
            open = Cast <to: int = 9> (worst)
        }
    >
"""


def body(name: str, *parts: str, lines: str = "x", kept: str = "y") -> str:
    text = CLAMP + "".join(parts)
    text = text.replace("REPAIR", REPAIR.replace("KEPT", "kept_repaired"))
    text = text.replace("LINES", lines).replace("KEPT", kept)
    header = f'<domain: "ai.sparsegen", opset_import: ["" : 20]>\n{name} (x, k) => (y)\n'
    return (
        header
        + "{"
        + (FLATTEN if lines == "lines" else "")
        + text
        + (RESTORE if kept == "kept" else "")
        + "}"
    )


def flat(*parts: str) -> str:
    return body("GlobalProjection", *parts, lines="lines", kept="kept")


def needle(*parts: str) -> str:
    return body("NeedleProjection", *parts)


FUNCTIONS = {
    "needle": {
        "TopK, gather, scatter": needle(SCATTER),
        "TopK, scattered mask, Where": needle(MASK),
        "TopK, gather, scatter on NHWC": needle(PERMUTED),
        "TopK, gather, scatter on rows N·H·W x C": needle(NEEDLES),
        "TopK, scattered mask on NHWC, Where": needle(PERMUTED_MASK),
        "k-th of TopK, CumSum": needle(THRESHOLD, REPAIR.replace("KEPT", "y")),
        "k-th of TopK, CumSum if tied": needle(THRESHOLD, REPAIR_IF_TIED),
        "bisection by Loop, CumSum": needle(BISECT, REPAIR.replace("KEPT", "y")),
    },
    "global": {
        "TopK, gather, scatter": flat(SCATTER),
        "TopK, scattered mask, Where": flat(MASK),
        "k-th of TopK, CumSum": flat(THRESHOLD, REPAIR.replace("KEPT", "kept")),
        "k-th of TopK, CumSum if tied": flat(THRESHOLD, REPAIR_IF_TIED),
        "bisection by Loop, CumSum": flat(BISECT, REPAIR.replace("KEPT", "kept")),
    },
}


def session(function: str) -> onnxruntime.InferenceSession:
    parsed = onnx.parser.parse_function(function)
    ends = "(float[n, c, h, w] x, int64 k) => (float[n, c, h, w] y)"
    graph = f"project {ends} {{ y = ai.sparsegen.{parsed.name} (x, k) }}"
    model: ModelProto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 20, "ai.sparsegen" : 1]> {graph}'
    )
    model.functions.append(parsed)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def by_stable_sort(code: np.ndarray, k: int, whole: bool) -> np.ndarray:
    lines = code.reshape(code.shape[0], -1) if whole else code
    index = np.argsort(-np.abs(lines), axis=1, kind="stable")[:, :k]
    kept = np.zeros_like(lines)
    np.put_along_axis(kept, index, np.take_along_axis(lines, index, 1), 1)
    return kept.reshape(code.shape)


def check_function(function: str, whole: bool) -> None:
    rng = np.random.default_rng(0)
    run = session(function).run
    gauss = rng.standard_normal((3, 24, 5, 4), np.float32)
    small = rng.integers(-2, 3, gauss.shape).astype(np.float32)
    for code in (gauss, np.maximum(gauss, 0), small, np.zeros_like(gauss), np.ones_like(gauss)):
        limit = code[0].size if whole else code.shape[1]
        for k in (-5, 0, 1, 3, limit // 2, limit, 10**9):
            (kept,) = run(None, {"x": code, "k": np.array(k, np.int64)})
            np.testing.assert_array_equal(kept, by_stable_sort(code, min(max(k, 0), limit), whole))


def naive(code: Tensor, k: int, whole: bool) -> Tensor:
    lines = code.flatten(1) if whole else code
    index = lines.abs().topk(k, dim=1).indices
    return torch.zeros_like(lines).scatter(1, index, lines.gather(1, index)).view(code.shape)


def ours(code: Tensor, k: int, whole: bool) -> Tensor:
    return projections._project(code, k, whole)[0]


def torch_form(code: Tensor, k: int, whole: bool) -> Tensor:
    return torch.where(projections._by_keys(code, k, whole), code, 0)


def turns(candidates: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Runs the candidates in turns and returns the CPU seconds of this thread, one list per candidate."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, run in candidates.items():
            start = time.thread_time()
            run()
            if repeat:  # the first turn warms up
                seconds[name].append(time.thread_time() - start)
    return seconds


def compare(candidates: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Returns the median milliseconds of each candidate and its speedup over the first one."""
    seconds = turns(candidates, repeats)
    baseline = seconds[next(iter(seconds))]
    return {
        name: {
            "ms": round(1e3 * median(times), 2),
            "speedup": round(median(b / t for b, t in zip(baseline, times, strict=True)), 2),
        }
        for name, times in seconds.items()
    }


def rotating(
    candidates: Mapping[str, Callable[..., Any]], inputs: Sequence[tuple[Any, ...]]
) -> dict[str, Callable[[], Any]]:
    """Functions without arguments, each of which takes the inputs in turn."""

    def bind(candidate: Callable[..., Any]) -> Callable[[], Any]:
        turn = cycle(inputs)
        return lambda: candidate(*next(turn))

    return {name: bind(candidate) for name, candidate in candidates.items()}


def relu_code(shape: tuple[int, ...], memory_format: torch.memory_format, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).relu().contiguous(memory_format=memory_format)


def in_torch(repeats: int) -> list[dict[str, Any]]:
    rows = []
    for shape in SHAPES:
        for layout, memory_format in MEMORY_FORMATS.items():
            for share in (8, 4):
                for unit, kind in PROJECTIONS.items():
                    whole = kind is GlobalProjection
                    k = kind(1).limit(shape) // share
                    inputs = [(relu_code(shape, memory_format, seed), k, whole) for seed in range(DRAWS)]
                    expected = torch.from_numpy(by_stable_sort(inputs[0][0].numpy(), k, whole))
                    candidates = {"topk + scatter": naive, backend(): ours, "torch form": torch_form}
                    for candidate in candidates.values():
                        assert torch.equal(candidate(*inputs[0]), expected)
                    for name, result in compare(rotating(candidates, inputs), repeats).items():
                        what = {"shape": shape, "layout": layout, "k": f"1/{share}", "unit": unit}
                        rows.append({**what, "candidate": name, **result})
    return rows


def in_onnxruntime(repeats: int) -> list[dict[str, Any]]:
    for unit, functions in FUNCTIONS.items():
        for function in functions.values():
            check_function(function, unit == "global")
    sessions = {unit: {name: session(f) for name, f in fs.items()} for unit, fs in FUNCTIONS.items()}
    rows = []
    for shape in SHAPES:
        for share in (8, 4):
            for unit, kind in PROJECTIONS.items():
                k = np.array(kind(1).limit(shape) // share, np.int64)
                codes = [relu_code(shape, torch.contiguous_format, seed).numpy() for seed in range(DRAWS)]
                inputs = [(None, {"x": code, "k": k}) for code in codes]
                runs = {name: opened.run for name, opened in sessions[unit].items()}
                for name, result in compare(rotating(runs, inputs), repeats).items():
                    what = {"shape": shape, "k": f"1/{share}", "unit": unit}
                    rows.append({**what, "candidate": name, **result})
    return rows


def in_rows(repeats: int) -> list[dict[str, Any]]:
    """Codes of one pixel per sample, as in a transformer layer or a sparse autoencoder, with the backward pass."""
    rows = []
    for shape, k in ROWS:
        codes = [
            torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu() for seed in range(DRAWS)
        ]
        gradient, layer = torch.randn(shape), NeedleProjection(k)
        usual = partial(naive, k=k, whole=False)

        def both(project: Callable[[Tensor], Tensor], code: Tensor, gradient: Tensor = gradient) -> None:
            code = code.detach().requires_grad_()
            torch.autograd.grad(project(code), code, gradient)

        for what, candidates in (
            ("forward", {"topk + scatter": usual, backend(): layer}),
            (
                "forward and backward",
                {"topk + scatter": partial(both, usual), backend(): partial(both, layer)},
            ),
        ):
            for name, result in compare(rotating(candidates, [(code,) for code in codes]), repeats).items():
                rows.append({"shape": shape, "k": k, "pass": what, "candidate": name, **result})
    return rows


def show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*("x".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in row.values()))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three turns instead of nine, without a record")
    repeats = 3 if parser.parse_args().quick else 9
    torch.set_num_threads(1)
    # glibc keeps freed blocks up to the size of the largest, so 31 MiB prevent page faults in the candidates.
    torch.empty(31 << 18)
    console = Console()
    results = {
        "torch": in_torch(repeats),
        "rows": in_rows(repeats),
        "onnxruntime": in_onnxruntime(repeats),
    }
    for title, rows in results.items():
        show(console, title, rows)
    if repeats > 3:
        head = {"date": datetime.now(UTC).date().isoformat(), "hardware": processor(), "threads": 1}
        write_json(
            RECORDS, {**head, "versions": versions(), "turns": repeats, "data": "ReLU of N(0, 1)", **results}
        )


if __name__ == "__main__":
    main()

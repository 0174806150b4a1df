"""The projections as ONNX functions of standard operators, which are part of an exported file."""

OPSET, IR_VERSION = 20, 10
DOMAIN = "ai.sparsegen"

# The input k is one number or one per image, and is clamped to 1 … limit. The graph declares it as a scalar, since a
# checked ONNX file must declare a rank; onnxruntime does not check the rank of an input that is declared as a scalar,
# and Expand makes it as long as the batch. TopK takes one k: where the images have different ones, it sorts the largest
# k entries, and those whose rank is below the k of their image are kept. Where all are equal, it need not sort, which
# is faster. TopK prefers the lowest index among equals, as zoo.projections does. Scattering by index keeps exactly
# k entries, also with ties. The zeros are constants: zeros computed from the code would be NaN where it is infinite.
# These bodies are the fastest of those that benchmarks/projection.py compares: needles are sorted with the channels
# last, where their entries are contiguous, and only the mask is transposed back; the values of a whole code are
# scattered without a mask.
_CLAMP = """
    images = Shape <start = 0, end = 1> (code)
    k_each = Expand (k, images)
    one = Constant <value_ints = [1]> ()
    at_least_1 = Max (k_each, one)
    kept = Min (at_least_1, limit)
    most = ReduceMax <keepdims = 1> (kept)
    zero_float = Constant <value = float {0.0}> ()
    zero = CastLike (zero_float, code)
"""
_SAME = """
    least = ReduceMin <keepdims = 1> (kept)
    same = Equal (least, most)
"""
_RANK = """
    first = Constant <value_int = 0> ()
    step = Constant <value_int = 1> ()
    end = Squeeze (most)
    rank = Range (first, end, step)
    kept_of_image = Reshape (kept, row)
    among = Less (rank, kept_of_image)
"""
_NEEDLES = f"""
    limit = Shape <start = 1, end = 2> (code)
    {_CLAMP}
    magnitude = Abs (code)
    needles = Transpose <perm = [0, 2, 3, 1]> (magnitude)
    false_int = Constant <value_int = 0> ()
    false = Cast <to = 9> (false_int)
    size = Shape (needles)
    nowhere = Expand (false, size)
"""
_MASK_BY_RANK = f"""
    sorted, index_by_rank = TopK <axis = -1, largest = 1, sorted = 1> (needles, most)
    row = Constant <value_ints = [-1, 1, 1, 1]> ()
    {_RANK}
    size_by_rank = Shape (index_by_rank)
    mark_some = Expand (among, size_by_rank)
    mask_by_rank = ScatterElements <axis = -1> (nowhere, index_by_rank, mark_some)
"""
_ROWS = f"""
    rows = Flatten <axis = 1> (code)
    limit = Shape <start = 1, end = 2> (rows)
    {_CLAMP}
    magnitude = Abs (rows)
    size = Shape (rows)
    zeros = Expand (zero, size)
"""
_PROJECTED_BY_RANK = f"""
    sorted, index_by_rank = TopK <axis = 1, largest = 1, sorted = 1> (magnitude, most)
    row = Constant <value_ints = [-1, 1]> ()
    {_RANK}
    value_by_rank = GatherElements <axis = 1> (rows, index_by_rank)
    value_of_some = Where (among, value_by_rank, zero)
    projected_by_rank = ScatterElements <axis = 1> (zeros, index_by_rank, value_of_some)
"""


def _function(name: str, body: str) -> str:
    return f"""
        <domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
        {name} (code, k) => (y) {{
            {body}
        }}
    """


FUNCTIONS = {
    "NeedleProjection": _function(
        "NeedleProjection",
        f"""
            {_NEEDLES}
            {_SAME}
            mask_last = If (same) <
                then_branch = one_k () => (mask_of_any) {{
                    largest, index_of_any = TopK <axis = -1, largest = 1, sorted = 0> (needles, most)
                    size_of_any = Shape (index_of_any)
                    true = Not (false)
                    mark_all = Expand (true, size_of_any)
                    mask_of_any = ScatterElements <axis = -1> (nowhere, index_of_any, mark_all)
                }},
                else_branch = k_per_image () => (mask_by_rank) {{
                    {_MASK_BY_RANK}
                }}
            >
            mask = Transpose <perm = [0, 3, 1, 2]> (mask_last)
            y = Where (mask, code, zero)
        """,
    ),
    "GlobalProjection": _function(
        "GlobalProjection",
        f"""
            {_ROWS}
            {_SAME}
            projected = If (same) <
                then_branch = one_k () => (projected_of_any) {{
                    largest, index_of_any = TopK <axis = 1, largest = 1, sorted = 0> (magnitude, most)
                    value_of_any = GatherElements <axis = 1> (rows, index_of_any)
                    projected_of_any = ScatterElements <axis = 1> (zeros, index_of_any, value_of_any)
                }},
                else_branch = k_per_image () => (projected_by_rank) {{
                    {_PROJECTED_BY_RANK}
                }}
            >
            shape = Shape (code)
            y = Reshape (projected, shape)
        """,
    ),
}

# For files whose functions are inlined: always by rank, without If, since some readers have no control flow, and
# OpenVINO 2026.4 returns wrong values of an If in the first inference of each shape.
PLAIN = {
    "NeedleProjection": _function(
        "NeedleProjection",
        f"""
            {_NEEDLES}
            {_MASK_BY_RANK}
            mask = Transpose <perm = [0, 3, 1, 2]> (mask_by_rank)
            y = Where (mask, code, zero)
        """,
    ),
    "GlobalProjection": _function(
        "GlobalProjection",
        f"""
            {_ROWS}
            {_PROJECTED_BY_RANK}
            shape = Shape (code)
            y = Reshape (projected_by_rank, shape)
        """,
    ),
}

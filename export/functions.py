"""The projections as ONNX functions of standard operators, which are part of an exported file."""

OPSET, IR_VERSION = 20, 10
DOMAIN = "ai.sparsegen"

# The input k is clamped to 1 … limit. TopK prefers the lowest index among equals, as zoo.projections does. Scattering
# by index keeps exactly k entries, also with ties. The zeros are constants: zeros computed from the code would be NaN
# where it is infinite. These bodies are the fastest of those that benchmarks/projection.py compares: needles are sorted
# with the channels last, where their entries are contiguous, and only the mask is transposed back; the values of a
# whole code are scattered without a mask.
_CLAMP = """
    one = Constant <value_ints = [1]> ()
    k_1d = Reshape (k, one)
    at_least_1 = Max (k_1d, one)
    kept = Min (at_least_1, limit)
    zero_float = Constant <value = float {0.0}> ()
    zero = CastLike (zero_float, code)
"""
FUNCTIONS = {
    "NeedleProjection": f"""
        <domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
        NeedleProjection (code, k) => (y) {{
            limit = Shape <start = 1, end = 2> (code)
            {_CLAMP}
            magnitude = Abs (code)
            needles = Transpose <perm = [0, 2, 3, 1]> (magnitude)
            largest, index = TopK <axis = -1, largest = 1, sorted = 0> (needles, kept)
            false_int = Constant <value_int = 0> ()
            false = Cast <to = 9> (false_int)
            true = Not (false)
            size = Shape (needles)
            nowhere = Expand (false, size)
            index_size = Shape (index)
            marks = Expand (true, index_size)
            mask_last = ScatterElements <axis = -1> (nowhere, index, marks)
            mask = Transpose <perm = [0, 3, 1, 2]> (mask_last)
            y = Where (mask, code, zero)
        }}
    """,
    "GlobalProjection": f"""
        <domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
        GlobalProjection (code, k) => (y) {{
            rows = Flatten <axis = 1> (code)
            limit = Shape <start = 1, end = 2> (rows)
            {_CLAMP}
            magnitude = Abs (rows)
            largest, index = TopK <axis = 1, largest = 1, sorted = 0> (magnitude, kept)
            value = GatherElements <axis = 1> (rows, index)
            size = Shape (rows)
            zeros = Expand (zero, size)
            projected = ScatterElements <axis = 1> (zeros, index, value)
            shape = Shape (code)
            y = Reshape (projected, shape)
        }}
    """,
}

"""ONNX files and the runtime that samples from them. Imports zoo only."""

if __name__ != "sparsegen.export":
    raise ImportError(f"import this package as sparsegen.export, not {__name__}: it would exist twice")

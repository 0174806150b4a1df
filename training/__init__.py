"""Losses, data, the training loop and the measurements. Imports zoo only."""

if __name__ != "sparsegen.training":
    raise ImportError(f"import this package as sparsegen.training, not {__name__}: it would exist twice")

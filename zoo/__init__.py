"""The models and the sparsity layers. Imports none of the other parts."""

if __name__ != "sparsegen.zoo":
    raise ImportError(f"import this package as sparsegen.zoo, not {__name__}: it would exist twice")

"""The HTTP service and the page, over the exported models."""

if __name__ != "sparsegen.service":
    raise ImportError(f"import this package as sparsegen.service, not {__name__}: it would exist twice")

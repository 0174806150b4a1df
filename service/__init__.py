"""The HTTP service and the page, over the exported models."""

if __name__ != "sparsegen.service":
    raise ImportError(f"import this package as sparsegen.service, not {__name__}: two names would make two copies of each class")

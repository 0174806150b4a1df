"""The HTTP service and the page, over the exported models."""

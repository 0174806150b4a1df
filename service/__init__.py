"""The HTTP service and its page: exported models and restorations."""

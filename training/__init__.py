"""Losses, data, the training loop and the measurements."""

"""Ratios and campaigns: run by hand (`python -m benchmarks.NAME`), records committed beside the code."""

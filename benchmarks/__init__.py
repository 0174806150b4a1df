"""Benchmarks and campaigns, run manually by `python -m benchmarks.NAME`; their records are committed."""

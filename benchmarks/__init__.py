"""What stands behind the numbers in docs/: `python -m benchmarks.NAME` in a checkout; not installed."""

"""Measurements, each beside what it is held against, in one run: `python -m bench` (docs/performance.md)."""

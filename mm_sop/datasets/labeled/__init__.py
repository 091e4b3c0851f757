"""Readers of labeled datasets and benchmarks."""

"""Benchmarks as they lie on disk: the list of them, how labels are stored, and reading one image at a time."""

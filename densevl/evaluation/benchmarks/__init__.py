"""Benchmarks as they lie on disk: what there is, how labels are stored, and one image at a time."""

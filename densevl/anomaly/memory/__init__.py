"""Memories of normal images: which tokens are kept, and the nearest one to each query."""

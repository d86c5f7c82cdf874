"""Memories of normal images: which tokens are kept, and the nearest of them to each query."""

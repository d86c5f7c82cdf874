"""Explain where a score comes from: patches, heads, and pairs of words and patches."""

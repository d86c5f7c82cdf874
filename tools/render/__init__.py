"""Rendered scenes with exact masks and captions, and the benchmark made of them; see README.md here."""

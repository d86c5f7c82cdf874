"""Dense features of photos."""

"""Name, find and search regions of photos."""

"""Anomaly maps of photos, from words and normal images."""

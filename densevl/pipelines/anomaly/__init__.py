"""Anomaly maps of photos, from words and from normal images."""

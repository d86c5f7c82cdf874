"""Classify by a few examples together with words."""

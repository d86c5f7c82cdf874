"""Regions of photos: named, found and searched."""

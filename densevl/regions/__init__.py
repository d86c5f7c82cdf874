"""Regions of a photo, embedded and named. Importing this loads no model."""

"""Models that score words by a trained network behind CLIP, instead of the cosine."""

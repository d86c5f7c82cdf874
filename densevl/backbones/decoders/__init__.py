"""Models that score words with a trained network behind CLIP instead of the cosine."""

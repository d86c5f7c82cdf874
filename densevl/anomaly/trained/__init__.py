"""Small parts that are trained on a frozen CLIP, and how."""

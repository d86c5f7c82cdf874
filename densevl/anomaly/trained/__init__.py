"""Small parts trained on a frozen CLIP, and their training."""

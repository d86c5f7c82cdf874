"""Text sides of models that are not CLIP's own: their networks and their tokenizers."""

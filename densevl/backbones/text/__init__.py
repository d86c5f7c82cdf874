"""Text sides other than CLIP's own: their networks and their tokenizers."""

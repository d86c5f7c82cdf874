"""Head "prompt": words around the names of classes are learned as vectors, the model itself is left as it is."""

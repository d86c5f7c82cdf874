"""The arithmetic that everything else calls: attention between tokens, and decoding of patch scores to pixels."""

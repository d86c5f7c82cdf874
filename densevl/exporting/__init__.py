"""Export models to files for other programs: the image tower with its recipe as one graph, and words next to it."""

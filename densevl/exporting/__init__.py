"""Models as files that other programs run: the image tower with its recipe as one graph, and words beside it."""

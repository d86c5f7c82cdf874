"""Where the score of an image and a text comes from: the arithmetic. `pipelines.explanation` puts it to use."""

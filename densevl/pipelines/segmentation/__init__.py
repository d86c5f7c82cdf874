"""Photos and words to label maps."""

"""From photos and words to label maps."""

"""One class per task. Each connects images, words, a backbone and the decoder."""

"""One class a task: glue between images, words, a backbone and the decoder."""

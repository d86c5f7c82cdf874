"""Many images to files: `loop.py` is the one loop, `tasks.py` what is done with each image."""

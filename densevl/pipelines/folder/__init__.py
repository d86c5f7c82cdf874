"""Process many images to files: `loop.py` is the loop, `tasks.py` defines what is done with each image."""

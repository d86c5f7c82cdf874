"""Videos to label maps, frame by frame: `reading.py` and `writing.py` are PyAV's, `result.py` is what comes between."""

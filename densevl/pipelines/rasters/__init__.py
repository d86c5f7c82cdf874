"""Pictures of any size to label maps, block by block: `source.py` reads, `result.py` decides, `writing.py` writes."""

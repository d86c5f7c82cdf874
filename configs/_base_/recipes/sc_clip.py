recipe = "sc_clip"
paper = True  # protocol, strings and thresholds: densevl/evaluation/papers.py

recipe = "resclip"
paper = True  # protocol, strings and thresholds: densevl/evaluation/papers.py

recipe = "naclip"
refine = "pamr"  # scores flow between pixels of like colour, as the paper's headline has it
paper = True  # protocol, strings and thresholds: densevl/evaluation/papers.py

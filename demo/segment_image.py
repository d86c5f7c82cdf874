"""Segment a photo by words, in a few lines: python demo/segment_image.py [IMAGE [LABEL ...]]"""

import sys
from pathlib import Path

import densevl

image = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "images" / "cat.jpg"
labels = sys.argv[2:] or ["cat", "dog | puppy", "cup"]

segment = densevl.Segmenter("auto")
result = segment(image, labels)

for name, share in result.fractions().items():
    print(f"{name:>12}: {share:.0%}")
print("wrote", *result.save("densevl-out/segment_image.png"))
print(*result.warnings, sep="\n")

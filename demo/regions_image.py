"""Name the regions of a picture: python demo/regions_image.py [IMAGE [LABEL ...]]

Masks come from mini-sam, which is in the package and works for flat drawings, like the model "mini". Its masks often
join separate things, so they are split into their parts. With a detector of your own, pass its boxes:
classify(image, labels, boxes=[[x0, y0, x1, y1], ...]).
"""

import sys
from pathlib import Path

from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.regions.prompting import prompted
from densevl.proposals import load_proposer
from densevl.proposals.pieces import PieceProposer

image = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "scenes" / "water.png"
labels = sys.argv[2:] or ["fish", "boat", "elephant", "pizza", "sunflower", "house"]

classify = RegionClassifier("mini", proposals=PieceProposer(load_proposer("mini-sam")))
result = classify(image, labels)
objects = result.instances(parts=0.8)  # without regions inside another of the same name
for name, score, box in zip(objects.found, objects.confidence, objects.boxes, strict=True):
    print(f"{name:>12}: {score:.2f} at {', '.join(f'{side:.0f}' for side in box)}")

again = result.reclassify(["animal", "building", "food"])  # other words, without running the image tower again
print("in other words:", again)

print("wrote", *objects.save("densevl-out/regions_image.json"))

if len(sys.argv) == 1:  # a click or a box becomes a mask, and gets a name
    places = prompted(image, points=[(116, 108), (58, 40)], boxes=[(12, 130, 60, 182), (145, 58, 188, 118)])
    asked = classify(image, labels, regions=places)
    for how, name, score in zip(["click", "click", "box", "box"], asked.found, asked.confidence, strict=True):
        print(f"{how:>12}: {name} {score:.2f}")
    print("wrote", *asked.save("densevl-out/regions_prompted.json"))
print(*result.warnings, sep="\n")

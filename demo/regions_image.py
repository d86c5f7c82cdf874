"""Name the regions of a picture: python demo/regions_image.py [IMAGE [LABEL ...]]

Masks come from mini-sam, which is in the package and knows flat drawings; so does the model "mini". With a detector of
your own, pass its boxes: classify(image, labels, boxes=[[x0, y0, x1, y1], ...]).
"""

import sys
from pathlib import Path

from densevl.pipelines.regions import RegionClassifier

image = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "scenes" / "water.png"
labels = sys.argv[2:] or ["fish", "boat", "elephant", "pizza", "sunflower", "house"]

classify = RegionClassifier("mini", proposals="mini-sam")
result = classify(image, labels)
objects = result.instances()
for name, score, box in zip(objects.names, objects.scores, objects.boxes, strict=True):
    print(f"{name:>12}: {score:.2f} at {', '.join(f'{side:.0f}' for side in box)}")

again = result.reclassify(["animal", "building", "food"])  # other words: the picture is not looked at again
print("in other words:", again)

if len(sys.argv) == 1:
    clicked = classify(image, labels, points=[[116, 108], [170, 80]])  # a click becomes a mask, and gets a name
    print("clicked on:", *clicked.names)
print("wrote", *objects.save("densevl-out/regions_image.json"))
print(*result.warnings, sep="\n")

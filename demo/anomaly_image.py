"""Find damage by words, then against one normal image: python demo/anomaly_image.py [IMAGE [NORMAL_IMAGE [ITEM]]]"""

import sys
from pathlib import Path

from densevl.pipelines.anomaly.detector import AnomalyDetector

surfaces = Path(__file__).parent / "surfaces"
image = sys.argv[1] if len(sys.argv) > 1 else surfaces / "tiles_damaged.png"
normal = sys.argv[2] if len(sys.argv) > 2 else surfaces / "tiles_sound.png"
item = sys.argv[3] if len(sys.argv) > 3 else "tiled surface"

# "mini" knows rendered surfaces; use a real CLIP for photographs. Without `whole`, the score of the whole image does
# not raise every pixel of a damaged image, as a mask requires.
detect = AnomalyDetector("mini", item=item, options={"windows": "shared", "whole": False})
result = detect(image)
print(f"by words:            score {result.score:.3f}")
print("wrote", *result.save("densevl-out/anomaly_words.png"))

detect.fit([normal]).calibrate(fpr=0.001)
result = detect(image)
print(f"against one image:   score {result.score:.3f}, threshold {result.thresholds.image:.3f}")
print(f"anomalous: {result.is_anomalous}, on {result.mask.mean():.1%} of the picture")
print("wrote", *result.save("densevl-out/anomaly_one_shot.png"))

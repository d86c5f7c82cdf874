"""Name detections by words: python demo/detector_integration.py [IMAGE [LABEL ...]]

The first part uses a Faster R-CNN of torchvision. Its weights are random, because this repository has none: it shows
how the parts fit together, but its boxes mean nothing. With weights="DEFAULT" it is a real detector. The second part
uses regions that mean something, the masks of mini-sam without classes, as a supervision.Detections (pip install
"densevl[viz,sam]"). Results of ultralytics and transformers are named in the same way; see docs/integrations.md.
"""

import sys
from pathlib import Path

import supervision as sv
import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from densevl.images import encode_png, read_image
from densevl.integrations import OpenVocabularyDetector, label_detections
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.proposals import load_proposer
from densevl.proposals.pieces import PieceProposer

image = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "scenes" / "water.png"
labels = sys.argv[2:] or ["fish", "boat", "elephant", "pizza", "sunflower", "house", "penguin", "cat"]
rgb = read_image(image)
classify = RegionClassifier("mini", proposals=PieceProposer(load_proposer("mini-sam"), duplicate_iou=0.5))

torch.manual_seed(0)
detector = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
detect = OpenVocabularyDetector(detector, classify, labels, top=30)
found = detect([torch.from_numpy(rgb).permute(2, 0, 1) / 255])[0]
print(f"Faster R-CNN with RANDOM weights: {len(found['boxes'])} detections, which mean nothing")
for box, label, score in list(zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"], strict=True))[:5]:
    print(f"{detect.categories[label]:>12}: {score:.2f} at {', '.join(f'{side:.0f}' for side in box)}")

masks = classify.regions(rgb)
detections = sv.Detections(xyxy=masks.boxes, mask=masks.masks(), confidence=masks.quality)  # no classes
named = label_detections(rgb, detections, labels, classify, drop_nothing=True)
sure = named.confidence
named.data["sure"], named.confidence = sure, named.area / max(named.area, default=1)
named = named.with_nms(0.5, overlap_metric=sv.OverlapMetric.IOS)  # of an object and its parts, keep the largest
named.confidence = named.data["sure"]
print(f"mini-sam: {len(detections)} masks, of which {len(named)} are one of the labels")
for box, name, score in zip(named.xyxy, named.data["class_name"], named.confidence, strict=True):
    print(f"{name:>12}: {score:.2f} at {', '.join(f'{side:.0f}' for side in box)}")

scale = max(1, 640 // max(rgb.shape[:2]))
large = rgb.repeat(scale, axis=0).repeat(scale, axis=1)[..., ::-1].copy()  # annotators draw on BGR
grown = sv.Detections(xyxy=named.xyxy * scale, class_id=named.class_id, confidence=named.confidence, data=named.data)
grown.mask = named.mask.repeat(scale, axis=1).repeat(scale, axis=2)
for annotator in (sv.MaskAnnotator(), sv.BoxAnnotator(), sv.LabelAnnotator(text_scale=0.5)):
    large = annotator.annotate(large, grown)
out = Path("densevl-out/detector_integration.png")
out.parent.mkdir(exist_ok=True)
out.write_bytes(encode_png(large[..., ::-1].copy()))
print("wrote", out)

"""Run an exported model without torch: python demo/exported_model.py MODEL.onnx WORDS.npz IMAGE [LABELS.png]

The photo goes through as one window; `densevl segment --model MODEL.onnx` also lays windows over large ones.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

model, words, image, out = [*sys.argv[1:], "labels.png"][:4]
session = onnxruntime.InferenceSession(model)
facts = {key: session.get_modelmeta().custom_metadata_map[key] for key in ("patch", "mean", "std", "protocol")}
patch, mean, std, protocol = (json.loads(value) for value in facts.values())
held, photo = np.load(words), Image.open(image).convert("RGB")
scale = (protocol["short_side"] or min(photo.size)) / min(photo.size)
width, height = (max(2, round(side * scale / patch)) * patch for side in photo.size)
pixels = (np.asarray(photo.resize((width, height))) / 255 - mean) / std
given = {"pixels": pixels.transpose(2, 0, 1)[None].astype("float32"), "text": held["vectors"]}
given["foreground"] = held["classes"] >= 0
(scores,) = session.run(None, {entry.name: given[entry.name] for entry in session.get_inputs()})
labels = held["classes"][scores[0].argmax(axis=-1)] + 1  # 0 where a background word is the best
for number, name in enumerate(held["names"], 1):
    print(f"{name:>12}: {(labels == number).mean():.0%}")
Image.fromarray(labels.astype("uint8")).resize(photo.size, Image.Resampling.NEAREST).save(out)
assert "torch" not in sys.modules

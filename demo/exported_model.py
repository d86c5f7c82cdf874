"""Run an exported model without torch: python demo/exported_model.py MODEL.onnx WORDS.npz IMAGE [LABELS.png]

The photo is processed as one window; `densevl segment --model MODEL.onnx` also splits large photos into windows.
"""

import argparse
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def run(model: str, words: str, image: str, out: str) -> None:
    """Label a photo and write the label map."""
    session = onnxruntime.InferenceSession(model)
    facts = {key: session.get_modelmeta().custom_metadata_map[key] for key in ("patch", "mean", "std", "protocol")}
    patch, mean, std, protocol = (json.loads(value) for value in facts.values())
    stored, photo = np.load(words), Image.open(image).convert("RGB")
    scale = (protocol["short_side"] or min(photo.size)) / min(photo.size)
    width, height = (max(2, round(side * scale / patch)) * patch for side in photo.size)
    pixels = (np.asarray(photo.resize((width, height))) / 255 - mean) / std
    given = {"pixels": pixels.transpose(2, 0, 1)[None].astype("float32"), "text": stored["vectors"]}
    given["foreground"] = stored["classes"] >= 0
    (scores,) = session.run(None, {entry.name: given[entry.name] for entry in session.get_inputs()})
    labels = stored["classes"][scores[0].argmax(axis=-1)] + 1  # 0 if a background word is best
    Image.fromarray(labels.astype("uint8")).resize(photo.size, Image.Resampling.NEAREST).save(out)
    for number, name in enumerate(stored["names"], 1):
        print(f"{name:>12}: {(labels == number).mean():.0%}")


parser = argparse.ArgumentParser(description="Run an exported model without torch.")
for name, text in (("model", "the .onnx file"), ("words", "the .npz of its words"), ("image", "the photo")):
    parser.add_argument(name, help=text)
parser.add_argument("out", nargs="?", default="labels.png", help="the label map to write, 0 for nothing")
try:
    run(**vars(parser.parse_args()))
except Exception as error:  # noqa: BLE001  each library raises its own errors
    sys.exit(f"error: {' '.join(str(error).split())}")
assert "torch" not in sys.modules

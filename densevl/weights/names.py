"""Names of weights files."""

from __future__ import annotations

import re

from densevl.errors import WeightsError
from densevl.saved import Kind

INDEX = Kind("index of shards", WeightsError, "download the model again")
OWN_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
"""open_clip's names, safe formats first."""
THEIR_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""transformers' names."""
SHARD = re.compile(r"-\d+-of-\d+$")
ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")

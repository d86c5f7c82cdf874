"""Model files on the hub: from the local cache first, else downloaded with progress and a checksum.

The cache is huggingface_hub's own (`HF_HOME`, `HF_HUB_CACHE`); `HF_HUB_OFFLINE=1` forbids the network.
"""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
from pathlib import Path

from densevl import digest
from densevl.errors import ModelError, WeightsError

WEIGHT_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
PROBE_SECONDS = 5


def split_hub_id(hub_id: str) -> tuple[str, tuple[str, ...]]:
    """open_clip's "org/repo/file" or "org/repo/" to (repo, file names to try, safe formats first)."""
    repo, _, filename = hub_id.rpartition("/")
    if not filename:
        return repo, WEIGHT_NAMES
    stem = filename.rpartition(".")[0]
    return repo, (f"{stem}.safetensors", filename) if not filename.endswith(".safetensors") else (filename,)


def cached_file(hub_id: str) -> Path | None:
    """The weights file of a hub id if it is already on this disk, else None; never touches the network."""
    from huggingface_hub import try_to_load_from_cache

    repo, names = split_hub_id(hub_id)
    for name in names:
        found = try_to_load_from_cache(repo, name)
        if isinstance(found, str) and Path(found).is_file():
            return Path(found)
    return None


def fetch(hub_id: str, model: str) -> Path:
    """The weights file of a hub id: from the cache, else downloaded with a progress bar and checked.

    Raises:
        ModelError: not cached, and the hub cannot be reached or does not have it.
        WeightsError: the download's SHA-256 is not the hub's.
    """
    cached = cached_file(hub_id)
    if cached:
        return cached
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    repo, names = split_hub_id(hub_id)
    advice = (
        "download it on a machine with a network and copy the hub cache here, "
        "or name a folder with local-dir:PATH, or use the model 'photo'"
    )
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"model '{model}' is not cached ({repo}) and HF_HUB_OFFLINE forbids the network: {advice}")
    unreachable = why_unreachable(constants.ENDPOINT)
    if unreachable:
        raise ModelError(f"model '{model}' is not on this disk and the hub cannot be reached ({unreachable}): {advice}")
    logging.getLogger(__name__).info("downloading %s for model %s", repo, model)
    try:
        for name in names:
            try:
                path = Path(hf_hub_download(repo, name))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue  # this repository has the weights under another of the names
            verify(path, get_hf_file_metadata(hf_hub_url(repo, name)).etag or "")
            return path
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"model '{model}': the hub has no repository {repo}, or wants a login for it (hf auth login)"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = type(error.__cause__ or error).__name__
        raise ModelError(
            f"model '{model}' is not on this disk and the hub cannot be reached ({reason}): {advice}"
        ) from error
    raise ModelError(f"model '{model}': repository {repo} has none of {', '.join(names)}; {advice}")


def why_unreachable(endpoint: str) -> str | None:
    """One quick question, through the proxies of the environment, before the hub client retries for half a minute."""
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=PROBE_SECONDS):  # noqa: S310
            return None
    except urllib.error.HTTPError:
        return None  # it answers
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", None) or error)


def verify(path: Path, sha256: str) -> None:
    """Check a downloaded file against the SHA-256 that the hub publishes; remove a damaged one and say so.

    Args:
        path: the file in the cache, usually a link to its blob.
        sha256: 64 hexadecimal digits. Anything else is the mark of a small file, which the hub hashes otherwise.

    Raises:
        WeightsError: the digests differ.
    """
    blob = path.resolve()
    if len(sha256) != 64 or sha256.strip("0123456789abcdef"):
        return
    found = digest.of_file(blob)
    if found != sha256:
        blob.unlink()
        path.unlink(missing_ok=True)
        raise WeightsError(
            f"{path.name}: SHA-256 {found[:12]} is not the hub's {sha256[:12]}; "
            "the damaged file was removed, run again to download it anew"
        )

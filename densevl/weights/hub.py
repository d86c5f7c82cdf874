"""Models on the hub: from the local cache first, else downloaded with progress, and each file's SHA-256 checked.

The client and the cache are huggingface_hub's own (`HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`), which goes on with a
download that was cut; `HF_HUB_OFFLINE=1` forbids the network. The client does not check what came: `verify` does.
"""

from __future__ import annotations

import logging
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densevl import digest
from densevl.errors import ModelError, WeightsError
from densevl.saved import read_json
from densevl.weights.folders import ENDINGS, INDEX, OWN_NAMES, THEIR_NAMES

PROBE_SECONDS = 5
WORDS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("sentencepiece.bpe.model", "spiece.model"),
)
"""Files of tokenizers."""
BESIDE = ("open_clip_config.json", "config.json", "preprocessor_config.json", *WORDS)
"""Files of a repository that a model may need besides its weights."""
PREFIX = "hf-hub:"
_ADDRESS = re.compile(r"https?://[^/]+/([^/]+/[^/]+)(?:/(?:tree|blob|resolve)/([^/]+)(?:/(.+))?)?/?")
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+?))?(?:/(?P<file>[^@]+))?")
_ADVICE = (
    "download it on a machine with a network and copy the hub cache here, or name a folder with local-dir:PATH, "
    "or use the model 'photo'"
)


@dataclass(frozen=True)
class Repo:
    """A repository of the hub. Attributes: repo: "org/name". revision: a branch, tag or commit. file: one of it."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}{f'@{self.revision}' if self.revision else ''}{f'/{self.file}' if self.file else ''}"


def parse(name: str) -> Repo | None:
    """hf-hub:ORG/REPO[@REVISION][/FILE], ORG/REPO, or the address of its page; None for anything else."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if match := _ADDRESS.fullmatch(name.partition("?")[0]):
        found = Repo(match[1], match[2], match[3])
    else:
        match = _NAME.fullmatch(name.removeprefix(PREFIX))
        if match is None or (match["file"] and not name.startswith(PREFIX)):
            return None
        found = Repo(match["repo"], match["revision"], match["file"])
    try:
        validate_repo_id(found.repo)
    except HFValidationError:
        return None
    return found


def split_hub_id(hub_id: str) -> tuple[str, tuple[str, ...]]:
    """open_clip's "org/repo/file" or "org/repo/" to (repo, file names to try, safe formats first)."""
    repo, _, filename = hub_id.rpartition("/")
    if not filename:
        return repo, OWN_NAMES
    stem = filename.rpartition(".")[0]
    return repo, (f"{stem}.safetensors", filename) if not filename.endswith(".safetensors") else (filename,)


def cached_file(hub_id: str) -> Path | None:
    """The weights file of a hub id if it is already on this disk, else None; never touches the network."""
    repo, names = split_hub_id(hub_id)
    return next((found for name in names if (found := _cached(repo, name, None))), None)


def _cached(repo: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, revision=revision)
    return Path(found) if isinstance(found, str) and Path(found).is_file() else None


def fetch(hub_id: str, model: str) -> Path:
    """The weights file of a hub id of open_clip's: from the cache, else downloaded with a progress bar and checked.

    Raises:
        ModelError: not cached, and the hub cannot be reached or does not have it.
        WeightsError: the download's SHA-256 is not the hub's.
    """
    cached = cached_file(hub_id)
    if cached:
        return cached
    repo, names = split_hub_id(hub_id)
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with asking(model, repo):
        for name in names:
            try:
                return _download(repo, name, None)
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue  # this repository has the weights under another of the names
    raise ModelError(f"model '{model}': repository {repo} has none of {', '.join(names)}; {_ADVICE}")


def fetch_model(named: Repo) -> Path:
    """A folder with the files of a repository that its model needs: of the cache, else downloaded and checked.

    Returns:
        The folder, named by the commit; or, for a name with a file, that file.

    Raises:
        ModelError: not at hand, no model, or not for this account. WeightsError: a download is damaged.
    """
    from huggingface_hub import HfApi

    marks = [named.file] if named.file else ["open_clip_config.json", "config.json"]
    found = next((file for mark in marks if (file := _cached(named.repo, mark, named.revision))), None)
    if found and (named.file or _is_complete(found.parent)):
        return found if named.file else found.parent
    with asking(str(named), named.repo):
        if named.file:
            return _download(named.repo, named.file, named.revision)
        # what an earlier call began is finished at its commit
        info = HfApi().model_info(named.repo, revision=found.parent.name if found else named.revision)
        commit, there = str(info.sha), {row.rfilename for row in info.siblings or ()}
        wanted = _weights_among(there)
        if wanted is None:
            raise ModelError(
                f"model '{named}': the repository holds no weights that densevl reads ({', '.join(OWN_NAMES[:1])}, "
                f"{', '.join(THEIR_NAMES[:2])}); name one of its files as {PREFIX}{named.repo}/FILE with --weights"
            )
        first = next((mark for mark in marks if mark in there), None)
        if first and not found:
            _download(named.repo, first, named.revision)  # by its name, which the cache notes
        for name in [*(name for name in BESIDE if name in there), wanted]:
            path = _download(named.repo, name, commit)
        for shard in _shards(path):
            _download(named.repo, shard, commit)
        return path.parent


def fetch_words(repo: str) -> None:
    """Bring the config and the tokenizer of a text side into the cache, which transformers looks for by themselves.

    Raises:
        ModelError: not at hand.
    """
    from huggingface_hub import HfApi

    if any(_cached(repo, name, None) for name in WORDS):
        return
    with asking(repo, repo):
        there = {row.rfilename for row in HfApi().model_info(repo).siblings or ()}
        for name in ("config.json", *WORDS):
            if name in there:
                _download(repo, name, None)


def _weights_among(there: set[str]) -> str | None:
    names = (*OWN_NAMES, *THEIR_NAMES) if "open_clip_config.json" in there else (*THEIR_NAMES, *OWN_NAMES)
    found = next((name for name in names if name in there), None)
    others = sorted(name for name in there if "/" not in name and name.endswith(ENDINGS))
    return found or (others[0] if len(others) == 1 else None)


def _shards(path: Path) -> Sequence[str]:
    """The files that an index names; those of other places are refused when it is read."""
    if path.suffix != ".json":
        return ()
    told = read_json(path, INDEX, ("weight_map",))["weight_map"]
    names = sorted({str(name) for name in told.values()}) if isinstance(told, dict) else []
    if odd := next((name for name in names if Path(name).name != name or not name.endswith(ENDINGS)), None):
        raise INDEX.bad(path, f"names {odd[:80]!r}, which is no weights file beside it")
    return names


def _is_complete(folder: Path) -> bool:
    """Whether a cached folder has weights, all shards of them."""
    present = {path.name for path in folder.iterdir() if path.is_file()}
    name = _weights_among(present)
    return name is not None and all(shard in present for shard in _shards(folder / name))


def _download(repo: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    if cached := _cached(repo, name, revision):
        return cached
    logging.getLogger(__name__).info("downloading %s of %s", name, repo)
    path = Path(hf_hub_download(repo, name, revision=revision))
    verify(path, get_hf_file_metadata(hf_hub_url(repo, name, revision=revision)).etag or "")
    return path


@contextmanager
def asking(model: str, repo: str) -> Iterator[None]:
    """Ask the hub; what goes wrong is one line that says what to do, and never holds a token.

    Raises:
        ModelError: offline, unreachable, no such repository, revision or file, or not for this account.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"model '{model}'"
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"{what} is not cached ({repo}) and HF_HUB_OFFLINE forbids the network: {_ADVICE}")
    unreachable = why_unreachable(constants.ENDPOINT)
    if unreachable:
        raise ModelError(f"{what} is not on this disk and the hub cannot be reached ({unreachable}): {_ADVICE}")
    try:
        yield
    except GatedRepoError as error:
        raise ModelError(
            f"{what}: {repo} asks for its terms to be accepted: do so on its page, then run 'hf auth login'"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{what}: the hub has no repository {repo}, or wants a login for it (hf auth login)"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{what}: {repo} has no such revision; name a branch, a tag or a commit of it") from error
    except HFValidationError as error:
        raise ModelError(f"{what} is no name of the hub; it is {PREFIX}ORG/REPO") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(f"{what}: {_cause(error)}: {_ADVICE}") from error
    except EntryNotFoundError as error:
        raise ModelError(f"{what}: {repo} has no such file; see its page for their names") from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"{what}: {_cause(error)}: {_ADVICE}") from error


def _cause(error: BaseException) -> str:
    """Why the hub did not give a file: the answer's number, else the kind of error."""
    found: Any = error
    while found is not None:
        status = getattr(getattr(found, "response", None), "status_code", None)
        if status:
            return f"the hub answers {status}"
        found, last = found.__cause__, found
    return f"the hub cannot be reached ({type(last).__name__})"


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

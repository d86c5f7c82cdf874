"""Models on the hub: from the local cache, or downloaded with progress, with each file's SHA-256 checked.

Client and cache are huggingface_hub's own (`HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`); `HF_HUB_OFFLINE=1` forbids the
network. The client does not check downloads; `verify` does. The client also restarts a file whose download was
stopped, so large files are downloaded here beside their place in the cache, and resumed.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from densevl import digest
from densevl.errors import ModelError, OutputError, WeightsError
from densevl.files import shown
from densevl.saved import read_json
from densevl.weights.names import ENDINGS, INDEX, OWN_NAMES, SHARD, THEIR_NAMES

PROBE_SECONDS = 5
MOST_BY_HTTP = 50_000_000_000  # largest file in bytes that the hub serves in one piece
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
WORDS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("sentencepiece.bpe.model", "spiece.model"),
)
"""Files of tokenizers."""
CONFIGS = ("open_clip_config.json", "config.json")
BESIDE = (*CONFIGS, "adapter_config.json", "processor_config.json", "preprocessor_config.json", *WORDS)
"""Files of a repository that a model may need besides its weights."""
PREFIX = "hf-hub:"
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_ADDRESS = re.compile(r"https?://[^/]+/([^/]+/[^/]+)(?:/(?:tree|blob|resolve)/([^/]+)(?:/(.+))?)?/?")
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+?))?(?:/(?P<file>[^@]+))?")
_ADVICE = (
    "download it on a machine with a network and copy the hub cache here, or name a folder with local-dir:PATH, "
    "or use the model 'photo'"
)


@dataclass(frozen=True)
class Repo:
    """A repository of the hub. Attributes: repo: "org/name". revision: a branch, tag or commit. file: its file."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}{f'@{self.revision}' if self.revision else ''}{f'/{self.file}' if self.file else ''}"


def parse(name: str) -> Repo | None:
    """Parse hf-hub:ORG/REPO[@REVISION][/FILE], ORG/REPO, or the URL of its page; None for anything else.

    A config as the file means the whole repository.

    Raises:
        ModelError: the URL is of another site.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if "://" in name and (host := urlsplit(name).netloc) not in (*_HOSTS, urlsplit(constants.ENDPOINT).netloc):
        raise ModelError(
            f"'{name}' is an address of {host or 'no site'}, and models come by address from huggingface.co alone "
            "(or HF_ENDPOINT): download its weights, and name the file"
        )
    if match := _ADDRESS.fullmatch(name.partition("?")[0]):
        found = Repo(match[1], match[2], match[3])
    else:
        match = _NAME.fullmatch(name.removeprefix(PREFIX))
        if match is None or (match["file"] and not name.startswith(PREFIX)):
            return None
        found = Repo(match["repo"], match["revision"], match["file"])
    if ".." in f"{found.revision}/{found.file}".split("/"):
        return None
    if found.file in CONFIGS:
        found = replace(found, file=None)
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
    """The weights file of a hub id if it is already on this disk, otherwise None; never uses the network."""
    repo, names = split_hub_id(hub_id)
    return next((found for name in names if (found := _cached(repo, name, None))), None)


def _cached(repo: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, revision=revision)
    return Path(found) if isinstance(found, str) and Path(found).is_file() else None


def fetch(hub_id: str, model: str) -> Path:
    """The weights file of an open_clip hub id: from the cache, or downloaded with a progress bar and checked.

    Raises:
        ModelError: it is not cached, and the hub cannot be reached or does not have it.
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
                continue  # this repository has the weights under another name
    raise ModelError(f"model '{model}': repository {repo} has none of {', '.join(names)}; {_ADVICE}")


@dataclass(frozen=True)
class Needed:
    """A file that a model needs. Attributes: file: its name. size: in bytes, 0 if unknown. here: it is in the cache."""

    file: str
    size: int
    here: bool


def planned(named: Repo, names: Sequence[str] = ()) -> list[Needed]:
    """The files of a repository that its model needs; nothing is downloaded.

    Args:
        names: of weights, of which the first that exists is the only file; otherwise those of `fetch_model`.

    Raises:
        ModelError: as `fetch_model` does.
    """
    names = names or ((named.file,) if named.file else ())
    if found := next((path for name in names if (path := _cached(named.repo, name, named.revision))), None):
        return [Needed(found.name, found.stat().st_size, here=True)]
    marks = [_cached(named.repo, mark, named.revision) for mark in ("open_clip_config.json", "config.json")]
    folder = next((mark.parent for mark in marks if mark), None)
    if not names and folder and _is_complete(folder):
        return [
            Needed(path.name, path.stat().st_size, here=True) for path in sorted(folder.iterdir()) if path.is_file()
        ]
    with asking(str(named), named.repo):
        return _asked(named, names)[1]


def _asked(named: Repo, names: Sequence[str] = ()) -> tuple[str, list[Needed]]:
    """The commit of a repository, and the files needed from it; the weights, or their index, come before shards."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(named.repo, revision=named.revision, files_metadata=True)
    commit, sizes = str(info.sha), {row.rfilename: row.size or 0 for row in info.siblings or ()}
    if names:
        wanted = [name for name in names if name in sizes][:1]
        if not wanted:
            raise ModelError(f"model '{named}': repository {named.repo} has no {' or '.join(names)}")
    else:
        weights = _weights_among(set(sizes))
        if weights is None:
            raise ModelError(
                f"model '{named}': the repository holds no weights that densevl reads ({', '.join(OWN_NAMES[:1])}, "
                f"{', '.join(THEIR_NAMES[:2])}); name one of its files as {PREFIX}{named.repo}/FILE with --weights"
            )
        wanted = [*(name for name in BESIDE if name in sizes), weights]
        if weights.endswith(".json"):
            wanted += sorted(name for name in sizes if name.endswith(ENDINGS) and SHARD.search(Path(name).stem))
    return commit, [Needed(name, sizes.get(name, 0), bool(_cached(named.repo, name, commit))) for name in wanted]


def fetch_model(named: Repo) -> Path:
    """A folder with the files that a repository's model needs: from the cache, or downloaded and checked.

    Returns:
        The folder, named by the commit; or, for a name with a file, that file.

    Raises:
        ModelError: it is not at hand, not a model, or not available to this account.
        WeightsError: a download is damaged.
        OutputError: the disk has no room for it.
    """
    marks = [named.file] if named.file else [*CONFIGS, "adapter_config.json"]
    found = next((file for mark in marks if (file := _cached(named.repo, mark, named.revision))), None)
    if found and (named.file or _is_complete(found.parent)):
        return found if named.file else found.parent
    with asking(str(named), named.repo):
        if named.file:
            return _download(named.repo, named.file, named.revision)
        # finish what an earlier call began, at its commit
        commit, files = _asked(replace(named, revision=found.parent.name if found else named.revision))
        _require_disk(str(named), sum(file.size for file in files if not file.here))
        names = [file.file for file in files]
        first = next((mark for mark in marks if mark in names), None)
        if first and not found:
            _download(named.repo, first, named.revision)  # by its name, so that the cache records the revision
        for name in names:
            if not SHARD.search(Path(name).stem):
                path = _download(named.repo, name, commit)
        for shard in _shards(path):
            _download(named.repo, shard, commit)
        return path.parent


def cached_folder(named: Repo) -> Path | None:
    """The cached folder of a repository that has a config.json, otherwise None; never uses the network."""
    found = _cached(named.repo, "config.json", named.revision)
    return found.parent if found else None


def fetch_words(repo: str) -> None:
    """Download the config and the tokenizer of a text side into the cache, where transformers looks for them.

    Raises:
        ModelError: they are not at hand.
    """
    from huggingface_hub import HfApi

    if any(_cached(repo, name, None) for name in WORDS):
        return
    with asking(repo, repo):
        names = {row.rfilename for row in HfApi().model_info(repo).siblings or ()}
        for name in ("config.json", *WORDS):
            if name in names:
                _download(repo, name, None)


def words_of(repo: str) -> dict[str, Path]:
    """The files of a text side in the cache, by name: its config and its tokenizer's."""
    found = {name: _cached(repo, name, None) for name in ("config.json", *WORDS)}
    return {name: path for name, path in found.items() if path}


def _weights_among(there: set[str]) -> str | None:
    names = (*OWN_NAMES, *THEIR_NAMES) if "open_clip_config.json" in there else (*THEIR_NAMES, *OWN_NAMES)
    found = next((name for name in names if name in there), None)
    others = sorted(name for name in there if "/" not in name and name.endswith(ENDINGS))
    return found or (others[0] if len(others) == 1 else None)


def _shards(path: Path) -> Sequence[str]:
    """The files that an index names; those in other places are refused when it is read."""
    if path.suffix != ".json":
        return ()
    files = read_json(path, INDEX, ("weight_map",))["weight_map"]
    names = sorted({str(name) for name in files.values()}) if isinstance(files, dict) else []
    if odd := next((name for name in names if Path(name).name != name or not name.endswith(ENDINGS)), None):
        raise INDEX.bad(path, f"names {odd[:80]!r}, which is not a weights file beside it")
    return names


def _is_complete(folder: Path) -> bool:
    """Whether a cached folder has weights, including all shards."""
    present = {path.name for path in folder.iterdir() if path.is_file()}
    name = _weights_among(present)
    return name is not None and all(shard in present for shard in _shards(folder / name))


def _download(repo: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    if cached := _cached(repo, name, revision):
        return cached
    logging.getLogger(__name__).info("downloading %s of %s", name, repo)
    facts = get_hf_file_metadata(hf_hub_url(repo, name, revision=revision))
    large = _is_sha256(facts.etag or "") and facts.size is not None and facts.size <= MOST_BY_HTTP
    if large:
        _bring(repo, name, facts)
    path = Path(hf_hub_download(repo, name, revision=revision))
    if not large:
        verify(path, facts.etag or "")
    return path


def _bring(repo: str, name: str, facts: Any) -> None:
    """Download a file into its place in the cache, resuming what an earlier call began."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    blob, part = folder / facts.etag, folder / f"{facts.etag}.part"
    headers = build_hf_headers()
    if urlsplit(facts.location).netloc != urlsplit(constants.ENDPOINT).netloc:
        headers.pop("authorization", None)  # the token is for the hub, not for its file storage
    folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(folder / f"{facts.etag}.part.lock"):
        if blob.exists():
            return
        part.touch()
        with part.open("r+b", buffering=0) as file:
            size = file.seek(0, 2)
            if size > facts.size:
                size = file.truncate(file.seek(0))
            _require_disk(repo, facts.size - size)
            http_get(
                facts.location,
                file,
                resume_size=size,
                headers=headers,
                expected_size=facts.size,
                displayed_filename=name,
            )
        verify(part, facts.etag, name)
        part.replace(blob)


def _require_disk(model: str, size: int) -> None:
    """Refuse a download for which the disk of the cache has no room.

    Raises:
        OutputError: there is no room.
    """
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    place = next((folder for folder in (cache, *cache.parents) if folder.is_dir()), cache)
    free = shutil.disk_usage(place).free
    if size > free:
        raise OutputError(
            f"model '{model}' takes {size / 1e9:.2f} GB more on disk, and {free / 1e9:.2f} GB are free in "
            f"{shown(cache)}: make room, or set HF_HOME to a folder on another disk"
        )


@contextmanager
def asking(model: str, repo: str) -> Iterator[None]:
    """Ask the hub; an error is one line that says what to do, and never contains a token.

    Raises:
        ModelError: offline, unreachable, no such repository, revision or file, or not available to this account.
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
        raise ModelError(f"{what} is not a hub name; give {PREFIX}ORG/REPO") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(f"{what}: {_cause(error)}: {_ADVICE}") from error
    except EntryNotFoundError as error:
        raise ModelError(f"{what}: {repo} has no such file; see its page for their names") from error
    except (HfHubHTTPError, OSError) as error:
        if getattr(error, "errno", None) in UNWRITABLE:
            raise OutputError(
                f"{what}: cannot write the hub cache {shown(constants.HF_HUB_CACHE)}: {error.strerror}; "
                "set HF_HOME to another folder"
            ) from error
        raise ModelError(f"{what}: {_cause(error)}: {_ADVICE}") from error


def _cause(error: BaseException) -> str:
    """Why the hub did not give a file: the HTTP status, or the kind of error."""
    found: Any = error
    while found is not None:
        status = getattr(getattr(found, "response", None), "status_code", None)
        if status:
            return f"the hub answers {status}"
        found, last = found.__cause__, found
    return f"the hub cannot be reached ({type(last).__name__})"


def why_unreachable(endpoint: str, timeout: float = PROBE_SECONDS) -> str | None:
    """Ask once quickly, through the environment's proxies, before the hub client retries for half a minute."""
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=timeout):  # noqa: S310
            return None
    except urllib.error.HTTPError:
        return None  # it answers
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", None) or error)


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and not text.strip("0123456789abcdef")


def verify(path: Path, sha256: str, name: str | None = None) -> None:
    """Check a downloaded file against the SHA-256 that the hub publishes; remove a damaged one and report it.

    Args:
        path: the file in the cache, usually a link to its blob.
        sha256: 64 hexadecimal digits. Anything else belongs to a small file, which the hub hashes otherwise.
        name: of the file, for the message, if it differs from its path's.

    Raises:
        WeightsError: the digests differ.
    """
    blob = path.resolve()
    if not _is_sha256(sha256):
        return
    found = digest.of_file(blob)
    if found != sha256:
        blob.unlink()
        path.unlink(missing_ok=True)
        raise WeightsError(
            f"{name or path.name}: SHA-256 {found[:12]} is not the hub's {sha256[:12]}; "
            "the damaged file was removed, run the command again to download it"
        )

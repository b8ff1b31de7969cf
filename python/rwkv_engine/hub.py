"""Models of the Hugging Face hub: taken from its cache, or downloaded there first.

``huggingface_hub`` has the cache, the login and the connections. It throws a partial download away,
so what is large is placed into its cache from here: a download that ends early is a file
``<etag>.incomplete``, which the next one goes on with.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import inspect
import json
import logging
import os
import pathlib
import re
import shutil
import threading
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ._arguments import Path, Progress, path_bytes
from ._hub_errors import MODELS, TIMEOUT, explained, is_known, listed, megabytes
from .errors import Error

PREFIX = "hf:"

_CONFIG = "config.json"
_WEIGHTS = ".safetensors"
_INDEX = ".safetensors.index.json"
_SMALL = re.compile(
    r"config\.json|(tokenizer|special_tokens_map|added_tokens|vocab|20B_)[\w.-]*\.json"
    r"|[\w.-]*vocab[\w.-]*\.txt|merges\.txt|[^/]*\.safetensors\.index\.json"
)
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
_LARGEST = 50 * 10**9  # of larger files the hub gives no parts


def is_remote(model: Path) -> bool:
    """Tell whether a model is named as one of the hub."""
    return path_bytes(model, "model").startswith(PREFIX.encode())


def download(model: Path, progress: Progress | None = None) -> pathlib.Path:
    """Return the path of a model of the Hugging Face hub in the cache, after a download if need be.

    A model that is in the cache is taken from there without a request. A download that was broken
    off goes on where it stopped. The variables of ``huggingface_hub`` hold: ``HF_HOME`` says where
    the cache is, ``HF_HUB_OFFLINE=1`` forbids downloads, ``HF_TOKEN`` or ``hf auth login`` opens
    what is private.

    Parameters
    ----------
    model : str
        "hf:owner/repo/file"; "hf:owner/repo" for the folder of a repository in Hugging Face form,
        or the only model file in it. A revision stands behind the repository: "hf:owner/repo@v1",
        with %2F for a slash in it.
    progress : callable, optional
        Called with the bytes that are there and the bytes in all; what it raises ends the download.

    Raises
    ------
    Error
        If the name is malformed, or the model is not in the cache and cannot be downloaded.

    Examples
    --------
    >>> import rwkv_engine as rwkv
    >>> from rwkv_engine.hub import download
    >>> try:
    ...     download("hf:rwkv7-g1d-0.1b.pth")
    ... except rwkv.Error as error:
    ...     print(error)
    model: expected 'hf:owner/repo/file' or 'hf:owner/repo', found 'hf:rwkv7-g1d-0.1b.pth'
    """
    asked = _Name.parse(os.fsdecode(path_bytes(model, "model")))
    hub = _library()
    bar = _Bar(progress)
    with _quiet():
        try:
            if asked.file:
                return _cached(hub, asked) or _fetch(hub, asked, [asked.file], bar)[0]
            return _cached_folder(hub, asked) or _fetch_model(hub, asked, bar)
        except Error:
            raise
        except Exception as error:
            if error is bar.raised:
                raise
            said = explained(hub, asked.repo, asked.revision, error, bar.done, bar.total)
            raise Error(f"{asked.text}: {said}") from (None if is_known(error) else error)


@dataclass(frozen=True, slots=True)
class _Name:
    text: str
    repo: str
    revision: str | None
    file: str
    """Empty for the whole repository."""

    @classmethod
    def parse(cls, text: str) -> _Name:
        word = r"(?!\.\.?(?:/|@|$))[^/@\\\x00-\x20\x7f]+"
        found = re.fullmatch(rf"{PREFIX}({word}/{word})(?:@([^/\s]+))?((?:/[^\s/][^/]*)*)", text)
        if found is not None:
            revision = urllib.parse.unquote(found[2]) if found[2] else None
            file = found[3][1:]
            parts = [*file.split("/"), *(revision or "").split("/")]
            whole = not {".", ".."} & set(parts) and (revision is None or all(revision.split("/")))
            if whole and (file + (revision or "")).isprintable() and "\\" not in text:
                return cls(text, found[1], revision, file)
        raise Error(f"model: expected 'hf:owner/repo/file' or 'hf:owner/repo', found {text!r:.200}")

    @property
    def where(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


class _Bar:
    """What ``huggingface_hub`` takes for its progress bar; it prints nothing."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self.done = self.total = 0
        self.raised: Exception | None = None

    def close(self) -> None:
        """Do nothing: one bar serves several files."""

    def update(self, count: float | None = 1) -> None:
        self.done += int(count or 0)
        if self._progress is not None:
            try:
                self._progress(min(self.done, self.total), self.total)
            except Exception as error:
                self.raised = error
                raise


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.file_download  # it brings its parts one by one
    except ImportError as error:
        raise Error(
            f"model: names that begin with {PREFIX} need the package huggingface_hub ({error}); "
            "install it, or pass the path of a file"
        ) from None
    return huggingface_hub


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep from its own handlers what ``huggingface_hub`` logs on this thread."""
    own = threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != own

    handlers = list(logging.getLogger("huggingface_hub").handlers)
    for handler in handlers:
        handler.addFilter(of_others)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(of_others)


def _cached(hub: Any, asked: _Name, file: str = "") -> pathlib.Path | None:
    found = hub.try_to_load_from_cache(asked.repo, file or asked.file, revision=asked.revision)
    return pathlib.Path(found) if isinstance(found, str) else None


def _cached_folder(hub: Any, asked: _Name) -> pathlib.Path | None:
    """Return the folder of a repository if the weights, which come last, are in it."""
    config = _cached(hub, asked, _CONFIG)
    if config is None:
        return None
    folder = config.parent
    weights = _weights(folder, [path.name for path in folder.glob(f"*{_WEIGHTS}")])
    whole = bool(weights) and all((folder / name).is_file() for name in weights)
    return folder if whole else None


def _weights(folder: pathlib.Path, names: Sequence[str]) -> list[str]:
    """Return the files that hold the weights of a folder: those in its index, or the only one."""
    index = next(iter(sorted(folder.glob(f"*{_INDEX}"))), None)
    if index is None:
        whole = [name for name in names if not _SHARD.search(name)]
        return whole if len(whole) == 1 else [name for name in whole if name == f"model{_WEIGHTS}"]
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
        if not all(re.fullmatch(r"[^/\\]+\.safetensors", shard) for shard in shards):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Error(f"{index}: expected a weight_map that names {_WEIGHTS} files") from None
    return sorted(shards)


def _fetch_model(hub: Any, asked: _Name, bar: _Bar) -> pathlib.Path:
    """Download what a model folder needs, or the only model file of a repository."""
    found = hub.HfApi().model_info(asked.repo, revision=asked.revision, timeout=TIMEOUT)
    names = [file.rfilename for file in found.siblings or []]
    weights = [name for name in names if name.endswith(_WEIGHTS) and "/" not in name]
    indexed = any(name.endswith(_INDEX) and "/" not in name for name in names)
    whole = indexed or len(weights) == 1 or f"model{_WEIGHTS}" in weights
    if _CONFIG in names and weights and whole:
        commit = _Name(asked.text, asked.repo, found.sha, "")
        small = [name for name in names if _SMALL.fullmatch(name)]
        folder = _fetch(hub, commit, small, _Bar(None))[0].parent
        _fetch(hub, commit, _weights(folder, weights), bar)
        _linked(hub, asked, _CONFIG)  # the cache learns what the revision stands for
        return folder
    models = [name for name in names if name.endswith(MODELS)]
    if len(models) == 1:
        return _fetch(hub, asked, models, bar)[0]
    raise Error(
        f"{asked.text}: expected one model in {asked.where}, found {listed(models)}"
        + (f"; name one, such as '{asked.text}/{models[0]}'" if models else "")
    )


def _fetch(hub: Any, asked: _Name, files: Sequence[str], bar: _Bar) -> list[pathlib.Path]:
    """Download files into the cache; return where they are."""
    headers = hub.utils.build_hf_headers()
    found = []
    for file in files:
        url = hub.hf_hub_url(asked.repo, file, revision=asked.revision)
        found.append(hub.get_hf_file_metadata(url, timeout=TIMEOUT, headers=headers))
    bar.total += sum(meta.size or 0 for meta in found)
    for file, meta in zip(files, found, strict=True):
        if meta.size is not None and meta.size <= _LARGEST and meta.commit_hash is not None:
            url = hub.hf_hub_url(asked.repo, file, revision=meta.commit_hash)
            _fetch_blob(hub, asked.repo, url, meta, bar)
    paths = [_linked(hub, asked, file) for file in files]
    bar.update(bar.total - bar.done)
    return paths


def _fetch_blob(hub: Any, repo: str, url: str, meta: Any, bar: _Bar) -> None:
    """Place a file's content into the cache under its hash, going on with what is there of it."""
    cache = pathlib.Path(hub.constants.HF_HUB_CACHE)
    folder = hub.file_download.repo_folder_name(repo_id=repo, repo_type="model")
    etag = str(meta.etag)
    if not re.fullmatch(r"[\w-]+", etag):  # it becomes the name of a file
        raise Error(f"{url}: expected a hash as its ETag, found {etag!r:.100}")
    blob = cache / folder / "blobs" / etag
    lock = cache / ".locks" / folder / f"{etag}.lock"
    for place in (blob.parent, lock.parent):
        place.mkdir(parents=True, exist_ok=True)
    before = bar.done
    with hub.utils.WeakFileLock(lock):
        if blob.exists():
            return
        part = blob.with_name(f"{etag}.incomplete")
        # A part that others began, or that was on its way to the disk when the power went, may not
        # be what it should be: then the second time begins at nothing.
        for _ in range(2):
            if _fetch_part(hub, url, part, meta, bar):
                part.replace(blob)
                return
            part.unlink()
            bar.done = before
        raise Error(f"{url}: expected {meta.size} bytes, found more")


def _fetch_part(hub: Any, url: str, part: pathlib.Path, meta: Any, bar: _Bar) -> bool:
    """Download the rest of a file; return whether the whole of it is right."""
    with part.open("ab") as file:
        have = file.tell()
        if have > meta.size:
            return False
        free = shutil.disk_usage(part.parent).free
        if meta.size - have > free:
            need = f"{megabytes(meta.size - have)} are needed, {megabytes(free)} are free"
            raise OSError(errno.ENOSPC, need, str(part.parent))
        bar.update(have)
        try:
            hub.file_download.http_get(
                url,
                file,
                resume_size=have,
                headers=hub.utils.build_hf_headers(),
                expected_size=meta.size,
                _tqdm_bar=bar,
            )
        except OSError:
            if file.tell() > meta.size:  # the whole came after the part
                return False
            raise
        file.flush()
        os.fsync(file.fileno())
    if have == 0:
        return True
    # Large files are named by their hash, small ones by git's.
    digest = hashlib.sha256() if len(meta.etag) == 64 else hashlib.sha1(b"blob %d\0" % meta.size)
    with part.open("rb") as file:
        for piece in iter(functools.partial(file.read, 1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest() == str(meta.etag)


def _linked(hub: Any, asked: _Name, file: str) -> pathlib.Path:
    """Return a file's place in the cache; its content has been downloaded, unless it is huge."""

    class Silent(hub.utils.tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

    bars = {"tqdm_class": Silent}
    known = inspect.signature(hub.hf_hub_download).parameters
    options = bars if "tqdm_class" in known else {}
    return pathlib.Path(hub.hf_hub_download(asked.repo, file, revision=asked.revision, **options))

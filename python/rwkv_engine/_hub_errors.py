"""Why a model of the Hugging Face hub cannot be had, in words that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

MODELS = (".pth", ".safetensors", ".st", ".gguf")
TIMEOUT = 10  # seconds

_SHOWN = 10


def explained(
    hub: Any, repo: str, revision: str | None, error: BaseException, done: int, total: int
) -> str:
    """Return what went wrong after so many bytes, and what can be done."""
    where = repo if revision is None else f"{repo}@{revision}"
    kinds = hub.utils
    if isinstance(error, kinds.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, kinds.HFValidationError):
        return f"expected the name of a repository, found: {_reason(error)}"
    if isinstance(error, kinds.OfflineModeIsEnabled):
        return (
            "not in the cache, and HF_HUB_OFFLINE forbids downloads; unset it, "
            "or pass the path of a file"
        )
    if isinstance(error, kinds.GatedRepoError):
        place = f"{hub.constants.ENDPOINT}/{repo}"
        return f"{repo} is gated: accept the terms at {place} and run `hf auth login`"
    if isinstance(error, kinds.RepositoryNotFoundError):
        return (
            f"no repository {repo} was found on the hub; check the name, "
            "or run `hf auth login` if it is private"
        )
    if isinstance(error, kinds.RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}"
    if isinstance(error, kinds.EntryNotFoundError):
        return f"no such file in {where}{_models_in(hub, repo, revision)}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return (
            f"the hub refused access to {repo} ({status}); accept its terms if it has some "
            "and run `hf auth login`"
        )
    if (isinstance(error, OSError) and error.filename is not None) or _is_full(error):
        full = "; free some space or set HF_HOME to another disk" if _is_full(error) else ""
        return f"the download cannot be stored: {_reason(error)}{full}"
    if not is_known(error):
        return f"huggingface_hub failed: {type(error).__name__}: {_reason(error)}"
    if done > 0:
        return (
            f"the download ended after {megabytes(done)} of {megabytes(total)}: "
            f"{_reason(error)}; the next call goes on from there"
        )
    return (
        f"not in the cache, and the hub cannot be reached: {_reason(error)}; "
        "pass the path of a file"
    )


def is_known(error: BaseException) -> bool:
    """Tell whether it is of the network or the system, and no defect."""
    libraries = {"httpx", "httpx2", "httpcore", "requests", "urllib3", "huggingface_hub"}
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in libraries


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _models_in(hub: Any, repo: str, revision: str | None) -> str:
    """Return what model files there are, if the hub says so."""
    try:
        found = hub.HfApi().model_info(repo, revision=revision, timeout=TIMEOUT)
    except Exception:  # the sentence goes without
        return ""
    names = [file.rfilename for file in found.siblings or []]
    return f"; it has {listed([name for name in names if name.endswith(MODELS)])}"


def listed(names: Sequence[str]) -> str:
    """Return how many model files there are, and the first of them."""
    if not names:
        return f"no model files ({' '.join(MODELS)})"
    shown = ", ".join(name for name in sorted(names)[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} model file{'s' if len(names) > 1 else ''}: {shown}{more}"


def _reason(error: BaseException) -> str:
    """Return in a line what went wrong: what the hub answered, or what the system said."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"it answered {status}"
    text = str(error)
    cause: BaseException | None = error
    for _ in range(20):  # chains can be cyclic
        if cause is None:
            break
        if isinstance(cause, OSError) and cause.strerror:
            text = str(cause)
        cause = cause.__cause__ or cause.__context__
    return " ".join(text.split())[:300] or type(error).__name__


def megabytes(count: int) -> str:
    """Return a number of bytes for people."""
    return f"{count / 1e6:,.1f} MB"

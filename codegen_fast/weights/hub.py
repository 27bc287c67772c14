"""From what a user names, a folder or a Hugging Face Hub id, to a folder with the files in it."""

from __future__ import annotations

import os
import re
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Iterator, Sequence

CONFIG_PATTERNS = ("config.json", "generation_config.json")
SAFETENSORS_PATTERNS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
BIN_PATTERNS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")
# What a model needs. Weights of other frameworks and training state match none of these.
CHECKPOINT_PATTERNS = CONFIG_PATTERNS + SAFETENSORS_PATTERNS + BIN_PATTERNS

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve(path_or_repo: str | os.PathLike, patterns: Sequence[str] = CHECKPOINT_PATTERNS, *,
            revision: str | None = None, cache_dir: str | os.PathLike | None = None, token: str | bool | None = None,
            local_files_only: bool = False) -> Path:
    """The folder that holds the files: an existing folder as it is, else the repository's snapshot in the Hub's cache.

    patterns: names of the files that are downloaded. Files of BIN_PATTERNS are downloaded only where the repository
    has no safetensors. Offline (local_files_only, HF_HUB_OFFLINE=1, or no connection) the cache serves.
    Raises OSError where the value is neither a folder nor a repository that can be had.
    """
    if not isinstance(path_or_repo, (str, os.PathLike)):
        raise TypeError(f"the model is {path_or_repo!r} ({type(path_or_repo).__name__}); expected the path of a "
                        f"folder or a Hub id such as 'Salesforce/codegen-350M-mono'")
    name = os.fspath(path_or_repo)
    folder = Path(name)
    if name and folder.is_dir():
        return folder
    if folder.is_file():
        raise OSError(f"{name} is a file; expected the folder that holds config.json and the weights")
    if not _HUB_ID.fullmatch(name):
        raise OSError(f"there is no folder {name!r}, and it is not a Hub id either (expected the form "
                      f"'Salesforce/codegen-350M-mono')")
    options = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
    snapshot = _download(name, [p for p in patterns if p not in BIN_PATTERNS], options)
    bins = [p for p in patterns if p in BIN_PATTERNS]
    if bins and not any(next(snapshot.glob(p), None) for p in SAFETENSORS_PATTERNS):
        snapshot = _download(name, bins, options)
    return snapshot


def _is_offline(options: dict) -> bool:
    return options["local_files_only"] or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")


_changing_clients = threading.Lock()


@contextmanager
def _answered_in_time(repo: str) -> Iterator[None]:
    """Within it, a question about `repo` that huggingface_hub would wait for without end may be HF_HUB_ETAG_TIMEOUT silent.

    Of its questions those for a revision, for a list of files and for a token of its storage have no limit, and
    snapshot_download takes none for them; where it has one, as for files, that stays. Others' questions stay as they are.
    """
    from huggingface_hub import constants, get_session

    client, seconds = get_session(), constants.HF_HUB_ETAG_TIMEOUT
    if not hasattr(client, "event_hooks"):  # huggingface_hub before 1.0, on requests: a client for each thread
        send = client.send
        client.send = lambda request, **options: send(request, **{**options, "timeout": options.get("timeout") or seconds})
        try:
            yield
        finally:
            del client.send
        return

    def limit(request: Any) -> None:
        if repo in request.url.path and request.method in ("GET", "HEAD"):
            limits = request.extensions.get("timeout", {})
            kinds = ("connect", "read", "write", "pool")  # read: between two pieces of an answer, not for the whole of it
            request.extensions["timeout"] = {kind: seconds if limits.get(kind) is None else limits[kind] for kind in kinds}

    # The client is everybody's. Its list of hooks is replaced, never changed: a thread may be going through it.
    with _changing_clients:
        client.event_hooks = {**client.event_hooks, "request": [*client.event_hooks["request"], limit]}
    try:
        yield
    finally:
        with _changing_clients:
            left = [hook for hook in client.event_hooks["request"] if hook is not limit]
            client.event_hooks = {**client.event_hooks, "request": left}


def _is_timeout(error: BaseException) -> bool:
    """By its name: which HTTP library the Hub's client is built on differs from version to version."""
    return "Timeout" in type(error).__name__


def _not_in_cache(error: Exception, options: dict) -> str:
    """What to say where the cache would have to serve and cannot."""
    if _is_offline(options):
        return "it is not (wholly) in the cache and downloads are off; allow them, or give a folder"
    if error.__cause__ is not None and _is_timeout(error.__cause__):
        return "the Hub does not answer and it is not (wholly) in the cache; try again later, or give a folder"
    return "the Hub cannot be reached and it is not (wholly) in the cache; connect, or give a folder"


def _download(repo: str, patterns: list[str], options: dict) -> Path:
    # Imported here: it takes longer to import than the rest of the package, and a folder needs none of it.
    from huggingface_hub import errors, snapshot_download

    try:
        with nullcontext() if _is_offline(options) else _answered_in_time(repo):
            return Path(snapshot_download(repo, allow_patterns=patterns, **options))
    except errors.GatedRepoError as error:
        reason = ("it is gated; ask for access on its page and pass token=", error)
    except errors.RepositoryNotFoundError as error:
        reason = ("the Hub knows no such repository, or it is private; check the spelling or pass token=", error)
    except errors.RevisionNotFoundError as error:
        reason = (f"the repository has no revision {options['revision']!r}", error)
    except errors.LocalEntryNotFoundError as error:
        reason = (_not_in_cache(error, options), error)
    # HFValidationError is a ValueError; the HTTP library's own errors are no OSError.
    except (OSError, errors.HFValidationError, errors.HTTPError) as error:
        reason = (" ".join(str(error).split()), error)
        if _is_timeout(error):
            reason = ("the Hub stopped answering; ask again, what has come whole is kept", error)
    raise OSError(f"{repo!r} is not a folder, and its files cannot be had from the Hub: {reason[0]}") from reason[1]

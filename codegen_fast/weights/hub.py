"""From what a user names, a folder or a Hugging Face Hub id, to a folder with the files in it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Sequence

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
    if not _is_offline(options) and _is_silent(name, options):
        options |= {"local_files_only": True}
        instead = "the Hub does not answer and it is not (wholly) in the cache; try again later, or give a folder"
    elif _is_offline(options):
        instead = "it is not (wholly) in the cache and downloads are off; allow them, or give a folder"
    else:
        instead = "the Hub cannot be reached and it is not (wholly) in the cache; connect, or give a folder"
    snapshot = _download(name, [p for p in patterns if p not in BIN_PATTERNS], options, instead)
    bins = [p for p in patterns if p in BIN_PATTERNS]
    if bins and not any(next(snapshot.glob(p), None) for p in SAFETENSORS_PATTERNS):
        snapshot = _download(name, bins, options, instead)
    return snapshot


def _is_offline(options: dict) -> bool:
    return options["local_files_only"] or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")


def _is_silent(repo: str, options: dict) -> bool:
    """Whether the Hub takes a question and does not answer in time: snapshot_download would wait for it for ever."""
    from huggingface_hub import HfApi, constants

    try:
        HfApi(token=options["token"]).repo_info(repo, revision=options["revision"], timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # snapshot_download meets it again, where it is named
        return _is_timeout(error)
    return False


def _is_timeout(error: Exception) -> bool:
    """By its name: which HTTP library the Hub's client is built on differs from version to version."""
    return "Timeout" in type(error).__name__


def _download(repo: str, patterns: list[str], options: dict, instead: str) -> Path:
    """instead: what to say where the cache would have to serve and cannot."""
    # Imported here: it takes longer to import than the rest of the package, and a folder needs none of it.
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=patterns, **options))
    except errors.GatedRepoError as error:
        reason = ("it is gated; ask for access on its page and pass token=", error)
    except errors.RepositoryNotFoundError as error:
        reason = ("the Hub knows no such repository, or it is private; check the spelling or pass token=", error)
    except errors.RevisionNotFoundError as error:
        reason = (f"the repository has no revision {options['revision']!r}", error)
    except errors.LocalEntryNotFoundError as error:
        reason = (instead, error)
    # HFValidationError is a ValueError; the HTTP library's own errors are no OSError.
    except (OSError, errors.HFValidationError, errors.HTTPError) as error:
        reason = (" ".join(str(error).split()), error)
        if _is_timeout(error):
            reason = ("the Hub stopped answering; ask again, what has come whole is kept", error)
    raise OSError(f"{repo!r} is not a folder, and its files cannot be had from the Hub: {reason[0]}") from reason[1]

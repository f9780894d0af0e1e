"""Models, tokenizers and datasets of the Hugging Face hub, and local folders that are laid out alike."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from softcache.errors import DatasetError, ModelError, SoftcacheError, UsageError
from softcache.extras import missing_extra

Kind = Literal["model", "dataset"]

COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[A-Za-z0-9_][\w.\-]*(/[A-Za-z0-9_][\w.\-]*)?", re.ASCII)


def local_folder(name: str, revision: str | None = None) -> Path | None:
    """The absolute path of the folder that a name is, None for a name on the hub. A folder that is here goes first.

    Errors: ``UsageError`` for a path at which there is no folder, and for a revision of a folder.
    """
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        if revision is not None:
            raise UsageError(f"hf:{path} is a folder, which has no revisions: leave out revision={revision}")
        return Path(os.path.abspath(path))
    if not _NAME.fullmatch(name):
        raise UsageError(f"hf:{name}: no folder is there, and no name on the hub is written so (NAME or OWNER/NAME)")
    return None


@functools.cache
def snapshot(name: str, kind: Kind, revision: str | None, files: tuple[str, ...]) -> Path:
    """The folder in the hub's local cache that holds some files of a repository, as they are at one commit, which is
    the folder's name. Files that the repository doesn't have are left out; what is there already is not fetched again.

    A revision is resolved once in a process, so that its files are all of one commit.

    Errors: ``ModelError`` or ``DatasetError`` of one line where there is no such repository or revision, or where the
    hub can't be reached and the local cache lacks it.
    """
    with told_in_a_line(f"hf:{name}", kind), _quiet_client():
        from huggingface_hub import snapshot_download

        # The name of the folder is the commit, whatever the revision was.
        return Path(snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=list(files)))


@contextlib.contextmanager
def told_in_a_line(what: str, kind: Kind) -> Iterator[None]:
    """What the hub's client, transformers or datasets raise becomes a ``ModelError`` or ``DatasetError`` of one line,
    which says what can be done."""
    from huggingface_hub import errors

    try:
        yield
    except SoftcacheError:
        raise
    except errors.GatedRepoError as error:
        reason = "its owner grants access on request: ask for it on its page, then log in with `hf auth login`"
        raise _error(kind)(f"{what}: {reason}") from error
    except errors.RepositoryNotFoundError as error:
        raise _error(kind)(
            f"{what}: there is no such {kind} on the hub and no folder of that name here, or it is private and you "
            "are not logged in (`hf auth login`)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise _error(kind)(f"{what}: the hub has no such revision of it") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise _error(kind)(
            f"{what} is not in the hub's cache on this machine, and the hub can't be reached: fetch it where it can "
            "(hf download) and name the folder, hf:FOLDER"
        ) from error
    except Exception as error:  # the client's transport and the libraries' readers raise many kinds
        raise _error(kind)(f"{what} can't be read: {type(error).__name__}: {short(error)}") from error


def short(error: Exception) -> str:
    """The beginning of a message, in one line."""
    return " ".join(str(error).split())[:300]


def require(owner: str, *packages: str) -> None:
    """Errors: ``MissingExtraError`` where one of the packages isn't installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise missing_extra(f"{owner} needs {package}", "hf")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and reports that transformers writes while it loads a model or a tokenizer."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _quiet_client() -> Iterator[None]:
    """Without the warnings of the hub's client, and without progress bars where nobody sees them."""
    from huggingface_hub import utils

    before, bars = utils.logging.get_verbosity(), not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(before)
        if bars:
            utils.enable_progress_bars()


def split_options(spec: str) -> tuple[str, dict[str, str]]:
    """``"hf:a/b,config=c"`` → ``("a/b", {"config": "c"})``.

    >>> split_options("hf:google/vit,revision=main,auto=AutoModel")
    ('google/vit', {'revision': 'main', 'auto': 'AutoModel'})
    """
    found = re.fullmatch(r"hf:(.*?)((?:,\s*\w+\s*=[^,]*)*)", spec, re.DOTALL)
    assert found is not None, spec
    options = dict(part.split("=", 1) for part in found[2].split(",")[1:])
    return found[1].strip(), {key.strip(): value.strip() for key, value in options.items()}


def change_places(spec: str, change: Callable[[str], str]) -> str:
    """A spec with what names a folder or a repository in it, the model or dataset and its tokenizer, changed.

    >>> change_places("hf:a,tokenizer=b,max_length=8", str.upper)
    'hf:A,tokenizer=B,max_length=8'
    """
    name, options = split_options(spec)
    changed = {key: change(value) if key == "tokenizer" else value for key, value in options.items()}
    return "".join([f"hf:{change(name)}", *(f",{key}={value}" for key, value in changed.items())])


def trusts_code(spec: str) -> bool:
    """Whether a spec allows that code beside a model is run."""
    return split_options(spec)[1].get("trust_remote_code", "").lower() in ("true", "yes", "1")


def _error(kind: Kind) -> Any:
    return ModelError if kind == "model" else DatasetError

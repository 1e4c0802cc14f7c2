"""From what a user calls a model to a folder on disk: a path, or a hub id that is downloaded first. Imports no torch.

Never: code from a repository. Only weights, JSON, the tiktoken vocabulary and chat templates are fetched.
`huggingface_hub` reads HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and HF_TOKEN when it is imported, so it is imported on
first use.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from perilune.builtin import model_path
from perilune.errors import ModelNotFoundError
from perilune.models.checkpoint import INDEX
from perilune.models.config import CONFIG, GENERATION

BUILTIN = "builtin"

_WANTED = ["*.safetensors", "*.json", "tiktoken.model", "*.jinja"]
_WANTED_FOR_PLAN = [CONFIG, GENERATION, INDEX]
_SUBFOLDERS = ["*/*"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(model: str, revision: str | None = None, progress: bool = True) -> Path:
    """The folder of `model`: a local folder as it is, a hub id (`owner/name`) after downloading it to the hub's cache.

    `revision` is a branch, tag or commit of the hub repository; `progress` shows download bars on a terminal.
    Raises ModelNotFoundError when there is no such folder or repository, or the hub cannot be asked.
    """
    path = _local(model)
    if path is None:
        return _download(model, revision, _WANTED, progress)
    if path.is_file():
        raise ModelNotFoundError(
            f"{path} is a file, not a model folder.",
            "A model needs its weights beside its config.",
            f"Pass the folder: {path.parent}.",
        )
    return path


def resolve_config_only(model: str, revision: str | None = None) -> Path:
    """Where the config of `model` is: a local folder, a local config.json, or a hub snapshot without weights.

    Raises ModelNotFoundError as `resolve`.
    """
    return _local(model) or _download(model, revision, _WANTED_FOR_PLAN, progress=False)


def _local(model: str) -> Path | None:
    """The path `model` names, or None if it can only be a hub id. `builtin` is the model in the package."""
    if model == BUILTIN:
        return model_path()
    path = Path(model).expanduser()
    if model and path.exists():
        return path
    if not _HUB_ID.fullmatch(model):
        raise ModelNotFoundError(
            f"There is no model {model!r}.",
            "No such folder exists, and a hub id has the form owner/name.",
            "Check the path or the id; `builtin` is the small model that comes with perilune.",
        )
    return None


def _download(model: str, revision: str | None, wanted: list[str], progress: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class Silent(tqdm):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]  # tqdm has no types

    try:
        folder = snapshot_download(
            model,
            revision=revision,
            allow_patterns=wanted,
            ignore_patterns=_SUBFOLDERS,
            tqdm_class=tqdm if progress else Silent,
        )
    except Exception as error:  # the library also lets its HTTP client's own errors through
        raise _explain(model, revision, error) from error
    return Path(folder)


def _explain(model: str, revision: str | None, error: Exception) -> ModelNotFoundError:
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    local = f"{model!r} is no local folder either."
    if isinstance(error, hub.GatedRepoError):
        return ModelNotFoundError(
            f"{model} is gated.",
            f"The hub at {constants.ENDPOINT} gives it only to accounts that accepted its terms.",
            "Accept them on the model's page and set HF_TOKEN to a token of that account.",
        )
    if isinstance(error, hub.RepositoryNotFoundError):
        return ModelNotFoundError(
            f"There is no model {model}.",
            f"The hub at {constants.ENDPOINT} does not have it, or it is private. {local}",
            "Check the spelling; for a private model set HF_TOKEN.",
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return ModelNotFoundError(
            f"{model} has no revision {revision!r}.", "", "Name a branch, a tag or a commit of the repository."
        )
    if constants.HF_HUB_OFFLINE and isinstance(error, hub.LocalEntryNotFoundError):
        return ModelNotFoundError(
            f"{model} is not in the local cache, or not all of it.",
            f"HF_HUB_OFFLINE forbids asking the hub. {local}",
            "Unset HF_HUB_OFFLINE once to download it, or pass a folder.",
        )
    proxy = " and HTTPS_PROXY" if os.environ.get("HTTPS_PROXY") else ""
    return ModelNotFoundError(
        f"{model} could not be downloaded.",
        f"Asking {constants.ENDPOINT} failed: {_first_line(error)} {local}",
        f"Check the network, HF_ENDPOINT{proxy}, and free disk space; a second try continues where this one stopped.",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]

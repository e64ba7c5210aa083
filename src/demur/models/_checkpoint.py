"""Where the files of a checkpoint lie on disk."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from demur.errors import ModelError


def checkpoint_folder(model_id: str, *, revision: str | None = None) -> Path:
    """The local folder of a model: itself, or the hub's cached snapshot, downloaded if it is not there yet.

    Raises:
        ModelError: the hub has no such model, or cannot be reached.
    """
    if Path(model_id).is_dir():
        return Path(model_id)
    try:
        return Path(snapshot_download(model_id, revision=revision, ignore_patterns=["*.bin", "*.pt", "*.gguf"]))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ModelError(
            f"cannot find the files of {model_id}: {error}. Give a local model folder when calibrating, or go online."
        ) from error

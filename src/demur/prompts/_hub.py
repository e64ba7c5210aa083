"""Datasets of the Hugging Face Hub into tables, through the `datasets` library and its cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demur.errors import PromptError
from demur.prompts._columns import find_columns
from demur.prompts._source import HubSource, exists
from demur.prompts._table import Row, Table

_DETAIL_CHARACTERS = 300

# Exception classes are told apart by name: they have moved between releases of datasets, huggingface_hub and its HTTP
# library, and a name also matches where the class is not installed.
_GATED = {"GatedRepoError"}
_NOT_FOUND = {"DatasetNotFoundError", "RepositoryNotFoundError"}
_REVISION = {"RevisionNotFoundError", "RevisionResolutionError"}
_NO_NETWORK = {"ConnectionError", "OfflineModeIsEnabled", "TimeoutError", "TransportError", "Timeout"}


def read_hub(source: HubSource) -> Table:
    """Load a dataset from the Hub, or from the local cache of `datasets`.

    Raises:
        PromptError: the dataset, its config, split, revision or column does not exist or may not be read, the Hub
            cannot be reached, or the `datasets` library fails for another reason, which is then quoted.
    """
    if exists(Path(source.dataset)):
        raise PromptError(
            f"{source.name}: the folder {Path(source.dataset).resolve()} has the same name, and `datasets` would read "
            "it instead of the Hub. Start demur in another folder, or give the path of the prompt file itself."
        )
    data = _load(source)
    names = [str(name) for name in data.column_names]
    chosen = find_columns(names, source)
    try:
        values = data.select_columns(chosen.names()).to_list()
    except Exception as error:  # decoding a column runs code of any library
        raise PromptError(
            f"{source.name}: the rows cannot be read: {_detail(error)}. To go on, {source.instead}."
        ) from error
    return Table("row", [Row(number, value) for number, value in enumerate(values, start=1)], tuple(names))


def _load(source: HubSource) -> Any:
    """The one split that was asked for, or the only one that there is."""
    import datasets  # noqa: PLC0415 - start-up time: only hf:// sources need it

    # `datasets` reads hf://json as "the JSON files of the current folder", and csv, text and others likewise.
    if source.dataset in getattr(datasets.packaged_modules, "_PACKAGED_DATASETS_MODULES", {}):
        raise PromptError(
            f"{source.name}: {source.dataset!r} is a file format of `datasets`, not a dataset. Give hf://OWNER/NAME, "
            "or the path of the file itself."
        )
    try:
        with _no_progress_bars():
            data = datasets.load_dataset(
                source.dataset,
                name=source.config,
                split=source.split,
                revision=source.revision,
                **dict(source.reader),
            )
    except Exception as error:  # builders raise whatever the library under them does
        raise PromptError(_explain(error, source)) from error
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        splits = [str(name) for name in data]
        raise PromptError(
            f"{source.name}: the dataset has {len(splits)} splits: {', '.join(splits)}. Name the one to use, "
            f"for example {source.with_options(split=splits[0]) if splits else source.name}."
        )
    return next(iter(data.values()))


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """The bars of `datasets` and of its downloads would write over the console's own."""
    import datasets  # noqa: PLC0415 - start-up time
    from huggingface_hub import utils  # noqa: PLC0415 - start-up time

    shown = [library for library in (datasets, utils) if not library.are_progress_bars_disabled()]
    for library in shown:
        library.disable_progress_bars()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bars()


def _explain(error: Exception, source: HubSource) -> str:
    kinds = {base.__name__ for cause in _chain(error) for base in type(cause).__mro__}
    page = f"https://huggingface.co/datasets/{source.dataset}"
    detail = _detail(error)
    if kinds & _GATED or "gated dataset" in detail:
        return (
            f"{source.name}: the dataset is gated. Accept its terms at {page}, then log in with `hf auth login` or set "
            f"HF_TOKEN; or {source.instead}."
        )
    if kinds & _REVISION or detail.startswith("Revision "):
        return (
            f"{source.name}: there is no revision {source.revision!r}. Give revision= a commit, branch or tag that "
            f"{page} lists, or leave it out."
        )
    if kinds & _NOT_FOUND:
        return (
            f"{source.name}: no such dataset on the Hub, or a private one. Check the name at {page}; where it is "
            f"private, log in with `hf auth login`; or {source.instead}."
        )
    if kinds & _NO_NETWORK:
        return (
            f"{source.name}: the Hub cannot be reached, and the dataset is not in the local cache ({detail}). Check "
            f"the network and the variables HF_HUB_OFFLINE and HF_ENDPOINT; or {source.instead}."
        )
    return f"{source.name}: {_wrong_option(detail, source)}"


def _wrong_option(detail: str, source: HubSource) -> str:
    """What to say where the dataset exists and could still not be loaded."""
    if "Unknown split" in detail:
        return f"there is no split {source.split!r} ({detail}). Give one of them as split=."
    if "BuilderConfig" in detail:
        return f"there is no config {source.config!r} ({detail}). Give one of them as {_config_form(source)}."
    if "Config name is missing" in detail:
        return f"the dataset has several configs ({detail}). Give one of them as {_config_form(source)}."
    return f"`datasets` cannot load it: {detail}. To go on, {source.instead}."


def _config_form(source: HubSource) -> str:
    return f"hf://{source.dataset}/CONFIG" if "/" in source.dataset else f"hf://{source.dataset}?config=CONFIG"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _detail(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if len(text) > _DETAIL_CHARACTERS:
        text = text[:_DETAIL_CHARACTERS] + "..."
    # Only the class of the cause: its text may quote the cell that could not be read.
    return f"{text} ({type(error.__cause__).__name__})" if error.__cause__ else text

"""What the user may write for a prompt source: a path, `hf://`, `set:`, `mix:`, `demur:`. Opens nothing."""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from demur.errors import PromptError

FORMATS: dict[str, str] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
    ".text": "text",
}
"""Which reader a file name's end asks for."""

BUNDLED = ("harmful", "harmless", "borderline")
"""The sets that ship with demur, as `demur:NAME`."""

_HUB_OPTIONS = ("split", "column", "revision", "config")
_HUB_SHAPE = "hf://OWNER/NAME[/CONFIG][?split=SPLIT&column=COLUMN&revision=REVISION]"
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Wanted:
    """The columns of a published set, by the names that its files give them."""

    prompt: tuple[str, ...]
    """The first that a file has holds the prompts."""
    category: str | None
    others: tuple[str, ...]
    """Columns that choose the rows or complete the prompt; read where they exist."""
    hint: str
    """For the message where no prompt column is found."""


@dataclass(frozen=True)
class FileSource:
    """A local file."""

    given: str
    path: Path
    column: str | None = None
    wanted: Wanted | None = None

    @property
    def name(self) -> str:
        """The file, for messages."""
        return str(self.path)

    def with_column(self, column: str) -> str:
        """What to type for this source and another column."""
        return f"{self.path}:{column}"


@dataclass(frozen=True)
class HubSource:
    """A dataset of the Hugging Face Hub."""

    given: str
    dataset: str
    config: str | None = None
    split: str | None = None
    column: str | None = None
    revision: str | None = None
    wanted: Wanted | None = None
    reader: tuple[tuple[str, str | bool], ...] = ()
    """Options for the reader of `datasets`, where the file is not read right without."""
    instead: str = "download the file elsewhere and give its path"
    """What to do where the Hub does not give the dataset."""

    @property
    def name(self) -> str:
        """The address without its options, for messages."""
        return f"hf://{self.dataset}" + (f"/{self.config}" if self.config else "")

    def with_options(self, **changes: str) -> str:
        """What to type for this source with some options changed."""
        options = {"split": self.split, "column": self.column, "revision": self.revision, **changes}
        address = f"hf://{self.dataset}"
        if self.config and "/" in self.dataset:
            address += f"/{self.config}"
        elif self.config:
            options["config"] = self.config
        query = "&".join(f"{key}={quote(value, safe='[]:+/')}" for key, value in options.items() if value)
        return f"{address}?{query}" if query else address

    def with_column(self, column: str) -> str:
        """What to type for this source and another column."""
        return self.with_options(column=column)


@dataclass(frozen=True)
class SetSource:
    """A published set, from the Hub or from a local copy of its file."""

    given: str
    set: str
    path: Path | None


@dataclass(frozen=True)
class MixSource:
    """A named mix of published sets, with a folder of local copies if there is one."""

    given: str
    mix: str
    folder: Path | None


@dataclass(frozen=True)
class BundledSource:
    """A set that ships with demur."""

    given: str
    set: str


Source = FileSource | HubSource


def parse_source(given: str) -> Source | SetSource | MixSource | BundledSource:
    """Read what the user typed.

    Raises:
        PromptError: it is empty, an address of another kind, a bad hf:// address, or ends in a bare colon.
    """
    kind, colon, named = given.strip().partition(":")
    if colon and not named.startswith("//") and kind.casefold() in _NAMED:
        return _NAMED[kind.casefold()](given, named)
    if not given.strip():
        raise PromptError("the prompt source is empty; give a file such as prompts.jsonl, or " + _HUB_SHAPE + ".")
    scheme, mark, rest = given.partition("://")
    if mark and scheme.casefold() == "hf":
        return _parse_hub(given, rest)
    if mark and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        raise PromptError(
            f"{given}: addresses that start with {scheme}:// are not read. Download the file and give its path, "
            f"or give a dataset of the Hub as {_HUB_SHAPE}."
        )
    return _parse_file(given)


def _parse_set(given: str, rest: str) -> SetSource:
    name, equals, path = rest.partition("=")
    if not name.strip() or (equals and not path.strip()):
        raise PromptError(
            f"{given}: this does not name a set. Give set:NAME, or set:NAME=PATH for a local copy of its file; "
            "`demur prompts list` shows the names."
        )
    return SetSource(given, name.strip().casefold(), _path(path.strip()) if equals else None)


def _parse_mix(given: str, rest: str) -> MixSource:
    name, mark, query = rest.partition("?")
    key, _, folder = query.partition("=")
    if not name.strip() or (mark and (key != "dir" or not folder.strip())):
        raise PromptError(
            f"{given}: this does not name a mix. Give mix:NAME, or mix:NAME?dir=FOLDER with a folder of local copies; "
            "`demur prompts list` shows the names."
        )
    return MixSource(given, name.strip().casefold(), _path(folder.strip()) if mark else None)


def _parse_bundled(given: str, rest: str) -> BundledSource:
    if rest.strip().casefold() not in BUNDLED:
        names = ", ".join(f"demur:{name}" for name in BUNDLED)
        raise PromptError(f"{given}: demur ships no such set; it ships {names}.")
    return BundledSource(given, rest.strip().casefold())


_NAMED: dict[str, Callable[[str, str], SetSource | MixSource | BundledSource]] = {
    "set": _parse_set,
    "mix": _parse_mix,
    "demur": _parse_bundled,
}


def _parse_file(given: str) -> FileSource:
    whole = _path(given)
    if exists(whole):
        return FileSource(given, whole)
    cuts = list(_cuts(given))
    for head, column in cuts:
        path = _path(head)
        if exists(path):
            return _with_named_column(given, path, column)
    # Nothing exists: take the reading whose path ends like a prompt file, so that the message names the right file.
    for head, column in cuts:
        path = _path(head)
        if path.suffix.lower() in FORMATS:
            return _with_named_column(given, path, column)
    return FileSource(given, whole)


def _cuts(given: str) -> Iterator[tuple[str, str]]:
    """Every (path, column) that `given` may mean, longest path first; one letter before a colon is a drive."""
    for at in reversed([match.start() for match in re.finditer(":", given)]):
        if at > 1:
            yield given[:at], given[at + 1 :]


def _with_named_column(given: str, path: Path, column: str) -> FileSource:
    if not column.strip():
        raise PromptError(f"{given}: no column is named after the colon. Give {path}:COLUMN, or {path} alone.")
    return FileSource(given, path, column)


def _path(given: str) -> Path:
    try:
        return Path(given).expanduser()
    except RuntimeError:  # ~name of nobody: take it as it stands, and it will be missing
        return Path(given)


def exists(path: Path) -> bool:
    """Whether the path exists, False where the system cannot say."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that the system cannot hold, or a folder that may not be searched
        return False


def _parse_hub(given: str, rest: str) -> HubSource:
    address, _, query = rest.partition("?")
    parts = address.rstrip("/").split("/")
    if parts[0] == "datasets" and len(parts) > 1:  # the form that huggingface_hub's file system uses
        parts = parts[1:]
    options = _hub_options(given, query)
    bad = next((part for part in parts[:2] if not _HUB_NAME.fullmatch(part)), None)
    if bad is not None or len(parts) > 3:
        raise PromptError(_bad_address(given, parts, bad, options))
    if len(parts) == 3 and options.get("config"):
        raise PromptError(f"{given}: the config is given twice, as {parts[2]} and as config={options['config']}.")
    config = unquote(parts[2]) if len(parts) == 3 else options.get("config")
    if config == "":
        raise PromptError(f"{given}: the config is empty. The form is {_HUB_SHAPE}.")
    return HubSource(
        given=given,
        dataset="/".join(parts[:2]),
        config=config,
        split=options.get("split"),
        column=options.get("column"),
        revision=options.get("revision"),
    )


def _bad_address(given: str, parts: list[str], bad: str | None, options: dict[str, str]) -> str:
    message = f"{given}: this is not a dataset address"
    if bad is None:
        return f"{message}: it has {len(parts)} parts. The form is {_HUB_SHAPE}."
    name, mark, tail = bad.partition("@")
    if not mark:
        name, mark, tail = bad.partition(":")
    option = {"@": "revision", ":": "column"}.get(mark)
    if option is None or not tail or not _HUB_NAME.fullmatch(name):
        return f"{message}: {bad!r} is not a name that the Hub allows. The form is {_HUB_SHAPE}."
    dataset = "/".join(name if part == bad else part for part in parts)
    fixed = HubSource(given, dataset, None, options.get("split"), options.get("column"), options.get("revision"))
    return f"{message}: {bad!r} is not a name. Give the {option} as {fixed.with_options(**{option: tail})}."


def _hub_options(given: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    # Not urllib's parse_qsl: it reads the + of split=train+test as a space.
    for item in filter(None, query.split("&")):
        key, _, value = item.partition("=")
        if key not in _HUB_OPTIONS:
            close = difflib.get_close_matches(key, _HUB_OPTIONS, n=1)
            hint = f"did you mean {close[0]}=? " if close else ""
            raise PromptError(f"{given}: unknown option {key!r}; {hint}The options are {', '.join(_HUB_OPTIONS)}.")
        if key in options:
            raise PromptError(f"{given}: the option {key} is given twice; keep one.")
        if not value:
            raise PromptError(f"{given}: the option {key} has no value. The form is {_HUB_SHAPE}.")
        options[key] = unquote(value)
    return options

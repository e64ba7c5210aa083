"""From a YAML file to a checked suite, with errors that name file, case and field; choosing cases and their prompts."""

import difflib
import fnmatch
import hashlib
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from demur.assurance._suite_cases import SUITE_SCHEMA, SuiteCase, SuiteFile
from demur.errors import InputError, PromptError
from demur.prompts import Prompt, PromptSet, assign_splits, load_prompts
from demur.records import canonical_json
from demur.types import PromptLabel

_SHIPPED = "demur:"
_TOY = "toy:"
_SHOWN_ERRORS = 5
_ADDRESS = re.compile(r"(hf://|set:|mix:|demur:)", re.IGNORECASE)
"""How a source begins that is no path."""


@dataclass(frozen=True)
class Suite:
    """A checked suite and where it was read from."""

    content: SuiteFile
    source: str
    """File name, or `demur:NAME`."""
    folder: Path
    """What paths in it are relative to."""

    @property
    def name(self) -> str:
        """As the file says."""
        return self.content.name

    @property
    def cases(self) -> tuple[SuiteCase, ...]:
        """All cases, with the suite's owner where they name none."""
        owner = self.content.owner
        return tuple(case if case.owner else case.model_copy(update={"owner": owner}) for case in self.content.cases)

    @property
    def sha256(self) -> str:
        """Of the content."""
        content = self.content.model_dump(mode="json", by_alias=True)
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def shipped_suites() -> tuple[str, ...]:
    """Names of the suites that ship with demur, to be given as `demur:NAME`."""
    folder = files("demur.assurance") / "suites"
    return tuple(sorted(each.name.removesuffix(".yaml") for each in folder.iterdir() if each.name.endswith(".yaml")))


def load_suite(source: Path | str) -> Suite:
    """Read and check a suite.

    Args:
        source: a YAML file, or `demur:NAME` for one that ships with demur.

    Raises:
        InputError: the file cannot be read or is no suite; the message names case and field, what was given, and the
            nearest name that would do.
    """
    path, shown = _path(source)
    try:
        content = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the suite {shown}: {getattr(error, 'strerror', None) or error}.") from error
    except yaml.YAMLError as error:
        raise InputError(f"{shown} is no YAML: {_yaml_problem(error)}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{shown} is no suite: it must begin with `schema: {SUITE_SCHEMA}` and hold `cases:`.")
    try:
        return Suite(SuiteFile.model_validate(content), shown, path.parent)
    except ValidationError as error:
        raise InputError(_in_words(error, content, shown)) from error


def select_cases(
    suite: Suite, *, keyword: str | None = None, tags: Sequence[str] = (), severities: Sequence[str] = ()
) -> tuple[SuiteCase, ...]:
    """The cases that a filter leaves.

    Args:
        suite: the suite.
        keyword: part of a name, or a pattern with `*`; several with `or` between them, and `not` before one.
        tags: any of them.
        severities: any of them.

    Raises:
        InputError: no case is left.
    """
    known = {tag for case in suite.cases for tag in case.tags}
    for tag in tags:
        if tag not in known:
            raise InputError(f"no case of {suite.source} has the tag {tag!r}{_nearest(tag, known)}.")
    left = tuple(
        case
        for case in suite.cases
        if (keyword is None or _named(case.name, keyword))
        and (not tags or set(tags) & set(case.tags))
        and (not severities or case.severity in severities)
    )
    if not left:
        names = [case.name for case in suite.cases]
        near = "" if keyword is None else _nearest(keyword, names)
        raise InputError(f"no case of {suite.source} is left by these filters{near}. See them with --list.")
    return left


def suite_prompts(suite: Suite, cases: Sequence[SuiteCase]) -> dict[str, tuple[Prompt, ...]]:
    """The prompts of some cases, by the cases' names.

    Raises:
        InputError: a source cannot be used, holds nothing in the split, or lacks the expected answers that are needed.
    """
    sets: dict[tuple[str, PromptLabel | None], PromptSet] = {}
    for case in cases:
        if case.prompt_set is not None and (case.prompt_set, case.label) not in sets:
            sets[case.prompt_set, case.label] = load_source(suite, case.prompt_set, case.label)
    return {case.name: _prompts_of_case(suite, case, sets) for case in cases}


def _prompts_of_case(
    suite: Suite, case: SuiteCase, sets: Mapping[tuple[str, PromptLabel | None], PromptSet]
) -> tuple[Prompt, ...]:
    if case.prompt_set is None:
        texts = case.prompts or (case.prompt or "",)
        label: PromptLabel = case.label or "harmful"
        given = tuple(Prompt(text, label, where=f"prompt {number}") for number, text in enumerate(texts, 1))
    else:
        given = _chosen(sets[case.prompt_set, case.label], case)
    if not given or not all(prompt.text.strip() for prompt in given):
        where = "" if case.split is None else f" in its split {case.split}"
        raise PromptError(f"{suite.source}, case {case.name!r}: there is no prompt{where}. Give one or more.")
    if case.expect.correct is not None and any(prompt.answer is None for prompt in given):
        raise PromptError(
            f"{suite.source}, case {case.name!r}: `correct` needs an expected answer for every prompt, in a column "
            "`answer` of its prompt_set."
        )
    return given


def load_source(suite: Suite, source: str, label: PromptLabel | None, *, relative: bool = True) -> PromptSet:
    """Prompts from a source; a path that the suite itself names is `relative` to it."""
    if source.startswith(_TOY):
        source = source.removeprefix(_TOY)
        names = get_args(PromptLabel)
        if source not in names:
            raise PromptError(f"{_TOY}{source}: the toy's prompts are {', '.join(_TOY + name for name in names)}.")
        # By its path: what holds the toy stands above this package.
        path = str(files("demur") / "testing" / "prompts" / f"{source}.jsonl")
        return load_prompts(path, label=label or _label_in(source))
    place = source if _ADDRESS.match(source) or not relative else str(suite.folder / source)
    return load_prompts(place, label=label or _label_in(source))


def _chosen(prompts: PromptSet, case: SuiteCase) -> tuple[Prompt, ...]:
    chosen = prompts.prompts
    if case.split is not None:
        chosen = assign_splits(prompts, minimum={}).split(case.split)
    if case.limit is not None:
        kept = set(sorted(prompt.sha256 for prompt in chosen)[: case.limit])
        chosen = tuple(prompt for prompt in chosen if prompt.sha256 in kept)
    return chosen


def _label_in(source: str) -> PromptLabel:
    """What a source is called after, such as demur:harmless or harmless.jsonl; harmful where its name does not say."""
    name = source.rpartition(":")[2] if _ADDRESS.match(source) else Path(source).stem
    found: dict[str, PromptLabel] = {each: each for each in get_args(PromptLabel)}
    return found.get(name, "harmful")


def _path(source: Path | str) -> tuple[Path, str]:
    text = str(source)
    if not text.startswith(_SHIPPED):
        return Path(source), text
    name, names = text.removeprefix(_SHIPPED), shipped_suites()
    if name not in names:
        raise InputError(f"{text}: no such suite{_nearest(name, names)}. Those that ship are {', '.join(names)}.")
    return Path(str(files("demur.assurance") / "suites" / f"{name}.yaml")), text


def _named(name: str, keyword: str) -> bool:
    """Whether a name is meant by a filter such as `refuses or not random`."""
    for part in re.split(r"\s+or\s+", keyword.strip()):
        wanted = part.strip()
        negated = wanted.startswith("not ")
        pattern = wanted.removeprefix("not ").strip().casefold()
        if fnmatch.fnmatchcase(name.casefold(), pattern if "*" in pattern else f"*{pattern}*") is not negated:
            return True
    return False


def _nearest(given: str, names: Sequence[str] | set[str]) -> str:
    near = difflib.get_close_matches(given, sorted(names), n=1, cutoff=0.5)
    return f"; the nearest is {near[0]!r}" if near else ""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML's safe loader, which otherwise lets the last of two equal keys win in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 (as there)
        seen = set()
        for key, _ in node.value:
            name = getattr(key, "value", None)
            if isinstance(name, str) and name in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {name!r} stands there twice")
            if isinstance(name, str):
                seen.add(name)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return found


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the line itself, which may be a harmful prompt."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    if mark is None:
        return problem
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem} (texts with ? : # or [ want quotes)"


def _in_words(error: ValidationError, content: dict[str, Any], shown: str) -> str:
    found = [_sentence(each, content) for each in error.errors()]
    more = len(found) - _SHOWN_ERRORS
    lines = [f"{shown}, {sentence}" for sentence in found[:_SHOWN_ERRORS]]
    if more > 0:
        lines.append(f"and {more} more.")
    return "\n".join(lines)


def _sentence(problem: Any, content: dict[str, Any]) -> str:
    """SuiteCase and field, what was given, what to type instead."""
    path = [part for part in problem["loc"] if not (isinstance(part, str) and part.endswith("]"))]
    case, rest = "", path
    if len(path) > 1 and path[0] == "cases" and isinstance(path[1], int):
        entry = content["cases"][path[1]]
        name = entry.get("name") if isinstance(entry, dict) else None
        case = f"case {name!r}" if isinstance(name, str) else f"case {path[1] + 1}"
        rest = path[2:]
    place = ", ".join(part for part in (case, ".".join(map(str, rest))) if part) or "the file"
    return f"{place}: {_problem(problem, path)}."


def _problem(problem: Any, path: list[Any]) -> str:
    kind, given = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        names = _fields_at(path[:-1])
        return f"there is no such field{_nearest(str(path[-1]), names)}. The fields are {', '.join(names)}"
    if kind == "missing":
        return "it is missing"
    if kind == "literal_error":
        names = [one or two for one, two in re.findall(r"'([^']*)'(?!')|\"([^\"]*)\"", problem["ctx"]["expected"])]
        return f"{given!r} is none of {problem['ctx']['expected']}{_nearest(str(given), names)}"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    said = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{said}; given was {given!r}" if isinstance(given, (str, int, float, bool)) else said


def _fields_at(path: list[Any]) -> list[str]:
    """Names of the fields at one place of the format."""
    model: type[BaseModel] = SuiteFile
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each)) is not None), None)

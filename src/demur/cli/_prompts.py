"""`demur prompts`: the sets that demur knows by name, and what a calibration would make of some sources."""

# ruff: noqa: PLC0415, FBT002
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from demur.cli._console import Out
from demur.cli._options import Json, Leakage, NearDuplicates, PromptRemedy, Repeats, app, near_duplicates
from demur.errors import DemurError
from demur.records import PromptCheck
from demur.types import PromptLabel

if TYPE_CHECKING:
    from demur.prompts import Mix, PublishedSet

prompts = typer.Typer(help="Prompt sets that demur knows by name, and checks of your own.", no_args_is_help=True)
app.add_typer(prompts, name="prompts")

_LABELS: tuple[PromptLabel, ...] = ("harmful", "harmless", "borderline")
OptionalSource = Annotated[str | None, typer.Option(metavar="SRC", help="A source, as `demur calibrate` takes it.")]


@prompts.command("list")
def list_sets(as_json: Json = False) -> int:
    """Every set and mix: labels, rows, licence, whether terms must be accepted."""
    from demur.prompts import named_mixes, published_sets

    out = Out(as_json=as_json)
    table = _table("source", "labels", "rows", "licence", "gated")
    for one in published_sets():
        cells = (one.source, _rows(one), "-" if one.n is None else str(one.n), one.licence)
        table.add_row(*map(escape, cells), "yes" if one.gated else "no")
    for mix in named_mixes():
        table.add_row(f"mix:{mix.name}", ", ".join(mix.parts), "-", "of its sets", "-")
    out.results.print(table)
    out.say("demur prompts show NAME: everything known about one of them, and what to type")
    out.json(
        {
            "sets": [{"source": one.source, **asdict(one)} for one in published_sets()],
            "mixes": [{"source": f"mix:{mix.name}", **_mix_document(mix)} for mix in named_mixes()],
        }
    )
    return 0


@prompts.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as xstest, demur:harmful or mix:wang.")],
    as_json: Json = False,
) -> int:
    """All facts about one set or mix, and the source to type."""
    from demur.prompts import named_mix, published_set

    out = Out(as_json=as_json)
    if name.startswith("mix:"):
        mix = named_mix(name.removeprefix("mix:"))
        lines, document = _mix_lines(mix), {"source": name, **_mix_document(mix)}
    else:
        one = published_set(name.removeprefix("set:"))
        lines, document = _set_lines(one), {"source": one.source, **asdict(one)}
    for line in lines:
        out.say(line)
    out.json(document)
    return 0


@prompts.command()
def check(
    harmful: OptionalSource = None,
    harmless: OptionalSource = None,
    borderline: OptionalSource = None,
    near: NearDuplicates = "0.5",
    leakage: Leakage = PromptRemedy.refuse,
    repeats: Repeats = PromptRemedy.refuse,
    as_json: Json = False,
) -> int:
    """Sizes by split, copies and near copies between splits and labels; exit code 2 where a run would refuse them."""
    out = Out(as_json=as_json)
    given = dict(zip(_LABELS, (harmful, harmless, borderline), strict=True))
    with out.working("reading and comparing the prompts", quiet=True):
        from demur.prompts import check_prompt_sets

        found = check_prompt_sets(
            {label: source for label, source in given.items() if source is not None},
            near_duplicates=near_duplicates(near),
            leakage=leakage.value,
            repeats=repeats.value,
        )
    _print_check(out, found)
    out.json(found.model_dump(mode="json", by_alias=True))
    return DemurError.exit_code if found.problems else 0


def _print_check(out: Out, found: PromptCheck) -> None:
    sizes = _table("set", "prompts", "train", "validation", "test", "dropped", "source")
    for label, one in found.sets.items():
        counts = (one.n, *(one.splits.get(name, 0) for name in ("train", "validation", "test")))
        sizes.add_row(label, *map(str, counts), str(found.dropped.get(label, 0)), escape(one.source))
    out.results.print(sizes)
    leaks = _table("compared", "with", "copies", "near copies", "first (row and row, similarity)")
    for pair in found.leakage.pairs:
        first = ", ".join(
            f"{one.left_row or '?'} and {one.right_row or '?'} ({one.similarity:.2f})" for one in pair.examples[:2]
        )
        left, right = (f"{pair.left} {pair.left_split or ''}", f"{pair.right} {pair.right_split or ''}")
        leaks.add_row(left, right, str(pair.exact), "-" if pair.near is None else str(pair.near), escape(first))
    out.results.print(leaks)
    for problem in found.problems:
        out.say(f"problem: {problem}")
    for note in found.notes:
        out.say(f"note: {note}")
    if not found.problems:
        out.say("a calibration would take these sets")


def _table(*headings: str) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for at, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", no_wrap=at == 0)
    return table


def _rows(one: "PublishedSet") -> str:
    """Labels, with their numbers where there are several."""
    if len(one.rows) == 1:
        return one.rows[0].label
    return ", ".join(f"{rows.label} {rows.n or ''}".strip() for rows in one.rows)


def _set_lines(one: "PublishedSet") -> list[str]:
    lines = [f"{one.source}: {one.title}"]
    for rows in one.rows:
        where = " or, in files without that column, ".join(str(condition) for condition in rows.where) or "all rows"
        part = "" if one.hub is None else f"; config {rows.config or 'default'}, split {rows.split}"
        lines.append(f"  {rows.label}: {rows.n or 'unknown number of'} rows, {where}{part}")
    bundled = one.source == one.name
    lines += [
        f"  prompt column: {' or '.join(one.columns)}" + (f", after {one.context}" if one.context else ""),
        f"  licence: {one.licence}; passing on: {one.redistribution}",
    ]
    if not bundled:
        lines.append(f"  hub: {one.hub or 'none'}" + (f" at {one.revision or 'floating'}" if one.hub else ""))
        lines.append(f"  file: {one.file or 'none'}")
    if one.gated:
        lines.append(f"  gated: accept the terms at {one.page} and set HF_TOKEN, or give a local copy")
    if one.note:
        lines.append(f"  note: {one.note}")
    for label in one.labels:
        typed = ([] if bundled or one.hub is None else [one.source]) + ([] if bundled else [f"{one.source}=PATH"])
        lines.append(f"  type: --{label} " + f", or --{label} ".join(typed or [one.source]))
    return lines


def _mix_document(mix: "Mix") -> dict[str, Any]:
    return {
        "name": mix.name,
        "title": mix.title,
        "parts": {label: [asdict(part) for part in parts] for label, parts in mix.parts.items()},
        "counts": {label: dict(counts) for label, counts in mix.counts.items()},
        "differs": list(mix.differs),
    }


def _mix_lines(mix: "Mix") -> list[str]:
    lines = [f"mix:{mix.name}: {mix.title}"]
    for label, parts in mix.parts.items():
        for part in parts:
            shares = zip(("train", "validation", "test"), part.shares, strict=True)
            where = ", ".join(f"{share:.0%} {split}" for split, share in shares if share)
            limit = "" if part.limit is None else f", at most {part.limit}"
            lines.append(f"  {label}: {part.name}{limit}: {where}")
        counts = ", ".join(f"{number} {split}" for split, number in mix.counts.get(label, {}).items())
        lines.append(f"  {label}: then at most {counts}" if counts else f"  {label}: all are kept")
    lines += [f"  not as in the paper: {one}" for one in mix.differs]
    folder = "?dir=FOLDER"
    lines.append("  type: " + " ".join(f"--{label} mix:{mix.name}{folder}" for label in mix.parts))
    lines.append("  FOLDER: local copies named by their sets, such as oktest.csv; without it sets come from the Hub")
    return lines

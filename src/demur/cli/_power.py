"""`demur power`: how many prompts a calibration needs."""

# ruff: noqa: PLC0415, FBT002
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from demur.cli._console import Out
from demur.cli._options import Json, Margin, app

if TYPE_CHECKING:
    from demur.records import PowerPlan


@app.command()
def power(
    margin: Margin = 0.02,
    lost: Annotated[float, typer.Option(help="Expected share of harmful prompts whose refusal is lost.")] = 0.0,
    gained: Annotated[float, typer.Option(help="Expected share of harmful prompts newly refused.")] = 0.0,
    detect: Annotated[float, typer.Option(help="Drop of false refusals to find, as a share.")] = 0.05,
    flip_back: Annotated[float, typer.Option(help="Expected share of borderline prompts newly refused.")] = 0.01,
    n: Annotated[int | None, typer.Option("--n", help="One more number of test prompts to look at.")] = None,
    chance: Annotated[float, typer.Option("--power", help="Chance with which each is to succeed.")] = 0.8,
    as_json: Json = False,
) -> int:
    """Say how many prompts are needed to show that true refusals are kept and that false refusals went down."""
    from demur.evaluation import power_plan

    out = Out(as_json=as_json)
    plan = power_plan(margin=margin, lost=lost, gained=gained, detect=detect, flip_back=flip_back, power=chance, n=n)
    for line in _sentences(plan):
        out.say(line)
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("test prompts", "true refusals kept", "drop of false refusals", "single rate"):
        table.add_column(heading)
    for row in plan.rows:
        table.add_row(f"{row.n:,}", f"{row.kept:.0%}", f"{row.drop:.0%}", f"+- {100 * row.half_width:.1f} points")
    out.results.print(table)
    out.json(plan.model_dump(mode="json", by_alias=True))
    return 0


def _sentences(plan: "PowerPlan") -> list[str]:
    if plan.harmful_n is None or plan.harmful_file is None:
        if plan.lost - plan.gained >= plan.margin:
            why = "a model that loses as much as the margin has not kept its true refusals"
        else:
            why = "the loss is too near to the margin"
        kept = f"true refusals kept (margin {_points(plan.margin)}): no number of prompts shows it, as {why}."
    else:
        kept = (
            f"true refusals kept (margin {_points(plan.margin)}): {plan.harmful_n:,} harmful test prompts, if "
            f"{_percent(plan.lost)} are lost and {_percent(plan.gained)} newly refused."
        )
    drop = (
        f"false refusals down by {_points(plan.detect)}: {plan.borderline_n:,} borderline test prompts, if "
        f"{_percent(plan.flip_back)} are newly refused."
    )
    files = f"{plan.borderline_file:,} borderline ones"
    if plan.harmful_file is not None:
        files = f"{plan.harmful_file:,} harmful prompts and {files}"
    return [
        f"For a chance of {_percent(plan.power)} each:",
        f"  {kept}",
        f"  {drop}",
        f"Half of a file without a split column goes into test: it should hold at least {files}.",
        "The chance to show each with a number of test prompts, and the 95 % interval of a rate near one half:",
    ]


def _points(share: float) -> str:
    return f"{100 * share:g} point" + ("" if share == 0.01 else "s")


def _percent(share: float) -> str:
    return f"{100 * share:g} %"

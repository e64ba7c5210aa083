"""The report as a document without a format: sections of words, tables, figures and examples, in reading order.

`_html` and `_markdown` render it. Knows nothing about markup, and nothing about how a figure is drawn.
"""

from dataclasses import dataclass

from demur.reports._corrected import corrected_table
from demur.reports._diagnostics import diagnostic_tables, diagnostic_words
from demur.reports._examples import ExampleGroup, borderline_examples
from demur.reports._format import model_name
from demur.reports._pressure import pressure_tables, pressure_words
from demur.reports._provenance import missing_records, provenance_tables
from demur.reports._records import RunRecords
from demur.reports._sections import (
    candidate_table,
    category_table,
    gate_table,
    lambda_table,
    lost_refusals_table,
    measured_points,
    measures_table,
    mechanism_table,
    projection_table,
)
from demur.reports._tables import Table, summary_table
from demur.reports._threshold import threshold_tables, threshold_words
from demur.reports._words import (
    candidate_caption,
    gate_reasons,
    lambda_words,
    mechanism_words,
    projection_words,
    rates_caption,
    terms,
    verdict,
)
from demur.types import Decision


@dataclass(frozen=True)
class Figure:
    """A figure in words; `_figures` draws the one of this name."""

    name: str
    label: str
    """What a screen reader says instead of the picture."""
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading with what belongs under it, drawn in the order of the fields."""

    name: str
    """The anchor; also names the section in tests."""
    title: str
    words: tuple[str, ...] = ()
    figure: Figure | None = None
    examples: tuple[ExampleGroup, ...] = ()
    tables: tuple[Table, ...] = ()
    terms: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Document:
    """The whole report."""

    title: str
    verdict: str
    decision: Decision | None
    reasons: tuple[str, ...]
    """Why the gate did not pass; where it passed, one sentence."""
    warnings: tuple[str, ...]
    """What a reader must know before believing the numbers; shown at the top."""
    sections: tuple[Section, ...]
    footer: str


def build_document(run: RunRecords) -> Document:
    """The report of one run. Sections whose records are absent are left out; the last one names what is absent."""
    summary = run.summary
    sections = (
        _results(run),
        _gate(run),
        _pressure(run),
        _threshold(run),
        _mechanism(run),
        _candidates(run),
        _projections(run),
        _lambda(run),
        _diagnostics(run),
        _examples(run),
        _provenance(run),
    )
    return Document(
        title=f"How {model_name(summary.model.id)} refuses",
        verdict=verdict(summary),
        decision=summary.gate.decision if summary.gate else None,
        reasons=gate_reasons(summary.gate) if summary.gate else (),
        warnings=summary.warnings,
        sections=tuple(section for section in sections if section is not None),
        footer=f"Written by demur {summary.provenance.demur} from the records of {summary.provenance.created}.",
    )


def _results(run: RunRecords) -> Section:
    rows = summary_table(run.summary)
    judge = run.summary.judge
    words = [f"Verdicts by judge {judge.id}, version {judge.version}; so in every table below."]
    if run.summary.comparison is None:
        words.append("Nothing was applied to this model, so there is nothing to compare.")
    if run.summary.sampled:
        words.append(
            "Greedy answers hide how near a model is to refusing. Sampled rates are the share of answers sampled at "
            "temperature 1 that refuse, with the same random numbers before and after and prompts as clusters."
        )
    return Section(
        name="results",
        title="Results on test prompts",
        words=tuple(words),
        figure=Figure("rates", "Dot chart of the rates, with intervals", rates_caption(run.summary)),
        tables=(
            measures_table(rows),
            *((category_table(run.summary.categories),) if run.summary.categories else ()),
        ),
        terms=terms(run.summary),
    )


def _gate(run: RunRecords) -> Section | None:
    if run.summary.gate is None:
        return None
    return Section(
        name="gate",
        title="Gate",
        words=(
            "A rule passes where its whole confidence interval is on the good side of the limit, fails where all of it "
            "is on the bad side, and is inconclusive in between; unjudged and degenerate completions are counted. "
            f"A loss of less than {100 * run.summary.gate.margin:g} points of true refusals counts as none.",
        ),
        tables=(gate_table(run.summary.gate),),
    )


def _pressure(run: RunRecords) -> Section | None:
    pressure = run.summary.pressure
    if pressure is None:
        return None
    return Section(
        name="pressure",
        title="True refusals under pressure",
        words=pressure_words(pressure),
        tables=pressure_tables(pressure),
    )


def _threshold(run: RunRecords) -> Section | None:
    threshold = run.summary.refusal_threshold
    if threshold is None:
        return None
    return Section(
        name="threshold",
        title="From which refusal score on the model refuses",
        words=threshold_words(threshold),
        figure=Figure(
            "threshold",
            "Refusal scores of train prompts by kind and verdict, with the threshold",
            "Each mark is one train prompt: above the line of its kind where the model refused it, below where it "
            "answered. The dashed line is the threshold; the dotted one is the published 0.",
        )
        if threshold.judged
        else None,
        tables=threshold_tables(threshold),
    )


def _mechanism(run: RunRecords) -> Section | None:
    mechanism = run.summary.mechanism
    if mechanism is None:
        return None
    return Section(
        name="mechanism",
        title="Is the refusal direction the cause?",
        words=mechanism_words(mechanism),
        tables=(mechanism_table(mechanism, run.summary.metrics),),
    )


def _candidates(run: RunRecords) -> Section | None:
    if run.candidates is None or not run.candidates.refusal:
        return None
    return Section(
        name="candidates",
        title="Where the refusal direction was found",
        words=(
            "Every token position after the prompt, at every layer, gives one candidate direction. Each was tried on "
            "validation prompts; the one that removes most refusal, among those that pass the filters, was selected.",
        ),
        figure=Figure(
            "candidates",
            "Three heat maps of candidate scores, layers across and token positions down",
            candidate_caption(run.candidates),
        ),
        tables=(candidate_table(run.candidates),),
    )


def _projections(run: RunRecords) -> Section | None:
    projections = run.projections
    if projections is None or not any(projections.before.values()):
        return None
    return Section(
        name="projections",
        title="Prompts along the refusal direction",
        words=(projection_words(projections),),
        figure=Figure(
            "projections",
            "Histograms of the projection of test prompts on the refusal direction",
            "Each hill is a histogram of one kind of prompt, scaled to its own highest bar; the line marks the median. "
            "Both panels share one axis.",
        ),
        tables=(projection_table(projections),),
    )


def _lambda(run: RunRecords) -> Section | None:
    curve = run.summary.lambda_curve
    if not curve:
        return None
    return Section(
        name="lambda",
        title="Choice of lambda" if any(point.chosen for point in curve) else "The frontier: no lambda was admissible",
        words=lambda_words(curve),
        figure=Figure(
            "lambda",
            "Two charts: refusal rates over lambda, and true against false refusals",
            "Validation prompts. Left: both rates over lambda. Right: the same points against each other; better is up "
            "and to the left. Bars are 95 % intervals; the chosen point is ringed.",
        )
        if measured_points(curve)
        else None,
        tables=(lambda_table(curve),),
    )


def _diagnostics(run: RunRecords) -> Section | None:
    tables = diagnostic_tables(run.summary)
    if run.corrected is not None:
        tables = (corrected_table(run.corrected), *tables)
    if not tables:
        return None
    return Section(
        name="diagnostics",
        title="What supports these numbers",
        words=diagnostic_words(run.summary),
        tables=tables,
    )


def _examples(run: RunRecords) -> Section | None:
    groups = borderline_examples(run.completions)
    lost = lost_refusals_table(run.completions)
    if not groups and lost is None:
        return None
    return Section(
        name="examples",
        title="Examples",
        words=(
            "Borderline prompts look unsafe but are fine. Harmful prompts and what the model said to them are not "
            "shown anywhere in this report; they stay in the run folder.",
        ),
        tables=() if lost is None else (lost,),
        examples=groups,
    )


def _provenance(run: RunRecords) -> Section:
    absent = missing_records(run)
    words = (f"Not in this run folder, so left out above: {', '.join(absent)}.",) if absent else ()
    return Section(
        name="provenance",
        title="Provenance",
        words=words,
        tables=provenance_tables(run.summary),
    )

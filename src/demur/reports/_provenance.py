"""What ran on what: the last section, from the summary. Knows nothing about markup."""

import shlex
from collections.abc import Iterable

from demur.records import DirectionCard, LayoutSummary, ModelIdentity, OperatingPoint, Provenance, Rendering, Summary
from demur.reports._format import number, token
from demur.reports._records import RunRecords
from demur.reports._tables import Cell, CellKind, Table, plain_mean_cell

_LAYOUT_WORDS = {
    "exact": "exact: the edit can be folded into the weights without a difference",
    "exact_after_untying": "exact once the tied embedding is stored twice",
    "runtime_only": "the edit works at run time and cannot be exported: the weights are quantised, or it adds a vector",
    "removed_not_identical": "the direction is removed, but the folded weights differ from the runtime edit",
}


def missing_records(run: RunRecords) -> list[str]:
    """What an optional record would have added."""
    summary = run.summary
    present = {
        "the gate": summary.gate,
        "true refusals under pressure": summary.pressure,
        "fidelity": summary.fidelity,
        "the noise floor": summary.noise_floor,
        "the random control": summary.mechanism,
        "candidate scores": run.candidates,
        "projections": run.projections,
        "the lambda curve": summary.lambda_curve,
        "completions": run.completions,
    }
    return [name for name, value in present.items() if not value]


def provenance_tables(summary: Summary) -> tuple[Table, ...]:
    """Model, prompts, judge, tokens, directions, operating point, versions."""
    tables = [
        _model_table(summary.model, summary.layout, summary.rendering),
        _prompt_table(summary),
        _measuring_table(summary),
    ]
    if summary.refusal_tokens:
        tables.append(_token_table(summary))
    directions = (
        ("Refusal direction r", summary.refusal_direction),
        ("False-refusal direction w", summary.false_refusal_direction),
    )
    tables.extend(_direction_table(name, card) for name, card in directions if card is not None)
    if summary.operating_point is not None:
        tables.append(_operating_point_table(summary.operating_point))
    tables.append(_run_table(summary.provenance))
    return tuple(tables)


def _pairs(caption: str, pairs: Iterable[tuple[str, str, CellKind]]) -> Table:
    return Table(
        caption, ("What", "Value"), tuple((Cell(name), Cell(text, kind=kind)) for name, text, kind in pairs), facts=True
    )


def _rendering_words(rendering: Rendering) -> str:
    parts = ["no system prompt" if rendering.system is None else f"system prompt {rendering.system!r}"]
    parts += [f"{name} = {value}" for name, value in rendering.options.items()]
    if rendering.response_prefix:
        parts.append(f"answers begin after {rendering.response_prefix!r}")
    return "; ".join(parts)


def _model_table(model: ModelIdentity, layout: LayoutSummary, rendering: Rendering) -> Table:
    return _pairs(
        "Model",
        (
            ("Model", model.id, "text"),
            ("Revision", model.revision or "none (local folder)", "code"),
            ("Content sha256", model.content_hash, "code"),
            ("Architecture", f"{model.architecture}, {model.n_layers} layers of width {model.d_model}", "text"),
            ("Parameters", f"{model.n_parameters:,} in {model.dtype}", "text"),
            ("Chat template sha256", model.chat_template_sha256, "code"),
            ("Rendering", _rendering_words(rendering), "text"),
            ("Layout probe", _LAYOUT_WORDS[layout.verdict], "text"),
            ("Writers of the residual stream", str(layout.n_writers), "text"),
            ("Left along a random direction", f"{layout.probe_residual:.2g} of the unedited component", "text"),
            ("Largest logit difference when folded", f"{layout.fold_difference:.2g}", "text"),
        ),
    )


def _prompt_table(summary: Summary) -> Table:
    rows = tuple(
        (
            Cell(label),
            Cell(prompts.source),
            Cell(str(prompts.n), tuple(f"{split} {n}" for split, n in prompts.splits.items()), "number"),
            Cell(prompts.sha256, kind="code"),
        )
        for label, prompts in sorted(summary.prompts.items())
    )
    return Table("Prompt sets", ("Prompts", "Source", "n", "sha256"), rows)


def _measuring_table(summary: Summary) -> Table:
    return _pairs("Judge", (("Judge", summary.judge.id, "text"), ("Version", summary.judge.version, "code")))


def _token_table(summary: Summary) -> Table:
    rows = tuple(
        (
            Cell(token(one.text), kind="code"),
            Cell(str(one.id), kind="number"),
            Cell(number(one.probability_refused), kind="number"),
            Cell(number(one.probability_answered), kind="number"),
        )
        for one in summary.refusal_tokens
    )
    columns = ("Token", "Id", "Probability when refused", "Probability when answered")
    return Table("Refusal tokens: first tokens that tell a refusal from an answer", columns, rows)


def _direction_table(name: str, card: DirectionCard) -> Table:
    rows: list[tuple[str, str, CellKind]] = [
        ("Layer", str(card.layer), "text"),
        ("Position", str(card.position), "text"),
        ("Token at that position", token(card.position_text), "code"),
        ("Norm of the difference in means", number(card.norm), "text"),
        *(
            (f"Validation {key.replace('_', ' ')}", str(plain_mean_cell(value)), "text")
            for key, value in sorted(card.scores.items())
        ),
        ("Candidates", f"{card.n_candidates}, of which {card.n_survivors} passed the filters", "text"),
        ("Prompts behind each mean", ", ".join(f"{key} {n}" for key, n in sorted(card.n_fit.items())), "text"),
    ]
    if card.unmet_filters:
        rows.append(("Published filters not met; judged answers decided", ", ".join(card.unmet_filters), "text"))
    if card.cosine_with_refusal_direction is not None:
        rows.append(("Cosine with r, before r is taken out", number(card.cosine_with_refusal_direction), "text"))
    return _pairs(name, rows)


def _operating_point_table(point: OperatingPoint) -> Table:
    return _pairs(
        "Operating point",
        (
            ("Method", point.method.replace("_", " "), "text"),
            ("Lambda", f"{point.lambda_:g}", "text"),
            ("Layer and position", f"{point.layer}, {point.position}", "text"),
            ("Acts on", point.sites.replace("_", " "), "text"),
            ("Fingerprint", point.fingerprint, "code"),
        ),
    )


def _run_table(provenance: Provenance) -> Table:
    return _pairs(
        "Run",
        (
            ("Command", shlex.join(provenance.command), "code"),
            ("Created", provenance.created, "text"),
            ("Seed", str(provenance.seed), "text"),
            ("Device", provenance.device, "text"),
            ("Platform", provenance.platform, "text"),
            (
                "Versions",
                f"demur {provenance.demur}, Python {provenance.python}, torch {provenance.torch}, "
                f"transformers {provenance.transformers}",
                "text",
            ),
        ),
    )

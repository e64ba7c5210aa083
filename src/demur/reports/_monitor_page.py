"""The page of a monitor: what it flags, by mistake and rightly, and what it reads. Knows nothing about markup."""

from collections.abc import Iterator

from demur.records import (
    MonitorEvidence,
    MonitorFlag,
    MonitorPopulation,
    MonitorRate,
    MonitorRecord,
    MonitorScore,
    MonitorThreshold,
    PromptSetIdentity,
)
from demur.reports._document import Document, Figure, Section
from demur.reports._format import clean, model_name, number, share
from demur.reports._tables import Cell, Table

POPULATIONS: dict[MonitorPopulation, str] = {
    "harmful": "harmful",
    "harmless": "harmless",
    "borderline": "borderline",
    "suppressed": "given as suppressed",
    "planted": "harmful, r subtracted",
}
_MEANINGS: dict[MonitorFlag, str] = {
    "harmful": "looks harmful early in the layers",
    "refusal_high": "more refusal than harmless prompts have",
    "refusal_low": "flagged harmful, with less refusal than harmful prompts have",
    "suppressed": "looks harmful, and the refusal that belongs to it is missing",
    "false_refusal": "much more refusal than harm: about to be refused without looking harmful",
}
_SCORES: dict[MonitorScore, str] = {
    "harm": "harm",
    "refusal": "refusal",
    "suppression": "suppression",
    "false_refusal": "projection on w'",
}
_TERMS = (
    ("Harm", "How harmful the instruction looks in the early layers, at the token where it looks worst."),
    ("Refusal", "Projection on the refusal direction r before the answer, at the watched layer where it is lowest."),
    ("Suppression", "Harm minus refusal: near 0 of ordinary prompts, near 1 where refusal was taken away."),
    ("Scale", "0 is the mean of harmless, 1 that of harmful training prompts (of w': that of borderline ones)."),
    ("k/n and interval", "k of n test prompts raised the flag, with the exact 95 % interval (Clopper-Pearson)."),
    (
        "Guaranteed",
        "k / (n + 1) of the order statistic: the chance to flag a new prompt of that kind is no larger, averaged over "
        "validation sets, if it is drawn like them. For this one validation set it is at most the second number, with "
        "95 % confidence.",
    ),
    ("Area under the curve", "Chance that a prompt of the first kind scores higher; 95 % interval by Newcombe."),
    ("Borderline", "A prompt that looks unsafe but is fine."),
)
_LIMITS = (
    "A monitor can be evaded by whoever knows it: an attack that also hides the harm from the early layers raises no "
    "flag. It reads single turns as they were rendered here. Prompts much longer than the validation prompts have more "
    "tokens at which they can look harmful by chance, and may be flagged more often.",
    "The rates hold for prompts like those that were given. They say nothing about other kinds of attack.",
)


def document(record: MonitorRecord) -> Document:
    """The page of one `monitor.json`; of one that was made by hand, what it reads."""
    evidence = record.evidence
    name = "a chat model" if record.model is None else model_name(record.model.id)
    sections = () if evidence is None else tuple(_measured(record, evidence))
    return Document(
        title=f"A monitor of refusal for {name}",
        verdict="This monitor was made by hand: nothing was measured." if evidence is None else _verdict(evidence),
        decision=None,
        reasons=() if evidence is None else tuple(_reasons(record, evidence)),
        warnings=() if evidence is None else evidence.warnings,
        sections=(*sections, _reads(record)),
        footer="Written by demur."
        if evidence is None
        else f"Written by demur {evidence.provenance.demur} from the records of {evidence.provenance.created}.",
    )


def _measured(record: MonitorRecord, evidence: MonitorEvidence) -> Iterator[Section]:
    yield Section(
        "flags",
        "What is flagged",
        words=("Measured on test prompts, which set nothing.",),
        tables=(_flag_table(record.thresholds, evidence),),
        terms=_TERMS,
    )
    yield Section(
        "plane",
        "Harm against refusal",
        words=_plane_words(evidence),
        figure=Figure(
            "plane",
            "Scatter chart of test prompts: harm score upwards, refusal score to the right",
            "One dot is a test prompt (at most 120 of a kind are drawn). Plain harmful and harmless prompts lie along "
            "the diagonal; above the dashed line a prompt is flagged as suppressed.",
        ),
        tables=(_separation_table(evidence),),
    )
    if any(each.mean for each in evidence.answers):
        yield Section(
            "answers",
            "Along the answers",
            words=("What the first probe of r reads of the tokens that the model generates; greedy answers.",),
            figure=Figure(
                "answers",
                "Line chart of the mean refusal reading by generated token, for each kind of prompt",
                "Means with 95 % intervals over "
                + ", ".join(f"{each.n[0]} {each.population}" for each in evidence.answers if each.n)
                + " test prompts; fewer answers are as long towards the right.",
            ),
        )
    yield Section("thresholds", "Thresholds", tables=(_threshold_table(record.thresholds),))
    yield Section("limits", "What this does not show", words=_LIMITS)


def _verdict(evidence: MonitorEvidence) -> str:
    rates = {rate.population: rate for rate in evidence.rates if rate.flag == "suppressed"}
    worst = max((rates[name] for name in ("harmful", "harmless", "borderline") if name in rates), key=_share)
    mistaken = f"of ordinary test prompts it flags at most {_in_words(worst)} ({worst.population} ones)"
    if "suppressed" in rates:
        return f"Suppressed refusal is flagged in {_in_words(rates['suppressed'])} of the prompts given; {mistaken}."
    if "planted" in rates:
        return (
            f"Where the refusal direction is subtracted while the model reads a harmful prompt, this is flagged in "
            f"{_in_words(rates['planted'])}; {mistaken}."
        )
    return f"Suppressed refusal was not tried out; {mistaken}."


def _reasons(record: MonitorRecord, evidence: MonitorEvidence) -> Iterator[str]:
    rate = record.thresholds[0].rate if record.thresholds else 0.0
    yield f"Every flag was set to a false-positive rate of {share(rate)} % on validation prompts."
    if "suppressed" not in evidence.scores:
        yield (
            "No prompts with suppressed refusal were given (--suppressed), so how it does on real attacks is not "
            "known: a subtraction in memory is cruder than an adversarial suffix."
        )


def _share(rate: MonitorRate) -> float:
    return rate.rate or 0.0


def _in_words(rate: MonitorRate) -> str:
    return f"{rate.k} of {rate.n} ({share(_share(rate))} %, {share(rate.low)} to {share(rate.high)} %)"


def _plane_words(evidence: MonitorEvidence) -> tuple[str, ...]:
    words = ["Harmful prompts have both scores near 1, harmless ones both near 0."]
    if "borderline" in evidence.scores:
        words.append("Borderline prompts that are refused lie to the lower right: refusal without harm.")
    if evidence.planted_layer is not None:
        words.append(
            "Of the kind that is called r subtracted, harmful prompts were read while the gap between harmful and "
            f"harmless ones was subtracted along r at the input of block {evidence.planted_layer}, in memory."
        )
    return (" ".join(words),)


def _flag_table(thresholds: tuple[MonitorThreshold, ...], evidence: MonitorEvidence) -> Table:
    populations = [name for name in POPULATIONS if name in evidence.scores]
    cells = {(rate.flag, rate.population): rate for rate in evidence.rates}
    rows = []
    for threshold in thresholds:
        row = [Cell(threshold.flag.replace("_", " "), (_MEANINGS.get(threshold.flag, ""),))]
        for population in populations:
            rate = cells[threshold.flag, population]
            spared = " †" if population in threshold.n else ""
            details = (f"{rate.k}/{rate.n}", f"{share(rate.low)} to {share(rate.high)} %")
            row.append(Cell(f"{share(_share(rate))} %{spared}", details, "number"))
        rows.append(tuple(row))
    columns = ("Flag", *(POPULATIONS[name] for name in populations))
    return Table("Share of test prompts that raise each flag; † a false positive.", columns, tuple(rows))


def _separation_table(evidence: MonitorEvidence) -> Table:
    rows = tuple(
        (
            Cell(_SCORES[each.score]),
            Cell(POPULATIONS[each.above], (f"n {each.n_above}",)),
            Cell(POPULATIONS[each.below], (f"n {each.n_below}",)),
            Cell(number(each.auroc), (f"{number(each.low)} to {number(each.high)}",), "number"),
        )
        for each in evidence.separations
    )
    return Table("How well each score tells two kinds of prompts apart.", ("Score", "Higher", "Lower", "Area"), rows)


def _threshold_table(thresholds: tuple[MonitorThreshold, ...]) -> Table:
    rows = tuple(
        (
            Cell(each.flag.replace("_", " ")),
            Cell(f"{_SCORES[each.score]} {each.side} {number(each.value)}"),
            *(
                Cell(
                    f"{share(each.attained[label])} %",
                    (f"n {each.n[label]}", f"at most {share(each.bound[label])} %"),
                    "number",
                )
                if label in each.n
                else Cell("-", kind="number")
                for label in ("harmful", "harmless", "borderline")
            ),
        )
        for each in thresholds
    )
    return Table(
        "Guaranteed false-positive rates, with n and the 95 % bound for this validation set.",
        ("Flag", "Raised where", "harmful", "harmless", "borderline"),
        rows,
    )


def _reads(record: MonitorRecord) -> Section:
    rows = tuple(
        (
            Cell(probe.name, kind="code"),
            Cell("peak over the instruction" if probe.role == "harm" else f"position {probe.position}"),
            Cell(str(probe.layer), kind="number"),
            Cell(number(probe.low), kind="number"),
            Cell(number(probe.high), kind="number"),
        )
        for probe in record.probes
    )
    tables = [Table("Probes: one inner product per token each.", ("Probe", "Read at", "Layer", "0", "1"), rows)]
    words: tuple[str, ...] = ()
    if record.evidence is not None:
        reader = record.evidence.reader
        words = (
            f"Directions: {clean(record.evidence.directions)}. Harm: {reader} (area under the curve "
            f"{number(record.evidence.reader_auroc)}).",
        )
        tables.append(_prompt_table(record.evidence.prompts))
    if record.model is not None:
        model = record.model
        facts = (
            ("Model", model.id),
            ("Content sha256", model.content_hash),
            ("Architecture", f"{model.architecture}, {model.n_layers} layers of width {model.d_model}, {model.dtype}"),
            ("Chat template sha256", model.chat_template_sha256),
        )
        tables.append(
            Table(
                "Model", ("What", "Value"), tuple((Cell(name), Cell(clean(text))) for name, text in facts), facts=True
            )
        )
    return Section("reads", "What it reads", words=words, tables=tuple(tables))


def _prompt_table(prompts: dict[str, PromptSetIdentity]) -> Table:
    rows = tuple(
        (
            Cell(label),
            Cell(clean(one.source)),
            Cell(", ".join(f"{name} {count}" for name, count in one.splits.items() if count) or f"all {one.n}"),
            Cell(one.sha256[:12], kind="code"),
        )
        for label, one in prompts.items()
    )
    return Table("Prompts", ("Kind", "Source", "Used", "sha256"), rows)


def monitor_lines(record: MonitorRecord) -> tuple[str, ...]:
    """The page in short, for the console: the verdict, the flags, the warnings."""
    page = document(record)
    lines = [page.verdict]
    if record.evidence is not None:
        table = _flag_table(record.thresholds, record.evidence)
        lines.append(table.caption)
        for row in table.rows:
            shares = ", ".join(f"{kind} {cell}" for kind, cell in zip(table.columns[1:], row[1:], strict=True))
            lines.append(f"{row[0].text}: {shares}")
    return (*lines, *(f"warning: {warning}" for warning in page.warnings))

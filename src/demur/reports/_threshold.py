"""The section on where the refusal score tells refusals from answers. From records."""

from demur.records import RefusalThreshold, ScoreReading
from demur.reports._format import number
from demur.reports._tables import Cell, Table


def threshold_words(threshold: RefusalThreshold) -> tuple[str, ...]:
    """What the threshold is and how far to trust it."""
    value = number(threshold.value, 2)
    if threshold.source == "given":
        return (f"A refusal score above {value} log-odds counts as a refusal; the threshold was given, not learned.",)
    reading = threshold.reading
    judged = sum(len(each.refused) + len(each.answered) for each in threshold.judged.values())
    words = [
        f"From a refusal score of {value} log-odds on ({number(threshold.low, 2)} to {number(threshold.high, 2)}) this "
        f"model refuses: learned from its own {judged} judged answers to train prompts, of which {threshold.wrong} lie "
        "on the other side. The published value is 0."
    ]
    if reading is not None:
        words.append(
            f"The score tells refusals from answers with an AUROC of {number(reading.auroc)} ({number(reading.low)} to "
            f"{number(reading.high)}); 1 is always, 0.5 is never."
        )
        if reading.opening:
            words.append(
                f"It is read after the answer was made to open with {reading.opening!r}, the model's own refusal: its "
                "first token alone tells less."
            )
    if not threshold.tells:
        words.append(
            "That is too little to decide by: directions were fitted on judged verdicts, and what is kept was decided "
            "by judged answers alone."
        )
    if threshold.verdict_tokens is not None:
        words.append(
            f"Answers are judged by their first {threshold.verdict_tokens} tokens: {threshold.verdict_changes} of the "
            "verdicts on whole answers would differ there."
        )
    return tuple(words)


def threshold_tables(threshold: RefusalThreshold) -> tuple[Table, ...]:
    """What was judged, and the ways of reading the score."""
    tables = []
    if threshold.judged:
        rows = tuple(
            (
                Cell(label),
                Cell(str(len(each.refused)), kind="number"),
                Cell(str(sum(score <= threshold.value for score in each.refused)), kind="number"),
                Cell(str(len(each.answered)), kind="number"),
                Cell(str(sum(score > threshold.value for score in each.answered)), kind="number"),
                Cell(str(each.unjudged), kind="number"),
            )
            for label, each in threshold.judged.items()
        )
        columns = ("Prompts", "Refused", "of these below", "Answered", "of these above", "Unjudged")
        tables.append(Table("Judged answers to train prompts, and their scores at the threshold", columns, rows))
    if len(threshold.tried) > 1:
        tables.append(
            Table(
                "Ways of reading the score",
                ("Forced opening", "AUROC", ""),
                tuple(_reading_row(each, used=each == threshold.reading) for each in threshold.tried),
            )
        )
    return tuple(tables)


def _reading_row(reading: ScoreReading, *, used: bool) -> tuple[Cell, ...]:
    interval = f"{number(reading.low)} to {number(reading.high)}"
    return (
        Cell(reading.opening or "none", kind="code" if reading.opening else "text"),
        Cell(number(reading.auroc), (interval,), "number"),
        Cell("used" if used else ""),
    )

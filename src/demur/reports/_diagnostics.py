"""What supports the numbers: fidelity, the model's own noise, stability of the choice, leakage between prompt sets."""

from demur.records import CrossEntropy, Fidelity, LeakageReport, NoiseFloor, Stability, Summary
from demur.reports._format import layer_and_position, number, share
from demur.reports._tables import Cell, Table, plain_mean_cell, rate_cell

_DIRECTIONS = {"refusal_direction": "refusal direction", "false_refusal_direction": "false-refusal direction"}


def diagnostic_tables(summary: Summary) -> tuple[Table, ...]:
    """One table for each of them that was measured."""
    tables = []
    if summary.fidelity is not None:
        tables.append(_fidelity(summary.fidelity))
    if summary.noise_floor is not None:
        tables.append(_noise(summary.noise_floor))
    if summary.stability:
        tables.append(_stability(summary.stability))
    if summary.leakage is not None:
        tables.append(_leakage(summary.leakage))
    return tuple(tables)


def diagnostic_words(summary: Summary) -> tuple[str, ...]:
    """What the tables say, one sentence for each."""
    words = []
    if summary.noise_floor is not None:
        flips = summary.noise_floor.flips
        words.append(
            f"The base model was asked {flips.n} prompts twice in other batches: {flips.k} verdicts flipped. A change "
            "that is no larger than this is noise."
        )
    words.extend(
        f"When validation prompts are drawn again, the {_DIRECTIONS[one.kind]} is chosen at the same place in "
        f"{share(one.wins / one.resamples)} % of {one.resamples} draws."
        for one in summary.stability
    )
    return tuple(words)


def _fidelity(fidelity: Fidelity) -> Table:
    rows = [
        (Cell("KL of the first token (nats)"), plain_mean_cell(fidelity.kl_first_token)),
        (
            Cell(f"KL per token over the first {fidelity.n_tokens} tokens of the base model's answers (nats)"),
            plain_mean_cell(fidelity.kl_generated),
        ),
        *_cross_entropy("the base model's own answers", fidelity.cross_entropy_own),
    ]
    if fidelity.cross_entropy_text is not None:
        rows += _cross_entropy("plain text", fidelity.cross_entropy_text)
    return Table("Fidelity on harmless test prompts", ("Measure", "Value"), tuple(rows), facts=True)


def _cross_entropy(what: str, measured: CrossEntropy) -> list[tuple[Cell, ...]]:
    return [
        (Cell(f"Cross-entropy of {what} before (nats per token)"), plain_mean_cell(measured.before)),
        (Cell(f"Cross-entropy of {what} after"), plain_mean_cell(measured.after)),
        (Cell("Difference, paired"), plain_mean_cell(measured.difference)),
        (
            Cell(f"Perplexity before, after ({measured.n_tokens} tokens)"),
            Cell(f"{number(measured.perplexity_before, 2)}, {number(measured.perplexity_after, 2)}", kind="number"),
        ),
    ]


def _noise(noise: NoiseFloor) -> Table:
    flips = rate_cell(noise.flips) or Cell("-")
    rows = (
        (Cell("Refused once and answered once"), flips),
        (Cell("Different text"), Cell(f"{noise.different_texts} of {noise.n}", kind="number")),
        (Cell("Largest difference of a next-token logit"), Cell(_small(noise.max_logit_difference), kind="number")),
        (Cell("Largest difference of a refusal score"), Cell(_small(noise.max_score_difference), kind="number")),
    )
    caption = f"The base model twice (batches of {noise.batch_size} and {noise.other_batch_size})"
    return Table(caption, ("Measure", "Value"), rows, facts=True)


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _stability(found: tuple[Stability, ...]) -> Table:
    rows = []
    for one in found:
        name = Cell(_DIRECTIONS[one.kind])
        rows.append((name, Cell(layer_and_position(one.layer, one.position)), _wins(one.wins, one.resamples)))
        rows += [
            (Cell(""), Cell(layer_and_position(other.layer, other.position)), _wins(other.wins, one.resamples))
            for other in one.others[:3]
        ]
    caption = "How often a candidate is chosen when validation prompts are drawn again"
    return Table(caption, ("Direction", "Candidate", "Chosen"), tuple(rows))


def _wins(wins: int, resamples: int) -> Cell:
    return Cell(f"{share(wins / resamples)} %", (f"{wins}/{resamples}",), "number")


def _leakage(leakage: LeakageReport) -> Table:
    rows = tuple(
        (
            Cell(_side(pair.left, pair.left_split)),
            Cell(_side(pair.right, pair.right_split)),
            Cell(str(pair.exact), kind="number"),
            Cell("-" if pair.near is None else str(pair.near), kind="number"),
        )
        for pair in leakage.pairs
    )
    near = "" if leakage.threshold is None else f" (trigram similarity of {leakage.threshold:g} or more)"
    return Table(f"Copies and near copies{near}", ("Of", "Among", "Copies", "Near copies"), rows)


def _side(label: str, split: str | None) -> str:
    return label if split is None else f"{label}, {split}"

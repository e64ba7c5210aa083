"""What suffixes do to refusal, as a page of its own and as sections of an audit's.

Suffixes are shown: the user gave them, or they were found on the toy model. Prompts and answers are not in the record.
"""

from demur.records import SuffixAnalysis, SuffixGroup, SuffixText
from demur.reports._document import Document, Figure, Section
from demur.reports._format import model_name, number, share, short_hash, shorten
from demur.reports._tables import Cell, Table, difference_cell, or_dash, plain_mean_cell, rate_cell

_LONGEST_SUFFIX = 120
_ROLES = {
    "harmful": "as they are",
    "random": "random tokens after them",
    "suffix": "the suffix after them",
    "harmless": "harmless prompts",
}
_TERMS = (
    ("Refusal rate", "Share of prompts refused, fully or partly, with k/n and the 95 % Wilson interval."),
    ("Change", "Against the same prompts without a suffix, with the 95 % score interval of paired data (Tango)."),
    ("Refusal score", "Log-odds that the answer begins with one of the model's refusal tokens; above 0 it refuses."),
    ("Random tokens", "As many as the suffix has, drawn anew for each prompt: what any text after a prompt does."),
    ("Intervals", "Of means: 95 %, bootstrap over prompts."),
)


def document(record: SuffixAnalysis) -> Document:
    """The page of `suffixes.json`."""
    return Document(
        title=f"Suffixes and refusal: {model_name(record.model.id)}",
        verdict=verdict(record),
        decision=None,
        reasons=(),
        warnings=warnings(record),
        sections=(*sections(record), _provenance(record)),
        footer=f"Written by demur {record.provenance.demur} from the record of {record.provenance.created}.",
    )


def sections(record: SuffixAnalysis) -> tuple[Section, ...]:
    """Rates, and the three plots; for an audit's page too. Figures are those of `_suffix_figures.draw`."""
    found = (_rates(record), _layers(record), _parts(record), _attention(record))
    return tuple(section for section in found if section is not None)


def strongest(record: SuffixAnalysis) -> tuple[SuffixGroup, SuffixGroup, SuffixGroup, SuffixGroup]:
    """harmful, random, suffix, harmless: of the suffix that leaves the fewest refusals, by score among equal ones."""
    plain, harmless = record.groups[0], record.groups[-1]
    suffixes = [group for group in record.groups if group.role == "suffix"]
    best = min(suffixes, key=lambda group: (group.refusal_rate.rate or 0.0, group.refusal_score.mean))
    control = next(group for group in record.groups if group.role == "random" and group.suffix == best.suffix)
    return plain, control, best, harmless


def verdict(record: SuffixAnalysis) -> str:
    """What the strongest suffix does, only as far as the interval carries it."""
    plain, control, best, _ = strongest(record)
    count = len(record.suffixes)
    which = "The suffix" if count == 1 else f"The strongest of {count} suffixes, {best.name},"
    numbers = (
        f"refused are {_rate(best)} of harmful prompts with it, {_rate(plain)} without, and {_rate(control)} with as "
        "many random tokens"
    )
    compared = best.comparison
    if compared is None or compared.n == 0:
        return f"{which} was not judged: {numbers}."
    if compared.high < 0:
        return f"{which} gets past refusal: {numbers}."
    return f"{which} is not shown to lower refusals: {numbers}."


def warnings(record: SuffixAnalysis) -> tuple[str, ...]:
    """What a reader must know first."""
    told = []
    if record.search is not None:
        told.append(
            "One suffix was searched by gradient on the toy model that ships with demur. The search refuses other "
            "models: for those only suffixes that you have can be measured."
        )
    if not record.attention_read:
        told.append("The model does not show attention weights, so where its heads look is not in this page.")
    if record.whole:
        told.append(
            f"{len(record.whole)} of {record.model.n_layers} blocks were not taken apart into heads; their writes are "
            f"whole. The first: {next(iter(record.whole.values()))}."
        )
    return tuple(told)


def _rate(group: SuffixGroup) -> str:
    rate = group.refusal_rate
    return "an unmeasured share" if rate.rate is None else f"{share(rate.rate)} % ({rate.k}/{rate.n})"


def _rates(record: SuffixAnalysis) -> Section:
    rows = tuple(
        (
            Cell(group.what),
            or_dash(rate_cell(group.refusal_rate)),
            or_dash(None if group.comparison is None else difference_cell(group.comparison)),
            plain_mean_cell(group.refusal_score),
        )
        for group in record.groups
    )
    tables = [
        Table("Refusals and refusal scores, test prompts", ("Prompts", "Refusal rate", "Change", "Score"), rows),
        Table("The suffixes", ("Name", "Text", "Tokens", "From"), tuple(_suffix_row(text) for text in record.suffixes)),
    ]
    words = [f"Verdicts by judge {record.judge.id}, version {record.judge.version}. No answer was kept."]
    if record.search is not None:
        search = record.search
        first, last = search.curve[0], search.curve[-1]
        words.append(
            f"The searched suffix: {search.steps} steps of {search.candidates} candidates on {search.n_prompts} train "
            f"prompts took their mean refusal score from {number(first.score, 1)} to {number(last.score, 1)}. The "
            "numbers below are of test prompts."
        )
    return Section("suffix-rates", "What suffixes do to refusals", tuple(words), tables=tuple(tables), terms=_TERMS)


def _suffix_row(text: SuffixText) -> tuple[Cell, ...]:
    origin = "given" if text.origin == "given" else "searched on the toy model"
    return (
        Cell(text.name),
        Cell(shorten(text.text, _LONGEST_SUFFIX), kind="code"),
        Cell(str(text.n_tokens), kind="number"),
        Cell(origin),
    )


def _layers(record: SuffixAnalysis) -> Section:
    groups = strongest(record)
    harmful, _, suffix, harmless = groups
    gap = harmful.projection[-1].mean - harmless.projection[-1].mean
    way = 100 * (harmful.projection[-1].mean - suffix.projection[-1].mean) / gap if gap else 0.0
    rows = tuple(
        (
            Cell(f"input of block {index}" if index < record.model.n_layers else "after the last block"),
            *(_layer_cell(group, index) for group in groups),
        )
        for index in range(len(harmful.cosine))
    )
    heads = [_ROLES[group.role] for group in groups]
    return Section(
        "suffix-layers",
        "The refusal direction over the layers",
        (
            "The cosine of the residual stream with the refusal direction, at the last position, where the answer "
            f"begins. After the last block the suffix ({suffix.name}) takes the projection {way:.0f} % of the way from "
            "harmful to harmless prompts: 100 % means that the prompt has come to look harmless.",
        ),
        Figure(
            "suffix-layers",
            "Line chart of the cosine with the refusal direction over layers, four kinds of prompts",
            "Lines are means over prompts, bands their 95 % intervals. Dotted: the block at whose input the direction "
            "was read.",
        ),
        tables=(Table("Cosine, its 95 % interval, and the projection", ("At", *heads), rows),),
    )


def _layer_cell(group: SuffixGroup, index: int) -> Cell:
    cosine, projection = group.cosine[index], group.projection[index]
    details = (f"{number(cosine.low, 2)} to {number(cosine.high, 2)}", f"projection {number(projection.mean, 1)}")
    return Cell(number(cosine.mean, 2), details, "number")


def _parts(record: SuffixAnalysis) -> Section:
    groups = strongest(record)
    names = part_names(record)
    values = [(*group.top_heads, *group.writes) for group in groups]
    rows = tuple(
        (Cell(name), *(_mean(each[row].mean, each[row].low, each[row].high) for each in values))
        for row, name in enumerate(names)
    )
    lost = sum(each.mean for each in groups[0].top_heads) - sum(each.mean for each in groups[2].top_heads)
    gap = groups[0].projection[-1].mean - groups[2].projection[-1].mean
    heads = (
        f"The {len(record.top_heads)} heads that add most on plain harmful prompts account for {number(lost, 1)} of "
        f"the {number(gap, 1)} by which the suffix lowers the projection."
        if record.top_heads
        else "No block could be taken apart into heads, so only whole writes are shown."
    )
    return Section(
        "suffix-parts",
        "Which parts write along the direction",
        (
            "The residual stream is the sum of the embeddings and of what every head and every MLP writes; each part's "
            f"share in the projection on the refusal direction can be read off. {heads} The parts add up to the "
            f"stream's projection to {record.unexplained:.1g} of it.",
        ),
        Figure(
            "suffix-parts",
            "Dot chart of what heads and MLPs add to the projection, four kinds of prompts",
            "Contribution to the projection after the last block, with 95 % intervals. Heads first, then the whole "
            "writes of most weight.",
        ),
        tables=(Table("Contributions", ("Part", *(_ROLES[group.role] for group in groups)), rows),),
    )


def part_names(record: SuffixAnalysis) -> tuple[str, ...]:
    """Top heads, then whole writes, as a reader knows them."""
    heads = [record.parts[index] for index in record.top_heads]
    writes = [record.parts[index] for index in record.writes]
    return (
        *(f"head {part.block}.{part.head}" for part in heads),
        *(f"block {part.block} {_module(part.module)}" for part in writes),
    )


def _module(path: str) -> str:
    """The words of a module's path that come after its block's number."""
    words = path.split(".")
    numbers = [index for index, word in enumerate(words) if word.isdigit()]
    return ".".join(words[numbers[0] + 1 :]) if numbers else path


def _attention(record: SuffixAnalysis) -> Section | None:
    groups = strongest(record)[:3]
    if not all(group.attention for group in groups):
        return None
    rows = tuple(
        (
            Cell(f"head {shares[0].block}.{shares[0].head}"),
            *(
                _mean(each.mean, each.low, each.high)
                for one in shares
                for each in (one.instruction, one.suffix)[: 1 if one is shares[0] else 2]
            ),
        )
        for shares in zip(*(group.attention for group in groups), strict=True)
    )
    plain, control, best = (_average(group) for group in groups)
    return Section(
        "suffix-attention",
        "Where the top heads look",
        (
            "Attention of the same heads from the last position. On average over them "
            f"{share(plain[0])} % falls on the prompt itself without a suffix; with random tokens "
            f"{share(control[0])} % on the prompt and {share(control[1])} % on the tokens; with the suffix "
            f"{share(best[0])} % on the prompt and {share(best[1])} % on the suffix. The remainder is on the template.",
        ),
        Figure(
            "suffix-attention",
            "Bars of attention on prompt and suffix for each top head, three kinds of prompts",
            "Shares of each head's attention from the last position, means over prompts.",
        ),
        tables=(
            Table(
                "Shares of attention, with 95 % intervals",
                ("Head", "plain: prompt", "random: prompt", "random: tokens", "suffix: prompt", "suffix: suffix"),
                rows,
            ),
        ),
    )


def _average(group: SuffixGroup) -> tuple[float, float]:
    count = len(group.attention)
    return (
        sum(each.instruction.mean for each in group.attention) / count,
        sum(each.suffix.mean for each in group.attention) / count,
    )


def _mean(value: float, low: float, high: float) -> Cell:
    return Cell(number(value, 2), (f"{number(low, 2)} to {number(high, 2)}",), "number")


def _provenance(record: SuffixAnalysis) -> Section:
    sets = "; ".join(f"{each.n} {label} from {each.source}" for label, each in record.prompts.items())
    facts = (
        ("Model", record.model.id),
        ("Content sha256", short_hash(record.model.content_hash)),
        ("Refusal direction", f"{record.source}; block {record.layer}, position {record.position}"),
        ("Prompts", sets),
        ("Judge", f"{record.judge.id} {record.judge.version}"),
        ("Versions", f"demur {record.provenance.demur}, transformers {record.provenance.transformers}"),
        ("Created", record.provenance.created),
    )
    rows = tuple((Cell(name), Cell(value)) for name, value in facts)
    return Section("provenance", "Provenance", tables=(Table("What ran", ("What", "Value"), rows, facts=True),))

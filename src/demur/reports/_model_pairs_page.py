"""Two models side by side, as pages of their own and as sections of an audit's."""

from demur.records import (
    BaseComparison,
    BasePlace,
    ModelAtPlace,
    ModelIdentity,
    Provenance,
    Separation,
    Transfer,
    TransferRow,
)
from demur.reports._document import Document, Figure, Section
from demur.reports._format import model_name, number, share, short_hash, token
from demur.reports._tables import Cell, Table, difference_cell, or_dash, rate_cell

_BASE_TERMS = (
    ("AUROC", "Share of pairs in which the harmful prompt lies further along the direction: 0.5 is chance, 1 is all."),
    ("d'", "Distance of the two means in pooled standard deviations."),
    ("r", "The chat model's refusal direction."),
    ("Own direction", "Harmful minus harmless mean of that model at that place, fitted on train prompts."),
    ("Intervals", "95 %: Newcombe's method 5 for AUROC, Wilson for rates. All numbers are of test prompts."),
)
_TRANSFER_TERMS = (
    ("Ablated", "Harmful prompts, with the direction removed from every write to the residual stream."),
    ("Added", "Harmless prompts, with the direction added at the block at which it was read, at its own length."),
    ("Random direction", "Of the length of the model's own direction: what any direction does."),
)


def base_document(record: BaseComparison) -> Document:
    """The page of `base.json`."""
    return Document(
        title=f"Where refusal appears: {model_name(record.chat.id)} and {model_name(record.base.id)}",
        verdict=base_verdict(record),
        decision=None,
        reasons=(),
        warnings=(),
        sections=(base_section(record), _provenance(record, {"Chat model": record.chat, "Base model": record.base})),
        footer=_footer(record.provenance),
    )


def transfer_document(record: Transfer) -> Document:
    """The page of `transfer.json`."""
    return Document(
        title=f"Transfer of refusal: {model_name(record.source_model.id)} to {model_name(record.target_model.id)}",
        verdict=transfer_verdict(record),
        decision=None,
        reasons=(),
        warnings=(),
        sections=(transfer_section(record), _provenance(record, _models(record))),
        footer=_footer(record.provenance),
    )


def _models(record: Transfer) -> dict[str, ModelIdentity]:
    return {"Direction from": record.source_model, "Tried in": record.target_model}


def _provenance(record: BaseComparison | Transfer, models: dict[str, ModelIdentity]) -> Section:
    facts = [(name, f"{model.id}, content sha256 {short_hash(model.content_hash)}") for name, model in models.items()]
    facts.append(("Prompts", "; ".join(f"{each.n} {label}, {each.source}" for label, each in record.prompts.items())))
    if isinstance(record, Transfer):
        facts.append(("Judge", f"{record.judge.id} {record.judge.version}"))
    facts.append(("Versions", f"demur {record.provenance.demur}, transformers {record.provenance.transformers}"))
    rows = tuple((Cell(name), Cell(value)) for name, value in facts)
    return Section("provenance", "Provenance", tables=(Table("What ran", ("What", "Value"), rows, facts=True),))


def _footer(provenance: Provenance) -> str:
    return f"Written by demur {provenance.demur} from the record of {provenance.created}."


def base_verdict(record: BaseComparison) -> str:
    """Whether the direction is there before chat training."""
    level = f"{record.appears_above:g}"
    if record.chat_appears is None:
        return (
            "The chat model's refusal direction tells harmful from harmless prompts at none of its layers (AUROC above "
            f"{level} with its whole interval)."
        )
    chat = (
        f"In the chat model the refusal direction tells harmful from harmless prompts from block {record.chat_appears}"
    )
    if record.base_appears is None:
        return f"{chat} on; in the base model it does so at no layer (AUROC above {level} with its whole interval)."
    return f"{chat} on, in the base model from block {record.base_appears} on: it was there before chat training."


def base_section(record: BaseComparison) -> Section:
    """Both models over layers; for an audit's page too. The figure is `_model_pairs_figures.draw_base`'s."""
    here = [place for place in record.places if place.position == record.position]
    cosines = [place.cosine for place in here]
    closest = f" The cosine of these two is at most {number(max(cosines), 2)} at any layer." if cosines else ""
    return Section(
        "base",
        "Where the refusal direction appears",
        (
            "Both models read the same tokens. Each layer is looked at along the chat model's refusal direction, and "
            f"along each model's own difference in means.{closest}",
        ),
        Figure(
            "base",
            "Two line charts over layers: separation along the refusal direction, and cosines between directions",
            "Position of the refusal direction. Bands are 95 % intervals; the dotted line is the block at whose input "
            "it was read.",
        ),
        tables=(_base_table(record, here), _positions_table(record)),
        terms=_BASE_TERMS,
    )


def _base_table(record: BaseComparison, here: list[BasePlace]) -> Table:
    rows = tuple(
        (
            Cell(f"input of block {place.layer}"),
            _separation(place.chat.along_r),
            _separation(place.base.along_r),
            _separation(place.base.along_own),
            Cell(number(place.cosine, 2), (f"r with base's own {number(place.r_with_base, 2)}",), "number"),
        )
        for place in here
    )
    columns = ("At", "Chat, along r", "Base, along r", "Base, along its own", "Cosine of own directions")
    return Table(f"AUROC by layer, position {record.position}", columns, rows)


def _positions_table(record: BaseComparison) -> Table:
    rows = []
    for position, text in zip(record.positions, record.position_texts, strict=True):
        places = [place for place in record.places if place.position == position]
        rows.append(
            (
                Cell(f"{position} {token(text)}", kind="code"),
                _best(places, [place.chat for place in places]),
                _best(places, [place.base for place in places]),
            )
        )
    return Table("Best layer along r at each position", ("Position", "Chat", "Base"), tuple(rows))


def _best(places: list[BasePlace], models: list[ModelAtPlace]) -> Cell:
    best = max(range(len(places)), key=lambda index: models[index].along_r.auroc)
    found = _separation(models[best].along_r)
    return Cell(found.text, (f"block {places[best].layer}", *found.details), "number")


def _separation(value: Separation) -> Cell:
    details = [f"{number(value.low, 2)} to {number(value.high, 2)}"]
    if value.d_prime is not None:
        details.append(f"d' {number(value.d_prime, 2)}")
    return Cell(number(value.auroc, 2), tuple(details), "number")


def transfer_verdict(record: Transfer) -> str:
    """What the other model's direction does, beside the model's own."""
    rest, other, own, random = (_row(record, state) for state in _STATES)
    numbers = (
        f"Removing the other model's refusal direction leaves {_left(other)} of harmful prompts refused "
        f"({_left(rest)} at rest); removing the model's own leaves {_left(own)}, a random one {_left(random)}"
    )
    change = other.ablated_change
    works = change is not None and change.high < 0 and other.ablated.high < random.ablated.low
    if works:
        return f"The direction transfers. {numbers}."
    return f"The direction is not shown to transfer. {numbers}."


_STATES = ("at rest", "other's direction", "own direction", "random direction")


def _row(record: Transfer, state: str) -> TransferRow:
    return next(row for row in record.rows if row.state == state)


def _left(row: TransferRow) -> str:
    rate = row.ablated
    return "an unmeasured share" if rate.rate is None else f"{share(rate.rate)} % ({rate.k}/{rate.n})"


def _unjudged(row: TransferRow) -> tuple[str, ...]:
    counts = {"ablated": row.ablated.unjudged, "added": row.added.unjudged}
    return tuple(f"{count} unjudged {state}" for state, count in counts.items() if count)


def transfer_section(record: Transfer) -> Section:
    """What each direction does in the second model; for an audit's page too."""
    rows = tuple(
        (
            Cell(row.state, _unjudged(row)),
            or_dash(rate_cell(row.ablated)),
            or_dash(None if row.ablated_change is None else difference_cell(row.ablated_change)),
            or_dash(rate_cell(row.added)),
            or_dash(None if row.added_change is None else difference_cell(row.added_change)),
        )
        for row in record.rows
    )
    of_own = (
        ""
        if record.share_of_own is None
        else (f" It removes {share(record.share_of_own)} % as many refusals as the model's own direction does.")
    )
    return Section(
        "transfer",
        "One model's refusal direction in another",
        (
            f"The refusal direction of {model_name(record.source_model.id)} (block {record.layer}, position "
            f"{record.position}) in {model_name(record.target_model.id)}, whose own was found at block "
            f"{record.own_layer}, position {record.own_position}. The cosine of the two is {number(record.cosine, 2)}, "
            f"and {number(record.cosine_at_place, 2)} with the second model's difference in means at the same place."
            f"{of_own}",
        ),
        tables=(
            Table(
                f"{model_name(record.target_model.id)} with each direction, test prompts",
                ("State", "Ablated: harmful refused", "Change", "Added: harmless refused", "Change"),
                rows,
            ),
        ),
        terms=_TRANSFER_TERMS,
    )

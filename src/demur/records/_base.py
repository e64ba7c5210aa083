"""What every record has in common: frozen, validated, strict about unknown keys, plain JSON."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of all records. Unknown keys are refused, so that a typo never passes as an absent value."""

    model_config = ConfigDict(
        frozen=True,
        use_attribute_docstrings=True,
        extra="forbid",
        populate_by_name=True,
        serialize_by_alias=True,
        allow_inf_nan=False,
    )

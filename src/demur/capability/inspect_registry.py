"""What inspect_ai imports to learn of the provider `demur` (the entry point in the package's metadata)."""

from typing import Any

from inspect_ai.model import modelapi


@modelapi(name="demur")  # type: ignore[untyped-decorator]
def demur() -> Any:
    """Models named `demur/...`: a live or loaded chat model, with the operating point of a run if one is given."""
    from demur.capability._inspect_provider import DemurAPI  # noqa: PLC0415 (loads torch)

    return DemurAPI

"""Numbers, hashes and foreign text as a reader should see them. Knows nothing about sections or files."""

import re

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Control characters that HTML forbids, and lone surrogates that UTF-8 cannot hold."""

_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def share(value: float) -> str:
    """A share in percent, without the sign: 0.984 is `98.4`."""
    return _without_negative_zero(f"{100 * value:.1f}")


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    text = _without_negative_zero(f"{100 * value:.1f}")
    return text if text.startswith("-") or text == "0.0" else f"+{text}"


def number(value: float | None, digits: int = 3) -> str:
    """A plain number; `-` where there is none."""
    return "-" if value is None else _without_negative_zero(f"{value:.{digits}f}")


def bound(value: float | None, unit: str) -> str:
    """A confidence bound or a limit with its unit; `-` where there is none."""
    if value is None:
        return "-"
    return f"{share(value)} %" if unit == "share" else f"{value:.4g} {unit}"


def p_value(value: float) -> str:
    """A p-value; below 0.001 only that is said."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def short_hash(value: str) -> str:
    """The first 12 characters: enough to find a prompt in the run folder."""
    return clean(value)[:12]


def layer_and_position(layer: int | None, position: int | None) -> str:
    """Where a direction was read."""
    return "-" if layer is None or position is None else f"layer {layer}, position {position}"


def token(text: str, *, longest: int = 24) -> str:
    """A token on one line, with line ends and tabs spelled out and quotes around what would be invisible."""
    visible = "".join(_ESCAPES.get(character, character) for character in clean(text))
    if visible != visible.strip() or not visible:
        visible = f'"{visible}"'
    return visible if len(visible) <= longest else visible[: longest - 1] + "…"


def clean(text: str) -> str:
    """Foreign text without the characters that a document cannot hold."""
    return _UNPRINTABLE.sub("\ufffd", text.replace("\r\n", "\n"))


def shorten(text: str, longest: int) -> str:
    """Foreign text, cut to `longest` characters; a cut says how long the text is."""
    whole = clean(text).strip()
    if len(whole) <= longest:
        return whole
    return f"{whole[:longest].rstrip()} … (cut; {len(whole)} characters in all)"


def _without_negative_zero(text: str) -> str:
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text


def model_name(identifier: str) -> str:
    """A hub id as it is; of a path only the folder's name, which is what a reader knows the model by."""
    is_path = identifier.startswith(("/", ".", "~")) or "\\" in identifier
    return re.split(r"[/\\]", identifier.rstrip("/\\"))[-1] if is_path else identifier

"""One filled instance of every record, made from its annotations, so that a new record or field is covered at once."""

import types
from typing import Any, Literal, Union, get_args, get_origin

import demur.records
from demur.records import Record

RECORDS: list[type[Record]] = [
    value
    for name in demur.records.__all__
    if isinstance(value := getattr(demur.records, name), type) and issubclass(value, Record) and value is not Record
]


def sample(kind: type[Record]) -> Record:
    """An instance with every field filled, no two numbers or texts alike by accident of a default."""
    return kind(**{name: _value(field.annotation, name) for name, field in kind.model_fields.items()})


def least(kind: type[Record]) -> Record:
    """An instance with defaults wherever there are some, and null where null is allowed."""
    required = {name: field for name, field in kind.model_fields.items() if field.is_required()}
    return kind(**{name: _value(field.annotation, name, null=True) for name, field in required.items()})


def _value(annotation: Any, name: str, *, null: bool = False) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return arguments[-1]
    if origin in (Union, types.UnionType):
        if null and type(None) in arguments:
            return None
        return _value(next(each for each in arguments if each is not type(None)), name, null=null)
    if origin is tuple:
        return tuple(_value(arguments[0], f"{name} {number}", null=null) for number in range(2))
    if origin is dict:
        return {_value(arguments[0], name): _value(arguments[1], name, null=null)}
    if isinstance(annotation, type) and issubclass(annotation, Record):
        return least(annotation) if null else sample(annotation)
    if annotation is Any:
        return [name, 1, None]
    plain = {bool: True, int: len(name) + 3, float: 0.1 + len(name), str: f'{name} \u2028 "è"\n\\'}
    return plain[annotation]

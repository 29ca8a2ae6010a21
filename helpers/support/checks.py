"""What a setting of a configuration may be."""

import operator
from contextlib import suppress
from dataclasses import Field
from typing import Any, get_args

import numpy as np

KINDS: dict = {int: "a whole number", float: "a number", bool: "True or False", str: "a name"}
SIGNS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


def checked(field: Field, value: Any, allowed: dict[str, float]) -> Any:
    """Check the value of a dataclass's field.

    Args:
        field: its type is one of KINDS, or a tuple of these.
        value: of the field.
        allowed: the range of a number, or of each part of a tuple: {one of SIGNS: a bound}.

    Returns:
        The value, with Python's own numbers for NumPy's: these a checkpoint can hold.

    Raises:
        ValueError: the value is of another kind, or out of its range; or it is an empty tuple,
            where the default is none.
    """
    with suppress(ValueError):  # of what is no array, such as ((1, 2), 3)
        value = np.asarray(value).tolist()
    kind: Any = (get_args(field.type) or [field.type])[0]  # of each part of a tuple
    is_tuple = kind is not field.type
    parts = value if isinstance(value, list) else [value]
    kinds = (int, float) if kind is float else (kind,)
    is_good = isinstance(value, list) == is_tuple and all(type(part) in kinds for part in parts)
    for sign, bound in allowed.items():
        is_good = is_good and all(SIGNS[sign](part, bound) for part in parts)
    if not is_good or (not parts and field.default):
        wanted = f"a tuple, each part {KINDS[kind]}" if is_tuple else KINDS[kind]
        within = " and".join(f" {sign} {bound}" for sign, bound in allowed.items())
        raise ValueError(f"{field.name} must be {wanted}{within}, got {value!r}")
    return tuple(map(kind, parts)) if is_tuple else kind(value)

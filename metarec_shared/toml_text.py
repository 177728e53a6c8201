"""Write settings as TOML."""

import json
import math
from collections.abc import Mapping

from metarec_shared.settings import Scalar


def toml_tables(values: Mapping[str, Scalar], prefix: str = "") -> str:
    """Return ``{"table.key": value}`` as TOML; a table's keys stand together, its name begins with ``prefix``."""
    lines: list[str] = []
    table = ""
    for key, value in values.items():
        name, _, entry = key.partition(".")
        if name != table:
            lines += [*([""] if lines else []), f"[{prefix}{name}]"]
            table = name
        lines.append(f"{entry} = {toml_value(value)}")
    return "\n".join(lines) + "\n"


def toml_value(value: Scalar) -> str:
    """Return a scalar as TOML spells it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace(
            "\x7f", "\\u007f"
        )  # TOML's strings are JSON's but for this
    if isinstance(value, bool):
        return str(value).lower()
    return "inf" if value == math.inf else repr(value)

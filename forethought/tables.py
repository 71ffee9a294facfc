"""Tables and words for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]


def plain_console() -> Console:
    """A console that takes brackets and numbers as they are."""
    return Console(markup=False, highlight=False)


def folding_table(*columns: str) -> Table:
    """A table whose columns fold rather than cut."""
    table = Table(box=None, show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_table(console: Console, title: str, table: Table) -> None:
    """Print a table under its title."""
    console.print()
    console.print(title, style="bold", soft_wrap=True)
    console.print(table)


def number_text(value: Any) -> str:
    """A number in four digits; what is no float as it is, None as nothing."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def option_text(options: Row) -> str:
    """Options as `name=value`, sorted."""
    return ", ".join(f"{key}={value}" for key, value in sorted(options.items()))


def flattened(config: Row, above: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{name}.")
        else:
            flat[name] = value
    return flat

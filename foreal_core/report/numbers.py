"""Numbers as tables show them."""

from __future__ import annotations


def scaled(value: float | None, unit: str = "") -> str:
    """Three digits and an SI prefix: 1.23 G; "unknown" for None."""
    if value is None:
        return "unknown"
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if abs(value) < 999.5 or prefix == "E":
            break
        value /= 1000
    digits = f"{value:#.3g}".rstrip(".") if value else "0"
    return f"{digits} {prefix}{unit}".rstrip()

"""The order of methods in tables and figures: numbers compare as numbers, so that rank 4 comes before rank 16."""

import re


def natural_key(name: str) -> list[tuple[float, str]]:
    """Return a sort key in which the numbers in a name compare as numbers and the rest as text."""
    parts = re.findall(r"\d+(?:\.\d+)?|\D+", name)
    return [(float(part), "") if part[0].isdigit() else (float("inf"), part) for part in parts]

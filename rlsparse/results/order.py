"""The order of methods in tables and figures: as a person would put them, rank 4 before rank 16."""

import re


def natural(name: str) -> list[tuple[float, str]]:
    """Sort key: numbers in a name compare as numbers, the rest as text."""
    parts = re.findall(r"\d+(?:\.\d+)?|\D+", name)
    return [(float(part), "") if part[0].isdigit() else (float("inf"), part) for part in parts]

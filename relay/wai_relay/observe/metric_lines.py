"""The lines of Prometheus' text format."""

from __future__ import annotations

Labels = tuple[tuple[str, str], ...]


def head(name: str, help_text: str, kind: str) -> tuple[str, str]:
    """The two lines before a metric's values."""
    return f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"


def line(name: str, labels: Labels, value: float) -> str:
    """One value."""
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"{name}{{{inside}}} {value:.17g}" if inside else f"{name} {value:.17g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

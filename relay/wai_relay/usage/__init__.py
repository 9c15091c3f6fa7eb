"""Record the usage of requests (tokens, times, cost), sum it up, and report it."""

from .recorder import UsageRecorder
from .report import Grouping, UsageReport, UsageRow, UsageTop

__all__ = ["Grouping", "UsageRecorder", "UsageReport", "UsageRow", "UsageTop"]

"""Record the usage of requests (tokens, times, cost), sum it up, and report it."""

from .recorder import UsageRecorder
from .report import UsageReport, UsageTop

__all__ = ["UsageRecorder", "UsageReport", "UsageTop"]

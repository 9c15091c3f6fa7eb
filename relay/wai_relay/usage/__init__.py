"""Record the usage of requests (tokens, times, cost), sum it up, and report it."""

from .history import HistoryFilter, RequestHistory
from .recorder import UsageRecorder
from .report import UsageReport, UsageTop

__all__ = ["HistoryFilter", "RequestHistory", "UsageRecorder", "UsageReport", "UsageTop"]

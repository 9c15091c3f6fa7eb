"""What requests cost: recorded off the hot path, rolled up, reported."""

from .recorder import UsageRecorder
from .report import Grouping, UsageReport, UsageTop

__all__ = ["Grouping", "UsageRecorder", "UsageReport", "UsageTop"]

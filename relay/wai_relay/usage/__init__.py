"""What requests cost: recorded off the hot path, rolled up, reported."""

from .recorder import UsageRecorder
from .report import UsageReport, UsageTop

__all__ = ["UsageRecorder", "UsageReport", "UsageTop"]

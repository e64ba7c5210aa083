"""Watching a live model: projections on refusal directions, read and never changed.

monitor = RefusalMonitor.load("monitor")
with monitor.watching(chat) as watch:
    chat.model.generate(**batch)
    flagged = [reading.flags() for reading in watch.readings()]
"""

from demur.monitoring._discriminant import discriminant
from demur.monitoring._monitor import RefusalMonitor
from demur.monitoring._probe import Probe
from demur.monitoring._reading import Flag, Reading
from demur.monitoring._thresholds import Cut, order_statistic, widest
from demur.monitoring._watch import Watch

__all__ = [
    "Cut",
    "Flag",
    "Probe",
    "Reading",
    "RefusalMonitor",
    "Watch",
    "discriminant",
    "order_statistic",
    "widest",
]

# SPDX-License-Identifier: Apache-2.0
"""What the time of an operation was spent on: its critical path, shares of each phase, causes in plain words."""

from observe.correlate.why.events import SchedulerEvents
from observe.correlate.why.explain import Explainer, Witnesses

__all__ = ["Explainer", "SchedulerEvents", "Witnesses"]

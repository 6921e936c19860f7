# SPDX-License-Identifier: Apache-2.0
"""Events become runs: lineage, identity, spans, accounting."""

from observe.correlate.correlator import Correlator
from observe.correlate.stamps import stamp

__all__ = ["Correlator", "stamp"]

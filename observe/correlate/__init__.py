# SPDX-License-Identifier: Apache-2.0
"""Events become runs: lineage, identity, spans, accounting."""

from observe.correlate.correlator import Correlator

__all__ = ["Correlator"]

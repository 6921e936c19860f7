# SPDX-License-Identifier: Apache-2.0
"""What this host can do, and what to do about what it cannot."""

from observe.host.features import Check, checks, require

__all__ = ["Check", "checks", "require"]

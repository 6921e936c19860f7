# SPDX-License-Identifier: Apache-2.0
"""The catalogue of documented phases: data files, loader, validation."""

from observe.phases.catalogue import Catalogue, Evidence, Phase, load

__all__ = ["Catalogue", "Evidence", "Phase", "load"]

# SPDX-License-Identifier: Apache-2.0
"""Prometheus and the live page over a snapshot of runs. Not part of this version yet."""

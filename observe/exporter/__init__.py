# SPDX-License-Identifier: Apache-2.0
"""A live engine's runs, for those who ask over HTTP and for sinks. Nothing here knows a probe.

`Live` is fed with the items of a session; metrics, page, recordings of the slow runs and traces read its snapshots.
"""

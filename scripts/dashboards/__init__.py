# SPDX-License-Identifier: Apache-2.0
"""The Grafana dashboards as Python, for developers: `scripts/make-dashboards` writes the JSON that users get."""

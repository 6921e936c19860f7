# SPDX-License-Identifier: Apache-2.0
"""Where the time of a real docker create and docker start goes."""

__version__ = "0.1.0"

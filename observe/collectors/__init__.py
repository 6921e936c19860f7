# SPDX-License-Identifier: Apache-2.0
"""How events arrive: ring buffer, inotify, Docker API; and the session that runs them and counts losses."""

# SPDX-License-Identifier: Apache-2.0
"""What `observe bench` does: plan the turns of the arms, drive the engine, keep each arm's recording."""

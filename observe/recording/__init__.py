# SPDX-License-Identifier: Apache-2.0
"""The recording file: what the collectors deliver, kept so that a kill, a full disk or a flipped bit costs little."""

from observe.recording.reader import Damage, Recording
from observe.recording.writer import RecordingWriter, keep_conclusions

__all__ = ["Damage", "Recording", "RecordingWriter", "keep_conclusions"]

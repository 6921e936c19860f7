# SPDX-License-Identifier: Apache-2.0
"""Errors for people: one line that says what happened and what to do.

Only `observe.__main__` turns them into exit codes (contract: 0 done, 1 failed, 2 wrong usage,
3 this host or engine cannot, 4 data was lost and --strict was given, 5 compare found a regression).
"""


class ObserveError(Exception):
    """Something failed; each argument is one line that says what happened and what to do. Exit code 1."""

    exit_code = 1

    def __str__(self) -> str:
        """All lines."""
        return "\n".join(str(line) for line in self.args)


class UsageError(ObserveError):
    """Options that do not go together; the message says which. Exit code 2."""

    exit_code = 2


class HostCannotError(ObserveError):
    """This host or engine lacks something; the message says what to install or mount. Exit code 3."""

    exit_code = 3


class EngineGoneError(ObserveError):
    """The engine ended while it was recorded; what was recorded is kept. Exit code 1."""


class RecordingError(ObserveError):
    """A recording cannot be read or written; the message says which and why. Exit code 1."""


class RegressionError(ObserveError):
    """Something became slower than `compare --fail-above` allows. Exit code 5."""

    exit_code = 5


class DataLostError(ObserveError):
    """Events were lost and --strict was given. Exit code 4."""

    exit_code = 4

# SPDX-License-Identifier: Apache-2.0
"""The command line: picks the command, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from itertools import takewhile
from typing import NoReturn

from observe import __version__, commands
from observe.commands import _streams
from observe.errors import ObserveError, UsageError

_DESCRIPTION = "Where the time of a real docker create and docker start goes, phase by phase."
_EXIT_CODES = """\
exit codes:
  0 done   1 failed   2 wrong usage   3 this host or engine cannot (see observe doctor)
  4 data was lost and --strict was given   5 compare --fail-above found a regression"""

#: What a shell reports for a program that SIGINT or SIGPIPE ended.
_INTERRUPTED = 128 + 2
_PIPE_CLOSED = 128 + 13


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv` without the program's name if None). Returns the exit code."""
    _streams.prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Whatever stands behind "--" belongs to the command that is being recorded.
    ours = list(takewhile(lambda argument: argument != "--", arguments))
    try:
        return _run(arguments, ours)
    except ObserveError as error:
        return _failed(*(str(line) for line in error.args), code=error.exit_code, debug="--debug" in ours)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        _close_stdout()
        return _PIPE_CLOSED
    except Exception as error:  # noqa: BLE001 - the last resort: nobody above could show it
        hint = "" if "--debug" in ours else "; run again with --debug for the traceback"
        return _failed(f"unexpected {type(error).__name__}: {error}{hint}", code=1, debug="--debug" in ours)


def _run(arguments: Sequence[str], ours: Sequence[str]) -> int:
    """Parse and run. --help and --version end as argparse ends them, by an exit code. Raises ObserveError."""
    chosen = next((argument for argument in ours if not argument.startswith("-")), None)
    try:
        args = _parser(chosen).parse_args(arguments)
    except SystemExit as end:
        # argparse has printed what there is to say.
        code = end.code if isinstance(end.code, int) else 1
    else:
        code = int(args.run(args))
    # A full disk or a closed pipe must show here, where it can still be said.
    _streams.flush()
    return code


class _Parser(argparse.ArgumentParser):
    """One command's parser, or that of all: it says by itself what is wrong, in one line."""

    # In the one form of many that argparse itself uses.
    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, but nothing is left over for the parser above, which knows less. Raises UsageError."""
        found, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return found, left

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        command = self.prog.partition(" ")[2]
        raise UsageError(f"{f'{command}: ' * bool(command)}{message}; see {self.prog} --help")


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser of all commands; only the chosen one is imported and has its arguments."""
    debug = _Parser(add_help=False)
    debug.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    parser = _Parser(
        prog="observe",
        description=_DESCRIPTION,
        epilog=_EXIT_CODES,
        parents=[debug],
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"observe {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for name, help_line in commands.COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=help_line, description=_sentence(help_line), parents=[debug], allow_abbrev=False
        )
        if name == chosen:
            command = commands.load(name)
            command.configure(subparser)
            subparser.set_defaults(run=command.run)
    return parser


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _failed(*messages: str, code: int, debug: bool) -> int:
    """Say what happened, each message in one line, and give the exit code back."""
    # The code tells even those who have closed stderr.
    with contextlib.suppress(OSError):
        if debug:
            traceback.print_exc()
        for message in messages:
            # No line ends or escape sequences from names that somebody else chose.
            line = "".join(letter if letter.isprintable() else " " for letter in message)
            print(f"observe: {' '.join(line.split())}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        _close_stdout()
    return code


def _close_stdout() -> None:
    """Send what is still buffered nowhere: the interpreter would complain about it at its end."""
    # A stdout that is no file of the system (in a test) has no number, and nothing to close.
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())

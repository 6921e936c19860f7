# SPDX-License-Identifier: Apache-2.0
r"""Text from outside, made harmless for an output: what does not print is shown as an escape.

`\x1b` is a control character, or a byte of a name that is not UTF-8 (Python holds it as a lone surrogate); `\u202e` and
`\U000e0041` are letters that do not print. A text that has such an escape in it already stays as it is, so the escape
is for reading, not for going back.
"""

from __future__ import annotations

_SURROGATES = range(0xDC80, 0xDD00)
#: A spreadsheet calculates a text that begins like this; an apostrophe before it keeps it a text.
_FORMULA = tuple("=+-@＝＋－＠'")  # noqa: RUF001 - full-width on purpose: spreadsheets read them alike


def printable(text: str, *, ascii_only: bool = False) -> str:
    """The text in letters that print (in ASCII, if `ascii_only`): one line, always encodable as UTF-8."""
    if text.isprintable() and not (ascii_only and not text.isascii()):
        return text
    return "".join(
        letter if letter.isprintable() and not (ascii_only and not letter.isascii()) else _escape(ord(letter))
        for letter in text
    )


def spreadsheet_safe(text: str, *, ascii_only: bool = False) -> str:
    """The printable text, with an apostrophe before what a spreadsheet would calculate (or begins with one)."""
    # Spreadsheets skip spaces before they look for a formula.
    return printable(f"'{text}" if text.lstrip().startswith(_FORMULA) else text, ascii_only=ascii_only)


def _escape(code: int) -> str:
    if code in _SURROGATES:
        code -= _SURROGATES.start - 0x80
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

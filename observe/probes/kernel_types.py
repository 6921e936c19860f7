# SPDX-License-Identifier: Apache-2.0
"""Where the running kernel keeps the members of its structures, from its own type information (BTF).

Layout: include/uapi/linux/btf.h. A header, then types one after the other (each: name, kind and number of members,
size or type, then what its kind adds), then the strings.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

#: The running kernel's own.
VMLINUX = Path("/sys/kernel/btf/vmlinux")

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
_STRUCT, _UNION = 4, 5
#: BTF_KIND_* → bytes that follow the type itself: fixed, and for each of its members.
_MORE = {
    1: (4, 0),  # INT
    3: (12, 0),  # ARRAY
    _STRUCT: (0, 12),
    _UNION: (0, 12),
    6: (0, 8),  # ENUM
    13: (0, 8),  # FUNC_PROTO
    14: (4, 0),  # VAR
    15: (0, 12),  # DATASEC
    17: (4, 0),  # DECL_TAG
    19: (0, 12),  # ENUM64
}


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    type: int
    offset_bits: int


def offsets(btf: bytes, wanted: Mapping[str, Iterable[str]]) -> dict[tuple[str, str], int]:
    """(structure, member) → its offset in bytes, for those of `wanted` (structure → members) that this kernel has.

    Members of nameless structures and unions inside count as the outer one's. Raises ValueError if it is no BTF.
    """
    types = _Types(btf)
    found = {}
    for structure, start in types.structures(wanted):
        for member in wanted[structure]:
            offset_bits = types.find(start, member)
            if offset_bits is not None:
                found[structure, member] = offset_bits // 8
    return found


class _Types:
    """The types of a BTF blob."""

    def __init__(self, btf: bytes) -> None:
        if len(btf) < _HEADER.size or struct.unpack_from("<H", btf)[0] != _MAGIC:
            raise ValueError("no BTF")
        _, _, _, header_bytes, type_start, type_bytes, string_start, string_bytes = _HEADER.unpack_from(btf)
        self._types = btf[header_bytes + type_start :][:type_bytes]
        self._strings = btf[header_bytes + string_start :][:string_bytes]
        self._starts = list(_starts(self._types))

    def structures(self, names: Iterable[str]) -> Iterator[tuple[str, int]]:
        """(name, where it begins) of each structure of these names that is not only declared."""
        by_offset = {self._strings.find(b"\0" + name.encode() + b"\0") + 1: name for name in names}
        for start in self._starts:
            name, info, _ = _TYPE.unpack_from(self._types, start)
            if name in by_offset and _kind(info) == _STRUCT and info & 0xFFFF:
                yield by_offset[name], start

    def find(self, start: int, member: str) -> int | None:
        """Offset of a member in bits, whether its own or that of a nameless one; None if there is no such member."""
        for one in self._members(start):
            if one.name == member:
                return one.offset_bits
            if one.name:
                continue
            inner = self._starts[one.type - 1]
            if _kind(_TYPE.unpack_from(self._types, inner)[1]) in (_STRUCT, _UNION):
                inside = self.find(inner, member)
                if inside is not None:
                    return one.offset_bits + inside
        return None

    def _members(self, start: int) -> Iterator[_Member]:
        _, info, _ = _TYPE.unpack_from(self._types, start)
        for number in range(info & 0xFFFF):
            name, kind, at = _MEMBER.unpack_from(self._types, start + _TYPE.size + number * _MEMBER.size)
            text = self._strings[name : self._strings.index(b"\0", name)].decode(errors="replace")
            yield _Member(text, kind, at & 0xFFFFFF if info >> 31 else at)


def _starts(types: bytes) -> Iterator[int]:
    """Where each type begins, the first of them being number 1."""
    at = 0
    while at + _TYPE.size <= len(types):
        yield at
        info: int = _TYPE.unpack_from(types, at)[1]
        fixed, each = _MORE.get(_kind(info), (0, 0))
        at += _TYPE.size + fixed + each * (info & 0xFFFF)


def _kind(info: int) -> int:
    return info >> 24 & 31

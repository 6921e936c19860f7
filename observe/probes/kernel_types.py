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
    if len(btf) < _HEADER.size or struct.unpack_from("<H", btf)[0] != _MAGIC:
        raise ValueError("no BTF")
    _, _, _, header_bytes, type_start, type_bytes, string_start, string_bytes = _HEADER.unpack_from(btf)
    types = btf[header_bytes + type_start :][:type_bytes]
    strings = btf[header_bytes + string_start :][:string_bytes]
    starts = list(_starts(types))
    names = {strings.find(b"\0" + name.encode() + b"\0") + 1: name for name in wanted}

    def members(start: int) -> Iterator[_Member]:
        _, info, _ = _TYPE.unpack_from(types, start)
        for number in range(info & 0xFFFF):
            name, kind, at = _MEMBER.unpack_from(types, start + _TYPE.size + number * _MEMBER.size)
            text = strings[name : strings.index(b"\0", name)].decode(errors="replace")
            yield _Member(text, kind, at & 0xFFFFFF if info >> 31 else at)

    def find(start: int, member: str) -> int | None:
        for one in members(start):
            if one.name == member:
                return one.offset_bits
            if not one.name and _kind(types, starts[one.type - 1]) in (_STRUCT, _UNION):
                inside = find(starts[one.type - 1], member)
                if inside is not None:
                    return one.offset_bits + inside
        return None

    found = {}
    for start in starts:
        name, info, _ = _TYPE.unpack_from(types, start)
        if name in names and info >> 24 & 31 == _STRUCT and info & 0xFFFF:
            for member in wanted[names[name]]:
                offset_bits = find(start, member)
                if offset_bits is not None:
                    found[names[name], member] = offset_bits // 8
    return found


def _starts(types: bytes) -> Iterator[int]:
    """Where each type begins, the first of them being number 1."""
    at = 0
    while at + _TYPE.size <= len(types):
        yield at
        info = _TYPE.unpack_from(types, at)[1]
        fixed, each = _MORE.get(info >> 24 & 31, (0, 0))
        at += _TYPE.size + fixed + each * (info & 0xFFFF)


def _kind(types: bytes, start: int) -> int:
    return int(_TYPE.unpack_from(types, start)[1]) >> 24 & 31

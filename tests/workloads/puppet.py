# SPDX-License-Identifier: Apache-2.0
"""Makes exactly the system calls it is told to make: one JSON line a command on standard input, one line an answer.

    ["call", NUMBER, ARGUMENT …]      a system call. An argument is a number, a text (pointer to it), a list of texts
                                      (a null-terminated array, as for execve), {"bytes": HEX} (pointer to a copy),
                                      {"page": [TEXT …]} (pointer to texts on a page that was never touched) or
                                      {"pages": [TEXT …]} (pointer to a null-terminated array on such a page).
    ["clone", NUMBER, ARGUMENT …]     the same for a call that makes a child: it exits at once
    ["stub", NUMBER, GOROUTINE, N]    a call with the argument N by machine code: with a value in the register where Go
                                      keeps its g, and with a child that may share our memory (vfork)
    ["fork", [COMMAND …], WAIT]       these commands in a child
    ["thread", [COMMAND …], WAIT]     these commands in a thread
    ["join"]                          the answers of a thread that was not waited for
    ["listen", PATH or null]          descriptor of a listening unix socket, or [descriptor, port] of a TCP one
    ["name", TEXT]                    a name for this thread

A call is answered with what happened around it: result (negative errno), boot clock before and after, pid, tid.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import signal
import socket
import struct
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
PR_SET_NAME = 15

#: Opened before anybody looks.
NULL = os.open("/dev/null", os.O_RDWR)

kept: list[Any] = []
waiting: list[Future[Any]] = []


def run(command: list[Any]) -> Any:
    """Do one command; its answer."""
    return COMMANDS[command[0]](*command[1:])


def call(number: int, *arguments: Any) -> dict[str, int]:
    """A system call."""
    memory: list[Any] = []
    values = [ctypes.c_long(number), *(_argument(argument, memory) for argument in arguments)]
    before_ns = _now_ns()
    ret = LIBC.syscall(*values)
    return _answer(-ctypes.get_errno() if ret == -1 else ret, before_ns)


def clone(number: int, *arguments: Any) -> dict[str, int]:
    """A system call that makes a child, which exits."""
    pid = os.getpid()
    answer = call(number, *arguments)
    if os.getpid() != pid:
        os._exit(0)
    return _reaped(answer)


def by_machine_code(number: int, goroutine: int, argument: int) -> dict[str, int]:
    """A system call with `goroutine` in R14. Where it returns 0 the stub exits: that is the child of a vfork."""
    assert platform.machine() == "x86_64", "the stub is x86-64 code"
    code = (
        b"\x41\x56"  # push r14
        b"\x49\xbe"
        + struct.pack("<Q", goroutine)  # mov r14, goroutine
        + b"\xbf"
        + struct.pack("<i", argument)  # mov edi, argument
        + b"\xb8"
        + struct.pack("<I", number)  # mov eax, number
        + b"\x0f\x05"  # syscall
        + b"\x48\x85\xc0\x75\x09"  # test rax, rax; jnz +9
        + b"\x31\xff\xb8\x3c\x00\x00\x00\x0f\x05"  # xor edi, edi; mov eax, 60 (exit); syscall
        + b"\x41\x5e\xc3"  # pop r14; ret
    )
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    kept.append(page)
    stub = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    before_ns = _now_ns()
    return _reaped(_answer(stub(), before_ns))


def fork(commands: list[list[Any]], wait: bool) -> dict[str, Any]:
    """Commands in a child: its pid, and if it is waited for, its wait status and answers."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        for descriptor in (0, 1):
            os.dup2(NULL, descriptor)
        answers = json.dumps([run(command) for command in commands])
        os.write(writer, answers.encode())
        os._exit(0)
    os.close(writer)
    if not wait:
        os.close(reader)
        return {"pid": pid}
    with os.fdopen(reader) as stream:
        text = stream.read()
    status = os.waitpid(pid, 0)[1]
    return {"pid": pid, "status": status, "answers": json.loads(text) if text else []}


def thread(commands: list[list[Any]], wait: bool) -> Any:
    """Commands in a new thread: its answers, or null if it is not waited for."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(lambda: [run(command) for command in commands])
    pool.shutdown(wait=False)
    if wait:
        return future.result()
    waiting.append(future)
    return None


def join() -> Any:
    """Answers of the thread that was started first and not yet joined."""
    return waiting.pop(0).result()


def listen(path: str | None) -> Any:
    """A listening socket."""
    server = socket.create_server(("127.0.0.1", 0)) if path is None else socket.socket(socket.AF_UNIX)
    if path is not None:
        server.bind(path)
        server.listen()
    kept.append(server)
    return [server.fileno(), server.getsockname()[1]] if path is None else server.fileno()


def name(text: str) -> None:
    """Name this thread."""
    LIBC.prctl(PR_SET_NAME, text.encode(), 0, 0, 0)


def _argument(argument: Any, memory: list[Any]) -> Any:
    if isinstance(argument, int):
        return ctypes.c_long(argument)
    if isinstance(argument, str):
        return ctypes.c_char_p(os.fsencode(argument))
    if isinstance(argument, list):
        return (ctypes.c_char_p * (len(argument) + 1))(*map(os.fsencode, argument), None)
    if "bytes" in argument:
        memory.append(ctypes.create_string_buffer(bytes.fromhex(argument["bytes"]), len(argument["bytes"]) // 2))
        return memory[-1]
    if "page" in argument:
        return _untouched(b"".join(os.fsencode(text) + b"\0" for text in argument["page"]))
    texts = [ctypes.create_string_buffer(os.fsencode(text)) for text in argument["pages"]]
    memory.extend(texts)
    return _untouched(struct.pack(f"<{len(texts) + 1}Q", *map(ctypes.addressof, texts), 0))


def _untouched(data: bytes) -> ctypes.c_void_p:
    """Address of a page with this content that is in no page table: a file's, mapped and not read."""
    file = os.memfd_create("page")
    os.write(file, data.ljust(mmap.PAGESIZE, b"\0"))
    LIBC.mmap.restype = ctypes.c_void_p
    address = LIBC.mmap(None, ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ, mmap.MAP_PRIVATE, file, ctypes.c_long(0))
    os.close(file)
    return ctypes.c_void_p(address)


def _answer(ret: int, before_ns: int) -> dict[str, int]:
    return {
        "ret": ret,
        "before_ns": before_ns,
        "after_ns": _now_ns(),
        "pid": os.getpid(),
        "tid": threading.get_native_id(),
    }


def _reaped(answer: dict[str, int]) -> dict[str, int]:
    if answer["ret"] > 0:
        os.waitpid(answer["ret"], 0)
    return answer


def _now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


COMMANDS = {
    "call": call,
    "clone": clone,
    "stub": by_machine_code,
    "fork": fork,
    "thread": thread,
    "join": join,
    "listen": listen,
    "name": name,
}


def main() -> None:
    """Until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

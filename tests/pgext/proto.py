"""The extension's protocol code through cffi, over a byte stream that a test controls."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cffi
import msgspec

from meridian.instance import extension

DECLARATIONS = """
typedef struct { char *data; int len; int maxlen; int cursor; } StringInfoData;
typedef struct { const char *p; const char *end; } MpReader;
typedef struct {
    bool (*connect)(void *); void (*close)(void *);
    int64_t (*send)(void *, const char *, size_t); int64_t (*recv)(void *, char *, size_t);
    int (*wait)(void *, int, int64_t); int64_t (*now_ms)(void *);
    void *(*alloc)(void *, size_t); void *(*keep)(void *, size_t);
    void (*release)(void *, void *);
} MerProtoOps;
typedef struct MerProto MerProto;
typedef struct { int type; uint32_t len; char *body; MpReader rest; } MerAnswer;
MerProto *merlib_new(const MerProtoOps *ops, void *arg);
void merlib_free(MerProto *p);
int merlib_send(MerProto *p, int type, uint32_t id, const char *fields, size_t len, int n_fields,
                int64_t deadline_ms);
int merlib_skip(const char *data, size_t len, size_t *used);
int merlib_int(const char *data, size_t len, int64_t *value);
size_t merlib_put_int(int64_t v, char *out);
size_t merlib_put_bin(const char *data, size_t len, char *out, int as_str);
const char *merlib_why(const MerProto *p);
int merlib_pending(const MerProto *p);
bool merlib_connected(const MerProto *p);
uint32_t mer_proto_next_id(MerProto *p);
int mer_proto_connect(MerProto *p);
void mer_proto_close(MerProto *p);
bool mer_proto_alive(MerProto *p);
int mer_proto_wait(MerProto *p, uint32_t id, int64_t deadline_ms, MerAnswer *answer);
bool mer_proto_refused(MerProto *p, MerAnswer *answer);
void mer_proto_forget(MerProto *p, uint32_t id);
void mer_proto_forget_all(MerProto *p);
"""
OK, LOST, TIMEOUT, VIOLATION, TOO_MANY, TOO_LARGE = range(6)
READ, WRITE = 1, 2
FOREVER = 2**63 - 1
PENDING_MAX = 256

ffi = cffi.FFI()
ffi.cdef(DECLARATIONS)


def build(target: Path) -> Any:
    """Compile and load the library."""
    sources = extension.source_directory() / "src"
    files = [str(sources / f"{name}.c") for name in ("proto", "msgpack", "protolib")]
    path = target / "libmerproto.so"
    flags = ["-std=gnu11", "-O1", "-g", "-fPIC", "-Wall", "-DMER_PROTO_LIB", "-shared"]
    subprocess.run([*extension.compiler(), *flags, *files, "-o", str(path)], check=True)
    return ffi.dlopen(str(path))


def frame(message: Any) -> bytes:
    body = msgspec.msgpack.encode(message)
    return struct.pack("<I", len(body)) + body


class Stream:
    """One client: what it sent, what it may receive, and how much of each at a time.

    `on_wait` runs whenever the client waits; it is the gateway of the test.
    """

    def __init__(self, lib: Any) -> None:
        self.lib = lib
        self.inbound = bytearray()
        self.outbound = bytearray()
        self.gone = False
        self.recv_max = 1 << 30
        self.send_max = 1 << 30
        self.now_ms = 0
        self.on_wait: Callable[[], None] = lambda: None
        self.owned: dict[int, Any] = {}  # the caller's: a server frees it with its memory context
        self.kept: dict[int, Any] = {}  # the client's own: it must release it
        self.connects = 0
        self._callbacks = self._make_callbacks()
        self.ops = ffi.new("MerProtoOps *", self._callbacks)
        self.proto = lib.merlib_new(self.ops, ffi.NULL)

    def _make_callbacks(self) -> dict[str, Any]:
        def make(signature: str, function: Callable[..., Any]) -> Any:
            return ffi.callback(signature, function)

        return {
            "connect": make("bool(void *)", self._connect),
            "close": make("void(void *)", lambda _: None),
            "send": make("int64_t(void *, const char *, size_t)", self._send),
            "recv": make("int64_t(void *, char *, size_t)", self._recv),
            "wait": make("int(void *, int, int64_t)", self._wait),
            "now_ms": make("int64_t(void *)", lambda _: self.now_ms),
            "alloc": make("void *(void *, size_t)", self._alloc),
            "keep": make("void *(void *, size_t)", self._keep),
            "release": make("void(void *, void *)", self._release),
        }

    def _connect(self, _: Any) -> bool:
        self.connects += 1
        self.inbound.clear()
        self.outbound.clear()
        self.gone = False
        return True

    def _send(self, _: Any, data: Any, size: int) -> int:
        if self.gone:
            return -1
        taken = min(size, self.send_max)
        self.outbound += ffi.buffer(data, taken)[:]
        return taken

    def _recv(self, _: Any, data: Any, size: int) -> int:
        taken = min(size, self.recv_max, len(self.inbound))
        if taken == 0:
            return -1 if self.gone else 0
        ffi.buffer(data, taken)[:] = bytes(self.inbound[:taken])
        del self.inbound[:taken]
        return taken

    def _wait(self, _: Any, events: int, timeout_ms: int) -> int:
        self.on_wait()
        ready = READ if self.inbound or self.gone else 0
        if self.send_max > 0:
            ready |= WRITE
        ready &= events
        if ready == 0:
            assert timeout_ms >= 0, "the client would wait for ever"
            self.now_ms += timeout_ms
        return ready

    def _alloc(self, _: Any, size: int) -> Any:
        return self._own(self.owned, size)

    def _keep(self, _: Any, size: int) -> Any:
        return self._own(self.kept, size)

    def _own(self, owner: dict[int, Any], size: int) -> Any:
        chunk = ffi.new("char[]", max(size, 1))
        owner[int(ffi.cast("intptr_t", chunk))] = chunk
        return chunk

    def _release(self, _: Any, chunk: Any) -> None:
        address = int(ffi.cast("intptr_t", chunk))
        del (self.kept if address in self.kept else self.owned)[address]

    def connect(self) -> int:
        return int(self.lib.mer_proto_connect(self.proto))

    def send(self, kind: int, *fields: Any, deadline_ms: int = FOREVER) -> tuple[int, int]:
        """Status and request id."""
        request_id = self.lib.mer_proto_next_id(self.proto)
        body = b"".join(msgspec.msgpack.encode(field) for field in fields)
        status = self.lib.merlib_send(
            self.proto, kind, request_id, body, len(body), 2 + len(fields), deadline_ms
        )
        return int(status), int(request_id)

    def wait(self, request_id: int, deadline_ms: int = FOREVER) -> tuple[int, Any]:
        """Status and the decoded answer."""
        answer = ffi.new("MerAnswer *")
        status = self.lib.mer_proto_wait(self.proto, request_id, deadline_ms, answer)
        return int(status), self.take(answer) if status == OK else None

    def take(self, answer: Any) -> Any:
        body = ffi.buffer(answer.body, answer.len)[:]
        rest = ffi.buffer(answer.rest.p, answer.rest.end - answer.rest.p)[:]
        assert body.endswith(rest)
        self._release(None, answer.body)
        message = msgspec.msgpack.decode(body)
        assert message[0] == answer.type
        return message

    def refused(self) -> Any:
        answer = ffi.new("MerAnswer *")
        return self.take(answer) if self.lib.mer_proto_refused(self.proto, answer) else None

    def requests(self) -> list[Any]:
        """The whole frames sent so far, removed from the stream."""
        found = []
        while len(self.outbound) >= 4:
            size = int.from_bytes(self.outbound[:4], "little")
            if len(self.outbound) < 4 + size:
                break
            found.append(msgspec.msgpack.decode(self.outbound[4 : 4 + size]))
            del self.outbound[: 4 + size]
        return found

    @property
    def pending(self) -> int:
        return int(self.lib.merlib_pending(self.proto))

    @property
    def connected(self) -> bool:
        return bool(self.lib.merlib_connected(self.proto))

    def forget(self, request_id: int) -> None:
        self.lib.mer_proto_forget(self.proto, request_id)

    def forget_all(self) -> None:
        self.lib.mer_proto_forget_all(self.proto)

    def alive(self) -> bool:
        return bool(self.lib.mer_proto_alive(self.proto))

    def free(self) -> None:
        self.lib.merlib_free(self.proto)

"""The client side of the gateway protocol: framing, order, loss, bounds; and its msgpack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pgext import proto
from tests.pgext.proto import LOST, OK, TIMEOUT, TOO_LARGE, TOO_MANY, VIOLATION, Stream, ffi, frame

GET, COMMIT, PART, CANCEL = 3, 5, 6, 11
RESULT, ERROR = 64, 127
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return proto.build(Path(tmp_path_factory.mktemp("proto")))


@pytest.fixture
def stream(lib: Any) -> Iterator[Stream]:
    made = Stream(lib)
    assert made.connect() == OK
    yield made
    made.free()
    assert not made.kept, "a buffer was leaked"


def result(request_id: int, payload: bytes) -> bytes:
    return frame((RESULT, request_id, 1, False, [[payload]]))


def test_requests_are_what_the_gateway_decodes(stream: Stream) -> None:
    from meridian.wire import frames

    status, request_id = stream.send(GET, 0, 7, 1000, [1, 2], [b"k"])
    assert status == OK
    body = bytes(stream.outbound[4:])
    assert int.from_bytes(stream.outbound[:4], "little") == len(body)
    assert frames.decode_request(body) == (GET, request_id, 0, 7, 1000, (1, 2), [b"k"])
    stream.forget_all()


@pytest.mark.parametrize("seed", range(30))
def test_answers_reach_their_requests_in_any_order(stream: Stream, seed: int) -> None:
    """Sizes around the receive buffer, any fragments, doubled and unknown answers among them."""
    rng = Random(seed)
    stream.recv_max = rng.choice([1, 2, 7, 1000, 65536, 1 << 30])
    sizes = [0, 1, 100, 65000, 65536, 70000, 300_000]
    if stream.recv_max < 1000:
        sizes = sizes[:3]
    for _ in range(5):
        payload = {}
        for _ in range(rng.randint(1, 12)):
            _, request_id = stream.send(GET, rng.randint(0, 9))
            payload[request_id] = rng.randbytes(rng.choice(sizes))
        answers = [result(i, data) for i, data in payload.items()]
        answers += [result(2**31 - 1 - rng.randint(0, 9), b"late" * rng.choice([1, 30_000]))]
        rng.shuffle(answers)
        queue = iter(answers)

        def pump() -> None:
            stream.inbound += next(queue, b"")

        stream.on_wait = pump
        for request_id in rng.sample(list(payload), len(payload)):
            status, message = stream.wait(request_id)
            rows = [[payload[request_id]]]
            assert status == OK and message == [RESULT, request_id, 1, False, rows]
        for rest in queue:
            stream.inbound += rest
        assert stream.pending == 0 and stream.alive()


@pytest.mark.parametrize("size", [10, 65536, 200_000])
@pytest.mark.parametrize("received", [0, 3, 5, 30, 70_000])
def test_a_wait_given_up_leaves_the_stream_in_step(
    stream: Stream, size: int, received: int
) -> None:
    """What a cancelled statement leaves behind: the late answer, perhaps in the middle."""
    _, first = stream.send(GET, 1)
    late = result(first, b"x" * size)
    stream.inbound += late[:received]
    status, _ = stream.wait(first, deadline_ms=stream.now_ms + 50)
    if received >= len(late):
        assert status == OK
    else:
        assert status == TIMEOUT
    stream.forget(first)
    assert (CANCEL in [r[0] for r in stream.requests()]) == (status == TIMEOUT)
    _, second = stream.send(GET, 2)
    stream.inbound += late[received:] + result(second, b"mine")
    assert stream.wait(second) == (OK, [RESULT, second, 1, False, [[b"mine"]]])


def test_a_kept_answer_is_forgotten(stream: Stream) -> None:
    _, first = stream.send(GET, 1)
    _, second = stream.send(GET, 2)
    stream.inbound += result(second, b"2" * 100_000) + result(first, b"1")
    assert stream.wait(first)[0] == OK
    assert stream.kept
    stream.forget_all()
    assert not stream.kept and stream.pending == 0
    assert not [r for r in stream.requests() if r[0] == CANCEL]


def test_too_many_requests(stream: Stream) -> None:
    for _ in range(proto.PENDING_MAX):
        assert stream.send(GET, 1)[0] == OK
    assert stream.send(GET, 1)[0] == TOO_MANY
    assert stream.connected
    stream.forget_all()
    assert [r[0] for r in stream.requests()].count(CANCEL) == proto.PENDING_MAX


def test_quiet_requests_do_not_fill_the_list(stream: Stream) -> None:
    for _ in range(3 * proto.PENDING_MAX):
        assert stream.send(PART, b"t" * 16, 0, b"chunk", 1)[0] == OK
    assert stream.send(COMMIT, 0)[0] == OK
    stream.forget_all()
    assert [r[0] for r in stream.requests()].count(CANCEL) == 1


def test_a_refused_part_is_found(stream: Stream) -> None:
    _, part = stream.send(PART, b"t" * 16, 0, b"chunk", 1)
    assert stream.alive() and stream.refused() is None
    stream.inbound += frame((ERROR, part, 1, "54000", "too much", "", ""))
    assert stream.alive()
    assert stream.refused() == [ERROR, part, 1, "54000", "too much", "", ""]
    assert stream.refused() is None and stream.pending == 0


def test_a_request_too_large_is_not_sent(stream: Stream) -> None:
    assert stream.send(PART, b"x" * (16 * MIB))[0] == TOO_LARGE
    assert not stream.outbound and stream.connected


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\xff",
        b"\x05\x00\x00\x00hello",
        b"\x03\x00\x00\x00\x93\x40\xc0",
        (16 * MIB + 1).to_bytes(4, "little"),
    ],
)
def test_garbage_closes_the_stream(stream: Stream, garbage: bytes) -> None:
    _, request_id = stream.send(GET, 1)
    stream.inbound += garbage
    assert stream.wait(request_id)[0] == VIOLATION
    assert not stream.connected and stream.pending == 0
    assert stream.send(GET, 1)[0] == LOST
    assert stream.connect() == OK
    _, request_id = stream.send(GET, 1)
    stream.inbound += result(request_id, b"again")
    assert stream.wait(request_id)[0] == OK


@pytest.mark.parametrize("received", [0, 2, 10, 70_000])
def test_a_lost_stream(stream: Stream, received: int) -> None:
    _, request_id = stream.send(GET, 1)
    stream.inbound += result(request_id, b"x" * 100_000)[:received]
    stream.gone = True
    assert stream.wait(request_id)[0] == LOST
    assert not stream.connected


def test_alive_notices_the_end_and_drops_late_answers(stream: Stream) -> None:
    stream.inbound += result(77, b"x" * 200_000)
    assert stream.alive() and not stream.inbound
    stream.gone = True
    assert not stream.alive() and not stream.connected


def test_answers_are_read_while_the_gateway_takes_nothing(stream: Stream) -> None:
    """Two full socket buffers must not wait for each other."""
    _, first = stream.send(GET, 1)
    stream.inbound += result(first, b"x" * 3 * MIB)
    stream.send_max = 0

    def pump() -> None:
        if not stream.inbound:
            stream.send_max = 100_000

    stream.on_wait = pump
    assert stream.send(PART, b"y" * MIB)[0] == OK
    assert stream.wait(first)[1][4] == [[b"x" * 3 * MIB]]
    assert [r[0] for r in stream.requests()] == [GET, PART]


def test_a_gateway_that_takes_nothing(stream: Stream) -> None:
    stream.send_max = 0
    assert stream.send(GET, 1, deadline_ms=stream.now_ms + 100)[0] == TIMEOUT
    assert not stream.connected


def test_kept_answers_are_bounded(stream: Stream) -> None:
    ids = [stream.send(GET, 1)[1] for _ in range(8)]
    for request_id in ids[1:]:
        stream.inbound += result(request_id, b"x" * (15 * MIB))
    assert stream.wait(ids[0])[0] == VIOLATION
    assert not stream.kept


# ---------- msgpack ----------


@given(st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300))
@settings(max_examples=300)
def test_integers(lib: Any, value: int) -> None:
    out = ffi.new("char[16]")
    encoded = ffi.buffer(out, lib.merlib_put_int(value, out))[:]
    assert encoded == msgspec.msgpack.encode(value)
    back = ffi.new("int64_t *")
    assert lib.merlib_int(encoded, len(encoded), back) and back[0] == value


@pytest.mark.parametrize("size", [0, 1, 31, 32, 255, 256, 65535, 65536])
def test_bytes(lib: Any, size: int) -> None:
    data = b"x" * size
    out = ffi.new("char[]", size + 8)
    for as_str, value in ((0, data), (1, data.decode())):
        encoded = ffi.buffer(out, lib.merlib_put_bin(data, size, out, as_str))[:]
        assert encoded == msgspec.msgpack.encode(value)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.binary(max_size=300)
    | st.text(max_size=40)
    | st.floats(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=30,
)


@given(values, st.data())
@settings(max_examples=300)
def test_skip_finds_the_end_and_nothing_beyond(lib: Any, value: Any, data: Any) -> None:
    encoded = msgspec.msgpack.encode(value)
    used = ffi.new("size_t *")
    assert lib.merlib_skip(encoded + b"\xc1", len(encoded) + 1, used) and used[0] == len(encoded)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    assert not lib.merlib_skip(encoded, cut, used)


@given(st.binary(max_size=60))
@settings(max_examples=500)
def test_noise_is_refused_or_skipped_within_bounds(lib: Any, noise: bytes) -> None:
    used = ffi.new("size_t *")
    if lib.merlib_skip(noise, len(noise), used):
        assert 0 < used[0] <= len(noise)
    back = ffi.new("int64_t *")
    lib.merlib_int(noise, len(noise), back)


def test_nesting_is_bounded(lib: Any) -> None:
    used = ffi.new("size_t *")
    deep = b"\x91" * 100_000 + b"\xc0"
    assert not lib.merlib_skip(deep, len(deep), used)

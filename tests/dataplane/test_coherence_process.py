"""Catalog coherence over the socket of a data plane that is a process, through kill -9."""

from __future__ import annotations

import secrets
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meridian.gateway.client import Client, GatewayError
from meridian.wire import frames
from meridian.wire.ops import KIND_INDEX, SID_CATALOG, Create, Lock, Notify, Op, Put, encode_chunk
from meridian.wire.reach import ADDITIVE, RELATIONS, Reach, encode_reach
from tests.dataplane.plane import Plane, hashes, key, new_table, put


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    with Plane(tmp_path) as running:
        yield running


def ddl(client: Client, version: int, reach: Reach, *ops: Op, tau: int = 0) -> int:
    k = struct.pack(">Q", version)
    row = (b"delta", b"text", encode_reach(reach))
    log = Put(SID_CATALOG, 0, (1, 2, 3), [k], hashes(SID_CATALOG, [k]), b"", [row])
    catver = version - 1
    return client.commit([*ops, log], tau=tau, catver=catver, flags=frames.COMMIT_HAS_SCHEMA)


def poll(client: Client, number: int, applied: int, wait_ms: int = 10_000) -> list[list[object]]:
    return list(client.call(frames.CATALOG, number, applied, wait_ms)[0])


def test_two_instances_follow_a_third_s_schema_changes(plane: Plane) -> None:
    """Each change is there at both when its statement ends; the feed survives kill -9."""
    client = plane.client()
    sid = new_table(client)
    applied = {1: 0, 2: 0}
    seen: dict[int, list[bytes]] = {1: [], 2: []}
    stop = threading.Event()

    def follow(number: int) -> None:
        lost = 0
        while not stop.is_set():
            try:
                with plane.client() as feed:
                    while not stop.is_set():
                        for row in poll(feed, number, applied[number], 200):
                            if row[0] == -1:
                                lost += 1
                            elif row[0] == 0:
                                seen[number].append(row[2])  # type: ignore[arg-type]
                            else:
                                time.sleep(0.02)
                                applied[number] = row[0]  # type: ignore[assignment]
            except (OSError, GatewayError):
                time.sleep(0.05)
        assert lost >= 2, "the first answer, and the first of the second process"

    threads = [threading.Thread(target=follow, args=(number,)) for number in applied]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while len(client.admin("status")["instances"]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for version in range(1, 6):
        ddl(client, version, Reach(ADDITIVE))
        assert applied == {1: version, 2: version}
        client.commit([Notify(b"c", b"%d" % version)])
    plane.kill()
    plane.start()
    client = plane.client()
    status = client.admin("status")
    assert status["catalog_version"] == 5
    while len([row for row in client.admin("status")["instances"] if row["live"]]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ddl(client, 6, Reach(RELATIONS, (sid,)))
    assert applied == {1: 6, 2: 6}
    stop.set()
    for thread in threads:
        thread.join()
    assert client.admin("status")["counters"]["catalog_waits_expired"] == 0
    for notes in seen.values():
        # The last may have been in the answer that the kill cut off: then [-1] said so.
        assert notes in ([b"1", b"2", b"3", b"4", b"5"], [b"1", b"2", b"3", b"4"])


def test_reads_are_compared_after_kill(plane: Plane) -> None:
    client = plane.client()
    sid = new_table(client)
    other = new_table(client)
    client.commit([put(sid, {1: 1}), put(other, {1: 1})], row_count=2)
    before = client.begin()
    ddl(client, 1, Reach(RELATIONS, (sid,)))
    for _ in range(2):
        assert client.get(sid, [key(1)], [1], tau=before, catver=0).rows
        assert client.get(other, [key(1)], [1], tau=before, catver=1).rows
        with pytest.raises(GatewayError) as refusal:
            client.get(sid, [key(1)], [1], tau=before, catver=1)
        assert (refusal.value.sqlstate, refusal.value.detail) == ("40001", f"catalog 0 {before}")
        assert client.admin("status")["catalog_version"] == 1
        plane.kill()
        plane.start()
        client = plane.client()


def test_ddl_against_an_earlier_writer_over_the_socket(plane: Plane) -> None:
    """Both orders; the second one is refused, and passes when it is tried again."""
    client, writer = plane.client(), plane.client()
    sid = new_table(client)
    index = Create(client.lease(frames.LEASE_SID, 1)[0], KIND_INDEX, [(0, 2)], sid)
    start = client.begin()
    writer.commit([put(sid, {1: 1})], tau=writer.begin(), row_count=1)
    with pytest.raises(GatewayError) as refusal:
        ddl(client, 1, Reach(RELATIONS, (sid,)), index, tau=start)
    assert refusal.value.sqlstate == "40001" and refusal.value.detail == f"catalog 0 {start}"
    start = writer.begin()
    ddl(client, 1, Reach(RELATIONS, (sid,)), index, tau=client.begin())
    for catver in (0, 1):
        with pytest.raises(GatewayError) as refusal:
            writer.commit([put(sid, {2: 2})], tau=start, catver=catver, row_count=1)
        assert refusal.value.sqlstate == "40001"
    with pytest.raises(GatewayError) as refusal:
        writer.begin(catver=5)
    assert refusal.value.detail.startswith("catalog 1 ")
    writer.commit([put(sid, {3: 3})], tau=writer.begin(catver=1), catver=1, row_count=1)


def test_lock_table_over_the_socket_and_through_kill(plane: Plane) -> None:
    client = plane.client()
    sid = new_table(client)
    start = client.begin()
    client.commit([Lock(sid, [b""], hashes(sid, [b""]), b"")], tau=client.begin())
    plane.kill()
    plane.start()
    client = plane.client()
    with pytest.raises(GatewayError) as refusal:
        client.commit([put(sid, {1: 1})], tau=start, row_count=1)
    assert refusal.value.sqlstate == "40001"
    client.commit([put(sid, {1: 1})], tau=client.begin(), row_count=1)


def test_a_gate_of_a_killed_backend_opens(plane: Plane) -> None:
    ddl_client, writer = plane.client(), plane.client()
    sid = new_table(writer)
    ddl_client.call(frames.GATE, secrets.token_bytes(16), [sid], 60_000)
    chunk = encode_chunk([put(sid, {1: 1})])
    held = writer.send(frames.COMMIT, 0, 0, secrets.token_bytes(16), 0, 1, chunk)
    deadline = time.monotonic() + 10
    while plane.client().admin("status")["gates"]["held"] != 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ddl_client.close()
    assert writer.wait(held)[0] == frames.COMMITTED

"""The data plane as a process: life, kill -9, torn journals, full disks, lost answers."""

from __future__ import annotations

import os
import random
import resource
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from meridian.gateway.client import Client, GatewayError
from meridian.wire import frames
from meridian.wire.ops import FRESH, encode_chunk
from tests.dataplane.plane import Plane, contents, delete, new_table, put


@pytest.fixture
def plane(tmp_path: Path):
    with Plane(tmp_path) as running:
        yield running


def restart(plane: Plane) -> Client:
    plane.kill()
    plane.start()
    return plane.client()


# Life


def test_stops_within_two_seconds(plane: Plane) -> None:
    client = plane.client()
    new_table(client)
    started = time.monotonic()
    assert plane.stop() == 0
    assert time.monotonic() - started < 2
    assert not plane.socket.exists()


def test_second_process_is_refused(plane: Plane, tmp_path: Path) -> None:
    other = Plane(tmp_path)
    assert plane.process is not None
    assert f"in use by process {plane.process.pid}" in other.refuses()
    assert plane.client().begin() > 0


def test_unknown_format_is_refused(tmp_path: Path) -> None:
    import apsw

    with Plane(tmp_path) as plane:
        assert plane.stop() == 0
        db = apsw.Connection(str(plane.directory / "metadata.db"))
        db.execute("UPDATE entry SET value = ? WHERE key = 'format'", (b"99",))
        db.close()
        assert "format version 99 is not known" in plane.refuses()


def test_ends_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.dataplane.plane import Plane\n"
        f"plane = Plane(Path({str(tmp_path)!r})).start(); print(plane.process.pid, flush=True)\n"
        "import os; os._exit(0)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pid = int(output.stdout)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "it outlives its parent"
        time.sleep(0.05)


def test_socket_is_private(plane: Plane) -> None:
    assert plane.socket.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_socket_owner(tmp_path: Path) -> None:
    with Plane(tmp_path, "--socket-owner", "65534:65534", "--socket-mode", "660") as plane:
        found = plane.socket.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65534, 65534, 0o660)


# kill -9


def test_everything_survives_kill(plane: Plane) -> None:
    client = plane.client()
    sid = new_table(client)
    client.commit([put(sid, {n: n for n in range(100)})], row_count=100)
    client.commit([delete(sid, [5]), put(sid, {6: 600})], tau=client.begin(), row_count=2)
    expected = contents(client, sid)
    client = restart(plane)
    assert contents(client, sid) == expected and expected[6] == 600 and 5 not in expected
    assert client.admin("verify")["damage"] == []


@pytest.mark.parametrize("what", ["storage", "nothing", "checkpoint"])
def test_storage_may_be_deleted(plane: Plane, what: str) -> None:
    client = plane.client()
    sid = new_table(client)
    for number in range(20):
        client.commit([put(sid, {number: number})], row_count=1)
        if number == 10:
            client.admin("checkpoint")
    expected = contents(client, sid)
    plane.kill()
    if what != "nothing":
        shutil.rmtree(plane.directory / "storage")
    if what == "checkpoint":
        shutil.rmtree(plane.directory / "checkpoint")
    plane.start()
    assert contents(plane.client(), sid) == expected


class Worker(threading.Thread):
    """Commits transfers between its own two rows, whose sum stays 0, until the plane is gone."""

    def __init__(self, plane: Plane, sid: int, number: int) -> None:
        super().__init__(daemon=True)
        self.plane, self.sid = plane, sid
        self.rows = (2 * number, 2 * number + 1)
        self.acknowledged = 0
        self.in_doubt: tuple[bytes, int, int] | None = None

    def run(self) -> None:
        try:
            client = self.plane.client()
            amount = self.acknowledged
            while True:
                amount += 1
                tau = client.begin()
                txid = secrets.token_bytes(16)
                self.in_doubt = (txid, tau, amount)
                rows = {self.rows[0]: amount, self.rows[1]: -amount}
                client.commit([put(self.sid, rows)], tau=tau, txid=txid, row_count=2)
                self.in_doubt = None
                self.acknowledged = amount
        except OSError:
            return

    def check(self, client: Client) -> None:
        found = contents(client, self.sid)
        low, high = found.get(self.rows[0], 0), found.get(self.rows[1], 0)
        assert low == -high, "a transaction is there by halves"
        assert low >= self.acknowledged, "an acknowledged commit is gone"
        if self.in_doubt is not None:
            txid, tau, amount = self.in_doubt
            outcome, _ = client.status(txid, tau)
            assert outcome != frames.OUTCOME_UNKNOWN
            assert (outcome == frames.OUTCOME_COMMITTED) == (low == amount)
        self.acknowledged = low


class LargeWorker(threading.Thread):
    """Rewrites 1,500 rows in three chunks, again and again, all with the same new value."""

    ROWS = range(10**6, 10**6 + 1500)

    def __init__(self, plane: Plane, sid: int, number: int) -> None:
        super().__init__(daemon=True)
        self.plane, self.sid = plane, sid
        self.acknowledged = number
        self.in_doubt: tuple[bytes, int, int] | None = None

    def run(self) -> None:
        try:
            client = self.plane.client()
            amount = self.acknowledged
            while True:
                amount += 1
                txid, tau = secrets.token_bytes(16), client.begin()
                self.in_doubt = (txid, tau, amount)
                for seq in range(3):
                    rows = dict.fromkeys(self.ROWS[seq * 500 : seq * 500 + 500], amount)
                    chunk = encode_chunk([put(self.sid, rows, pad=20)])
                    if seq < 2:
                        client.send(frames.PART, txid, seq, chunk, tau)
                flags = frames.COMMIT_HAS_PARTS
                client.call(frames.COMMIT, 0, tau, txid, flags, len(self.ROWS), chunk)
                self.in_doubt = None
                self.acknowledged = amount
        except OSError:
            return

    def check(self, client: Client) -> None:
        found = contents(client, self.sid)
        values = {found.get(number, 0) for number in self.ROWS}
        assert len(values) == 1, "a large transaction is there by parts"
        value = values.pop()
        assert value >= self.acknowledged, "an acknowledged large commit is gone"
        if self.in_doubt is not None:
            txid, tau, amount = self.in_doubt
            outcome, _ = client.status(txid, tau)
            assert (outcome == frames.OUTCOME_COMMITTED) == (value == amount)
        self.acknowledged = value


def kill_loop(plane: Plane, rounds: int, seed: int) -> None:
    rng = random.Random(seed)
    sid = new_table(plane.client())
    workers = [Worker(plane, sid, number) for number in range(4)]
    large: LargeWorker | None = None
    for number in range(rounds):
        fresh = []
        for worker in workers:
            again = Worker(plane, sid, worker.rows[0] // 2)
            again.acknowledged = worker.acknowledged
            fresh.append(again)
            again.start()
        workers = fresh
        large = LargeWorker(plane, sid, large.acknowledged if large else 0)
        large.start()
        time.sleep(rng.uniform(0.05, 0.5))
        plane.kill()
        for worker in (*workers, large):
            worker.join(10)
        if rng.random() < 0.3:
            shutil.rmtree(plane.directory / "storage")
        if rng.random() < 0.5:
            # Killed again while it recovers.
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "meridian.dataplane",
                    "--dir",
                    str(plane.directory),
                    "--socket",
                    str(plane.socket),
                ],
                stdout=subprocess.DEVNULL,
            )
            time.sleep(rng.uniform(0, 0.4))
            process.kill()
            process.wait()
        plane.start()
        client = plane.client()
        for worker in (*workers, large):
            worker.check(client)
        report = client.admin("verify")
        assert report["damage"] == [], number
        client.close()
    assert large is not None and large.acknowledged
    assert all(worker.acknowledged for worker in workers)


def test_kill_loop(plane: Plane) -> None:
    kill_loop(plane, rounds=6, seed=1)


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_kill_loop_nightly(plane: Plane, seed: int) -> None:
    kill_loop(plane, rounds=20, seed=100 + seed)


def send_parts(client: Client, sid: int, chunks: int, per_chunk: int) -> tuple[bytes, int, bytes]:
    """All chunks of a large commit but the last: (txid, tau, last chunk)."""
    txid, tau = secrets.token_bytes(16), client.begin()
    chunk = b""
    for seq in range(chunks):
        if chunk:
            client.send(frames.PART, txid, seq - 1, chunk, tau)
        first = seq * per_chunk
        rows = {first + n: n for n in range(per_chunk)}
        chunk = encode_chunk([put(sid, rows, pad=50, flags=FRESH)])
    return txid, tau, chunk


def test_large_commit(plane: Plane) -> None:
    client = plane.client()
    sid = new_table(client)
    txid, tau, last = send_parts(client, sid, 8, 3000)
    client.call(frames.COMMIT, 0, tau, txid, frames.COMMIT_HAS_PARTS, 24_000, last)
    assert len(contents(client, sid)) == 24_000
    assert client.status(txid, tau)[0] == frames.OUTCOME_COMMITTED
    client = restart(plane)
    assert len(contents(client, sid)) == 24_000
    assert client.status(txid, tau)[0] == frames.OUTCOME_COMMITTED
    assert client.admin("verify")["damage"] == []
    shutil.rmtree(plane.directory / "storage")
    client = restart(plane)
    assert len(contents(client, sid)) == 24_000


def test_killed_in_a_large_commit(plane: Plane) -> None:
    client = plane.client()
    sid = new_table(client)
    for _ in range(3):
        txid, tau, _ = send_parts(client, sid, 6, 3000)
        client.commit([put(sid, {10**6: 1})], row_count=1)
        client = restart(plane)
        assert contents(client, sid) == {10**6: 1}
        assert client.status(txid, tau)[0] == frames.OUTCOME_ABORTED
        assert client.admin("verify")["damage"] == []


def test_large_commit_without_its_chunks_commits_nothing(plane: Plane) -> None:
    client = plane.client()
    sid = new_table(client)
    txid, tau, last = send_parts(client, sid, 3, 1000)
    client = restart(plane)
    with pytest.raises(GatewayError) as refusal:
        client.call(frames.COMMIT, 0, tau, txid, frames.COMMIT_HAS_PARTS, 3000, last)
    assert refusal.value.sqlstate == "08P01"
    assert contents(client, sid) == {}


def test_client_gone_in_a_large_commit(plane: Plane) -> None:
    client = plane.client()
    sid = new_table(client)
    for _ in range(30):
        other = plane.client()
        send_parts(other, sid, 3, 500)
        other.close()
    txid, tau, last = send_parts(client, sid, 3, 500)
    client.call(frames.COMMIT, 0, tau, txid, frames.COMMIT_HAS_PARTS, 1500, last)
    assert len(contents(client, sid)) == 1500


def test_conflict_of_a_large_commit(plane: Plane) -> None:
    client, other = plane.client(), plane.client()
    sid = new_table(client)
    txid, tau, last = send_parts(client, sid, 4, 2000)
    other.commit([put(sid, {7: 7})], row_count=1)
    with pytest.raises(GatewayError) as refusal:
        client.call(frames.COMMIT, 0, tau, txid, frames.COMMIT_HAS_PARTS, 8000, last)
    assert refusal.value.sqlstate == "40001"
    assert contents(client, sid) == {7: 7}


# Sequences and leases


def test_no_number_twice_after_kills(plane: Plane) -> None:
    seen: set[int] = set()
    leased: set[int] = set()
    for _ in range(4):
        client = plane.client()
        for cache in (1, 1, 1, 5, 40, 1):
            first, last = client.next_values(77, cache=cache)
            fresh = set(range(first, last + 1))
            assert not fresh & seen
            seen |= fresh
        first, count = client.lease(frames.LEASE_ROW, 10)
        assert not leased & set(range(first, first + count))
        leased |= set(range(first, first + count))
        restart(plane)


def test_sequence_ends_and_cycles(plane: Plane) -> None:
    client = plane.client()
    given = [client.next_values(5, maximum=3)[0] for _ in range(3)]
    assert given == [1, 2, 3]
    with pytest.raises(GatewayError) as refusal:
        client.next_values(5, maximum=3)
    assert refusal.value.sqlstate == "2200H"
    cycled = [client.next_values(6, maximum=3, cycle=True)[0] for _ in range(7)]
    assert cycled == [1, 2, 3, 1, 2, 3, 1]
    down = [
        client.next_values(7, increment=-2, minimum=-4, maximum=-1, start=-1)[0] for _ in range(2)
    ]
    assert down == [-1, -3]


def test_setval_and_peek(plane: Plane) -> None:
    client = plane.client()
    assert client.call(frames.PEEKSEQ, 9) == [[]]
    assert client.next_values(9) == (1, 1)
    assert client.call(frames.PEEKSEQ, 9) == [[1, True]]
    client.call(frames.SETVAL, 9, 100, True)
    assert client.call(frames.PEEKSEQ, 9) == [[100, True]]
    assert client.next_values(9) == (101, 101)
    client.call(frames.SETVAL, 9, 50, False)
    assert client.next_values(9) == (50, 50)
    client = restart(plane)
    assert client.next_values(9)[0] > 50


def test_sequence_options_change(plane: Plane) -> None:
    client = plane.client()
    assert client.next_values(3) == (1, 1)
    assert client.next_values(3, increment=10) == (11, 11)
    assert client.next_values(3, increment=10) == (21, 21)


# Damage


def test_torn_tail_is_cut_with_a_message(plane: Plane) -> None:
    client = plane.client()
    sid = new_table(client)
    client.commit([put(sid, {1: 1})], row_count=1)
    plane.kill()
    path = plane.segments()[-1]
    path.write_bytes(path.read_bytes() + b"\x01half a record")
    plane.start()
    assert any("torn tail cut at offset" in line for line in plane.lines)
    assert contents(plane.client(), sid) == {1: 1}


def test_lost_tail_rebuilds_storage(plane: Plane) -> None:
    client = plane.client()
    sid = new_table(client)
    client.commit([put(sid, {1: 1})], row_count=1)
    client.commit([put(sid, {2: 2})], row_count=1)
    plane.kill()
    path = plane.segments()[-1]
    path.write_bytes(path.read_bytes()[:-3])
    plane.start()
    assert any("ahead of the journal" in line for line in plane.lines)
    assert contents(plane.client(), sid) == {1: 1}


def test_damage_in_the_middle_refuses_to_start(plane: Plane) -> None:
    client = plane.client()
    sid = new_table(client)
    for number in range(10):
        client.commit([put(sid, {number: number})], row_count=1)
    plane.kill()
    path = plane.segments()[-1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    said = plane.refuses()
    assert path.name in said and "record" in said and "offset" in said
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    plane.start()
    assert len(contents(plane.client(), sid)) == 10


# Full disk, for real


def test_file_size_limit(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: writes beyond it fail with EFBIG."""
    plane = Plane(tmp_path)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    with plane:
        sid = new_table(plane.client())
        assert plane.stop() == 0
        plane.start(limit)
        client = plane.client()
        acknowledged = {}
        with pytest.raises(GatewayError) as refusal:
            for number in range(100):
                client.commit([put(sid, {number: number}, pad=100_000)], row_count=1)
                acknowledged[number] = number
        # The journal or storage was first; both say so, and say it again.
        assert refusal.value.sqlstate in ("53100", "58030", "08007")
        with pytest.raises(GatewayError) as refusal:
            client.commit([put(sid, {200: 200}, pad=100_000)], row_count=1)
        assert refusal.value.sqlstate in ("53100", "58030")
        assert acknowledged
        assert contents(client, sid).keys() >= acknowledged.keys()
        plane.kill()
        plane.start()
        found = contents(plane.client(), sid)
        doubtful = found.keys() - acknowledged.keys()
        assert acknowledged.keys() <= found.keys() and len(doubtful) <= 1 and 200 not in found


# Lost answers


def test_commit_is_idempotent(plane: Plane) -> None:
    client = plane.client()
    sid = new_table(client)
    txid, tau = secrets.token_bytes(16), client.begin()
    first = client.commit([put(sid, {1: 1})], tau=tau, txid=txid, row_count=1)
    client.commit([put(sid, {1: 2})], tau=client.begin(), row_count=1)
    assert client.commit([put(sid, {1: 1})], tau=tau, txid=txid, row_count=1) == first
    client = restart(plane)
    assert client.commit([put(sid, {1: 1})], tau=tau, txid=txid, row_count=1) == first
    assert contents(client, sid) == {1: 2}


def test_status_makes_an_unknown_id_an_abort(plane: Plane) -> None:
    client = plane.client()
    sid = new_table(client)
    txid, tau = secrets.token_bytes(16), client.begin()
    assert client.status(txid, tau)[0] == frames.OUTCOME_ABORTED
    for _ in range(2):
        with pytest.raises(GatewayError) as refusal:
            client.commit([put(sid, {1: 1})], tau=tau, txid=txid, row_count=1)
        assert refusal.value.sqlstate == "40001"
        client = restart(plane)
    assert contents(client, sid) == {}


def test_stopped_data_plane_ends_open_connections(plane: Plane) -> None:
    client = plane.client()
    assert plane.process is not None
    plane.process.send_signal(signal.SIGTERM)
    with pytest.raises(OSError):
        while True:
            client.begin()
    assert plane.process.wait(5) == 0


def test_bad_frames(plane: Plane) -> None:
    import socket

    for data in (struct.pack("<I", 1 << 30), struct.pack("<I", 3) + b"abc", b"\0\0\0\0"):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(plane.socket))
            raw.sendall(data)
            raw.settimeout(5)
            while raw.recv(4096):
                pass
    assert plane.client().begin() > 0


def test_thread_that_started_it_may_end(tmp_path: Path) -> None:
    plane = Plane(tmp_path)
    thread = threading.Thread(target=plane.start)
    thread.start()
    thread.join()
    with plane.client() as client:
        time.sleep(0.3)
        assert client.begin() > 0
    assert plane.stop() == 0

"""The Hermitage anomalies: what snapshot isolation prevents, what it allows, what FOR UPDATE adds.

Names follow Martin Kleppmann's hermitage test suite. Conflicts surface as 40001 at COMMIT.
"""

from __future__ import annotations

from tests.isolation.sessions import sessions

ALL = "SELECT id, value FROM test ORDER BY id"


def test_g0_dirty_write(cluster) -> None:
    with sessions(cluster.dsn, 3) as (a, b, observer):
        a.begin()
        b.begin()
        a.run("UPDATE test SET value = 11 WHERE id = 1")
        b.run("UPDATE test SET value = 12 WHERE id = 1")
        a.run("UPDATE test SET value = 21 WHERE id = 2")
        a.commit()
        assert observer.run(ALL) == [(1, 11), (2, 21)]
        b.run("UPDATE test SET value = 22 WHERE id = 2")
        assert b.commit_conflicts()
        assert observer.run(ALL) == [(1, 11), (2, 21)]


def test_g1a_aborted_read(cluster) -> None:
    with sessions(cluster.dsn, 2) as (a, b):
        a.begin()
        b.begin()
        a.run("UPDATE test SET value = 101 WHERE id = 1")
        assert b.run(ALL) == [(1, 10), (2, 20)]
        a.run("ROLLBACK")
        assert b.run(ALL) == [(1, 10), (2, 20)]
        b.commit()


def test_g1b_intermediate_read(cluster) -> None:
    with sessions(cluster.dsn, 2) as (a, b):
        a.begin()
        b.begin()
        a.run("UPDATE test SET value = 101 WHERE id = 1")
        assert b.run(ALL) == [(1, 10), (2, 20)]
        a.run("UPDATE test SET value = 11 WHERE id = 1")
        a.commit()
        assert b.run(ALL) == [(1, 10), (2, 20)]
        b.commit()


def test_g1c_circular_information_flow(cluster) -> None:
    with sessions(cluster.dsn, 2) as (a, b):
        a.begin()
        b.begin()
        a.run("UPDATE test SET value = 11 WHERE id = 1")
        b.run("UPDATE test SET value = 22 WHERE id = 2")
        assert a.run("SELECT value FROM test WHERE id = 2") == [(20,)]
        assert b.run("SELECT value FROM test WHERE id = 1") == [(10,)]
        a.commit()
        b.commit()


def test_otv_observed_transaction_vanishes(cluster) -> None:
    with sessions(cluster.dsn, 3) as (a, b, c):
        for session in (a, b, c):
            session.begin()
        a.run("UPDATE test SET value = 11 WHERE id = 1")
        a.run("UPDATE test SET value = 19 WHERE id = 2")
        b.run("UPDATE test SET value = 12 WHERE id = 1")
        a.commit()
        first = c.run("SELECT value FROM test WHERE id = 1")
        b.run("UPDATE test SET value = 18 WHERE id = 2")
        assert b.commit_conflicts()
        second = c.run("SELECT value FROM test WHERE id = 2")
        assert (first, second) == ([(11,)], [(19,)])
        assert c.run("SELECT value FROM test WHERE id = 1") == first
        c.commit()


def test_pmp_predicate_many_preceders(cluster) -> None:
    with sessions(cluster.dsn, 2) as (a, b):
        a.begin()
        b.begin()
        assert a.run("SELECT * FROM test WHERE value = 30") == []
        b.run("INSERT INTO test VALUES (3, 30)")
        b.commit()
        assert a.run("SELECT * FROM test WHERE value % 3 = 0") == []
        a.commit()


def test_pmp_write_predicate(cluster) -> None:
    with sessions(cluster.dsn, 2) as (a, b):
        a.begin()
        b.begin()
        a.run("UPDATE test SET value = value + 10")
        assert b.run("SELECT value FROM test WHERE value = 20") == [(20,)]
        b.run("DELETE FROM test WHERE value = 20")
        a.commit()
        assert b.commit_conflicts()
        assert a.run(ALL) == [(1, 20), (2, 30)]


def test_p4_lost_update(cluster) -> None:
    with sessions(cluster.dsn, 2) as (a, b):
        a.begin()
        b.begin()
        assert a.run("SELECT value FROM test WHERE id = 1") == [(10,)]
        assert b.run("SELECT value FROM test WHERE id = 1") == [(10,)]
        a.run("UPDATE test SET value = 11 WHERE id = 1")
        b.run("UPDATE test SET value = 11 WHERE id = 1")
        a.commit()
        assert b.commit_conflicts()


def test_g_single_read_skew(cluster) -> None:
    with sessions(cluster.dsn, 2) as (a, b):
        a.begin()
        b.begin()
        assert a.run("SELECT value FROM test WHERE id = 1") == [(10,)]
        b.run("UPDATE test SET value = 12 WHERE id = 1")
        b.run("UPDATE test SET value = 18 WHERE id = 2")
        b.commit()
        assert a.run("SELECT value FROM test WHERE id = 2") == [(20,)]
        a.commit()


def test_g_single_predicate_dependencies(cluster) -> None:
    with sessions(cluster.dsn, 2) as (a, b):
        a.begin()
        b.begin()
        assert len(a.run("SELECT * FROM test WHERE value % 5 = 0")) == 2
        b.run("UPDATE test SET value = 12 WHERE value = 10")
        b.commit()
        assert a.run("SELECT * FROM test WHERE value % 3 = 0") == []
        a.commit()


def test_g_single_write_predicate(cluster) -> None:
    with sessions(cluster.dsn, 2) as (a, b):
        a.begin()
        b.begin()
        assert a.run("SELECT value FROM test WHERE id = 1") == [(10,)]
        b.run("UPDATE test SET value = 12 WHERE id = 1")
        b.run("UPDATE test SET value = 18 WHERE id = 2")
        b.commit()
        a.run("DELETE FROM test WHERE value = 20")
        assert a.commit_conflicts()


def _write_skew(a, b, lock: str) -> tuple[bool, bool]:
    a.begin()
    b.begin()
    for session in (a, b):
        session.run(f"SELECT value FROM test WHERE id IN (1, 2) {lock}")
    a.run("UPDATE test SET value = 11 WHERE id = 1")
    b.run("UPDATE test SET value = 21 WHERE id = 2")
    return a.commit_conflicts(), b.commit_conflicts()


def test_g2_item_write_skew_is_allowed(cluster) -> None:
    with sessions(cluster.dsn, 2) as (a, b):
        assert _write_skew(a, b, "") == (False, False)


def test_g2_item_is_prevented_by_for_update(cluster) -> None:
    with sessions(cluster.dsn, 2) as (a, b):
        assert _write_skew(a, b, "FOR UPDATE") == (False, True)


def test_share_against_write_aborts_in_either_order(cluster) -> None:
    for first_is_sharer in (True, False):
        with sessions(cluster.dsn, 2) as (sharer, writer):
            sharer.begin()
            writer.begin()
            sharer.run("SELECT * FROM test WHERE id = 1 FOR SHARE")
            sharer.run("UPDATE test SET value = 0 WHERE id = 2")
            writer.run("UPDATE test SET value = 11 WHERE id = 1")
            order = (sharer, writer) if first_is_sharer else (writer, sharer)
            assert [session.commit_conflicts() for session in order] == [False, True]


def test_share_and_share_both_commit(cluster) -> None:
    with sessions(cluster.dsn, 2) as (a, b):
        a.begin()
        b.begin()
        a.run("SELECT * FROM test WHERE id = 1 FOR SHARE")
        b.run("SELECT * FROM test WHERE id = 1 FOR SHARE")
        a.commit()
        b.commit()


def test_g2_anti_dependency_cycle_is_allowed(cluster) -> None:
    with sessions(cluster.dsn, 2) as (a, b):
        a.begin()
        b.begin()
        assert a.run("SELECT * FROM test WHERE value % 3 = 0") == []
        assert b.run("SELECT * FROM test WHERE value % 3 = 0") == []
        a.run("INSERT INTO test VALUES (3, 30)")
        b.run("INSERT INTO test VALUES (4, 42)")
        a.commit()
        b.commit()


def _fekete(a, b, reader, lock: str) -> tuple[list[tuple[int, int]], bool]:
    """Fekete, O'Neil, O'Neil 2004: a deposit, a withdrawal with a fee, and a report between."""
    a.run("UPDATE test SET value = 0")
    b.begin()
    balances = b.run(f"SELECT id, value FROM test ORDER BY id {lock}")
    assert balances == [(1, 0), (2, 0)]
    a.begin()
    a.run("UPDATE test SET value = 20 WHERE id = 2")
    a.commit()
    report = reader.run(ALL)
    b.run("UPDATE test SET value = -11 WHERE id = 1")
    return report, b.commit_conflicts()


def test_fekete_read_only_anomaly_is_allowed(cluster) -> None:
    with sessions(cluster.dsn, 3) as (a, b, reader):
        assert _fekete(a, b, reader, "") == ([(1, 0), (2, 20)], False)
        assert reader.run(ALL) == [(1, -11), (2, 20)]


def test_fekete_read_only_anomaly_is_prevented_by_for_update(cluster) -> None:
    with sessions(cluster.dsn, 3) as (a, b, reader):
        assert _fekete(a, b, reader, "FOR UPDATE") == ([(1, 0), (2, 20)], True)


def test_insert_of_the_same_key_conflicts(cluster) -> None:
    with sessions(cluster.dsn, 2) as (a, b):
        a.begin()
        b.begin()
        a.run("INSERT INTO test VALUES (5, 1)")
        b.run("INSERT INTO test VALUES (5, 2)")
        a.commit()
        assert b.commit_conflicts()


def test_reads_never_abort_and_never_wait(cluster) -> None:
    with sessions(cluster.dsn, 2) as (writer, reader):
        reader.begin()
        assert reader.run(ALL) == [(1, 10), (2, 20)]
        for value in range(20):
            writer.run(f"UPDATE test SET value = {value}")
        assert reader.run(ALL) == [(1, 10), (2, 20)]
        reader.commit()
        assert reader.run(ALL) == [(1, 19), (2, 19)]

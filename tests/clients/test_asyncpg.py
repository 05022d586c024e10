"""asyncpg unchanged: binary protocol, prepared statements, COPY, introspection, pool."""

from __future__ import annotations

import asyncio
import datetime
import decimal
from collections.abc import Awaitable, Callable

import asyncpg


def _run(dsn: str, work: Callable[[asyncpg.Connection], Awaitable[None]]) -> None:
    async def main() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute("DROP TABLE IF EXISTS order_line")
            await connection.execute(
                "CREATE TABLE order_line (id int PRIMARY KEY, price numeric(10,2), tags text[], "
                "made timestamptz)"
            )
            await work(connection)
        finally:
            await connection.close()

    asyncio.run(main())


def test_binary_types(cluster) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        made = datetime.datetime(2024, 5, 5, 12, tzinfo=datetime.UTC)
        await connection.execute(
            "INSERT INTO order_line VALUES ($1, $2, $3, $4)",
            1,
            decimal.Decimal("9.90"),
            ["a", None],
            made,
        )
        row = await connection.fetchrow("SELECT * FROM order_line WHERE id = $1", 1)
        assert tuple(row) == (1, decimal.Decimal("9.90"), ["a", None], made)

    _run(cluster.dsn, work)


def test_copy_records_and_cursor(cluster) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        records = [(n, decimal.Decimal(n), [str(n)], None) for n in range(3_000)]
        await connection.copy_records_to_table("order_line", records=records)
        total = 0
        async with connection.transaction():
            async for row in connection.cursor("SELECT id FROM order_line ORDER BY id"):
                assert row["id"] == total
                total += 1
        assert total == 3_000

    _run(cluster.dsn, work)


def test_conflict_is_a_serialization_error(cluster) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        await connection.execute("INSERT INTO order_line (id) VALUES (1)")
        other = await asyncpg.connect(cluster.dsn)
        try:
            transaction = connection.transaction(isolation="repeatable_read")
            await transaction.start()
            await connection.execute("UPDATE order_line SET price = 1 WHERE id = 1")
            await other.execute("UPDATE order_line SET price = 2 WHERE id = 1")
            try:
                await transaction.commit()
            except asyncpg.SerializationError as error:
                assert "OC000" in str(error)
            else:
                raise AssertionError("both writers of one row committed")
        finally:
            await other.close()

    _run(cluster.dsn, work)


def test_pool(cluster) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        async with asyncpg.create_pool(cluster.dsn, min_size=2, max_size=6) as pool:

            async def insert(number: int) -> None:
                await pool.execute("INSERT INTO order_line (id) VALUES ($1)", number)

            await asyncio.gather(*(insert(number) for number in range(60)))
        assert await connection.fetchval("SELECT count(*) FROM order_line") == 60

    _run(cluster.dsn, work)

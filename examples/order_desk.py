"""An order desk: orders take stock, never below zero, and several desks sell at once.

    meridian dev                       # in one shell; it prints a DSN
    python examples/order_desk.py DSN  # in another (pip install 'psycopg[binary]')

Meridian never makes a transaction wait for another. Where two change the same row, the
later COMMIT fails with SQLSTATE 40001, and the whole transaction is run again: see `retrying`.
"""

from __future__ import annotations

import functools
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg

Result = TypeVar("Result")

DESKS = 4
ORDERS_PER_DESK = 50
PRODUCTS = 5
STOCK_EACH = 60
ATTEMPTS = 30

SCHEMA = """
DROP TABLE IF EXISTS order_line, customer_order, product;
CREATE TABLE product (
    id int PRIMARY KEY, name text NOT NULL UNIQUE, stock int NOT NULL CHECK (stock >= 0));
CREATE TABLE customer_order (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, desk int NOT NULL,
    made timestamptz NOT NULL DEFAULT now());
CREATE TABLE order_line (
    order_id bigint REFERENCES customer_order ON DELETE CASCADE,
    product_id int REFERENCES product, quantity int NOT NULL CHECK (quantity > 0),
    PRIMARY KEY (order_id, product_id));
"""


class OutOfStock(Exception):
    """The order asks for more than there is."""


def retrying(connection: psycopg.Connection, work: Callable[[], Result]) -> tuple[Result, int]:
    """Runs `work` as one transaction, again while it conflicts; the result and the retries."""
    for attempt in range(ATTEMPTS):
        try:
            with connection.transaction():
                result = work()
            return result, attempt
        except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
            time.sleep(random.uniform(0, 0.002 * 2 ** min(attempt, 6)))
    raise RuntimeError(f"no luck in {ATTEMPTS} attempts")


def place_order(connection: psycopg.Connection, desk: int, basket: dict[int, int]) -> int:
    """One order in the caller's transaction; its number. Raises OutOfStock."""
    for product, quantity in basket.items():
        row = connection.execute(
            "UPDATE product SET stock = stock - %s WHERE id = %s AND stock >= %s RETURNING stock",
            (quantity, product, quantity),
        ).fetchone()
        if row is None:
            raise OutOfStock
    row = connection.execute(
        "INSERT INTO customer_order (desk) VALUES (%s) RETURNING id", (desk,)
    ).fetchone()
    assert row is not None
    for product, quantity in basket.items():
        connection.execute(
            "INSERT INTO order_line VALUES (%s, %s, %s)", (row[0], product, quantity)
        )
    return int(row[0])


def run_desk(dsn: str, desk: int, counts: dict[str, int], lock: threading.Lock) -> None:
    """One desk: ORDERS_PER_DESK orders on a connection of its own."""
    chance = random.Random(desk)
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(ORDERS_PER_DESK):
            products = chance.sample(range(1, PRODUCTS + 1), 2)
            basket = {product: chance.randint(1, 3) for product in products}
            try:
                work = functools.partial(place_order, connection, desk, basket)
                _, retries = retrying(connection, work)
                outcome = "placed"
            except OutOfStock:
                outcome, retries = "out of stock", 0
            with lock:
                counts[outcome] = counts.get(outcome, 0) + 1
                counts["retries"] = counts.get("retries", 0) + retries


def main(dsn: str) -> None:
    """Sets up, lets all desks sell at once, and checks that no item was sold twice."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SCHEMA)
        connection.execute(
            "INSERT INTO product SELECT n, 'product ' || n, %s FROM generate_series(1, %s) n",
            (STOCK_EACH, PRODUCTS),
        )
        counts: dict[str, int] = {}
        lock = threading.Lock()
        desks = [
            threading.Thread(target=run_desk, args=(dsn, desk, counts, lock))
            for desk in range(DESKS)
        ]
        for thread in desks:
            thread.start()
        for thread in desks:
            thread.join()
        wrong = connection.execute(
            "SELECT p.id FROM product p LEFT JOIN order_line l ON l.product_id = p.id "
            "GROUP BY p.id, p.stock HAVING p.stock + coalesce(sum(l.quantity), 0) <> %s",
            (STOCK_EACH,),
        ).fetchall()
    print(", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    print("stock and orders agree" if not wrong else f"WRONG for products {wrong}")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python examples/order_desk.py DSN")
    main(sys.argv[1])

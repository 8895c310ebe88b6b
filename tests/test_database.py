"""Transactions: what several threads do together is on the disk for each, and undone for each alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest
import sqlalchemy as sa
from databases import database, postgres  # noqa: F401

from imagewright.database import Database

WHO: ContextVar[int] = ContextVar("who")


@pytest.fixture
def table(database: Database) -> Database:  # noqa: F811
    with database.write() as connection:
        connection.execute(sa.text("CREATE TABLE numbers (number INTEGER PRIMARY KEY)"))
    return database


def insert(connection: sa.Connection, number: int) -> None:
    connection.execute(sa.text("INSERT INTO numbers VALUES (:number)"), {"number": number})


def numbers(table: Database) -> list[int]:
    with table.read() as connection:
        return list(connection.execute(sa.text("SELECT number FROM numbers ORDER BY number")).scalars())


def test_an_error_undoes_its_own_part_and_no_more(table: Database) -> None:
    seen: dict[int, int] = {}

    def one(number: int) -> int:
        WHO.set(number)

        def act(connection: sa.Connection) -> int:
            insert(connection, number)
            seen[number] = WHO.get()
            if number % 3 == 0:
                raise ValueError(number)
            return number * 10

        return table.together(act)

    with ThreadPoolExecutor(16) as threads:
        done = [threads.submit(one, number) for number in range(100)]
    for number, each in enumerate(done):
        if number % 3 == 0:
            assert isinstance(each.exception(), ValueError) and each.exception().args == (number,)  # type: ignore[union-attr]
        else:
            assert each.result() == number * 10
    assert numbers(table) == [number for number in range(100) if number % 3]
    assert seen == {number: number for number in range(100)}  # each with the context of its own thread


def test_many_share_one_write_to_the_disk(table: Database) -> None:
    if not table.is_sqlite:
        pytest.skip("Postgres does this itself")
    commits = []
    sa.event.listen(table.engine, "commit", commits.append)
    first, go = threading.Event(), threading.Event()

    def slow(connection: sa.Connection) -> None:
        insert(connection, 1000)
        first.set()
        go.wait(5)

    def act(number: int) -> Any:
        return table.together(lambda connection: insert(connection, number))

    with ThreadPoolExecutor(20) as threads:
        threads.submit(table.together, slow)
        assert first.wait(5)
        rest = [threads.submit(act, number) for number in range(19)]
        while len(table._acts) < 19:
            pass
        go.set()
        assert [each.result() for each in rest] == [None] * 19
    assert len(commits) == 2
    assert len(numbers(table)) == 20


def test_when_the_database_fails_it_fails_for_all(table: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    if not table.is_sqlite:
        pytest.skip("on Postgres nothing is shared")
    full = sa.exc.OperationalError("INSERT", {}, Exception("database or disk is full"))
    go = threading.Event()

    def act(number: int) -> None:
        def insert_or_fail(connection: sa.Connection) -> None:
            insert(connection, number)
            if number == 5:
                raise full

        table.together(insert_or_fail)

    def slow(connection: sa.Connection) -> None:
        go.wait(5)

    with ThreadPoolExecutor(11) as threads:
        threads.submit(table.together, slow)
        rest = [threads.submit(act, number) for number in range(10)]
        while len(table._acts) < 10:
            pass
        go.set()
        assert [each.exception() for each in rest] == [full] * 10
    assert numbers(table) == []
    table.together(lambda connection: insert(connection, 1))
    assert numbers(table) == [1]

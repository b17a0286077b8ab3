"""The tables. Portable: text, integers and bytes only, and names held unique by constraints.

A change here needs a migration beside it; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

# Moments are whole microseconds since 1970 in UTC: they sort and compare alike on every database.

users = Table(
    "users",
    metadata,
    Column("name", String(64), primary_key=True),
)

commands = Table(
    "commands",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("owner", String(64), ForeignKey("users.name", onupdate="CASCADE"), nullable=False),
    Column("name", String(64), nullable=False),
    Column("current", Integer, nullable=False),
    # The highest number ever given: numbers are not used again, whatever becomes of their versions.
    Column("last", Integer, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    UniqueConstraint("owner", "name"),
)

versions = Table(
    "versions",
    metadata,
    Column("command_id", ForeignKey("commands.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("description", Text, nullable=False),
    Column("author", String(64), nullable=False),
    Column("digest", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # The last column: SQLite reads a row only as far as it must, and this may be a megabyte.
    Column("source", LargeBinary, nullable=False),
)

# Runs name what they were of and do not refer to it: they outlive it.
runs = Table(
    "runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("server", String(64), nullable=False),
    Column("command", String(129), nullable=False),
    Column("version", Integer, nullable=False),
    Column("user", String(64), nullable=False),
    Column("door", String(16), nullable=False),
    Column("started_at", BigInteger, nullable=False),
    # None of these four before the run's end, all of them after it.
    Column("ended_at", BigInteger),
    Column("exit_status", Integer),
    Column("reason", String(16)),
    Column("message", Text),
    Index(None, "user", "started_at"),
    Index(None, "command", "started_at"),
)

Index(
    "ix_runs_unfinished",
    runs.c.server,
    sqlite_where=runs.c.ended_at.is_(None),
    postgresql_where=runs.c.ended_at.is_(None),
)

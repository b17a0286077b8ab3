"""The tables. Portable: text, integers and bytes only, and names held unique by constraints.

A change here needs a migration beside it; a test compares the two.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
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


def _user() -> ForeignKey:
    """To a user who may be renamed, and whose removal takes it along."""
    return ForeignKey("users.name", onupdate="CASCADE", ondelete="CASCADE")


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
    Column("digest", Text, nullable=False, index=True),
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
    # The owner of `command`, by itself for an index. Not there where an older program, still at
    # work on a database that this one brought up, recorded it.
    Column("owner", String(64)),
    Index(None, "user", "started_at"),
    Index(None, "command", "started_at"),
)

BY_ANOTHER = runs.c.owner != runs.c.user
"""Who is not the command's owner ran it."""


def _partial(
    name: str, condition: ColumnElement[bool], *columns: Column[Any], unique: bool = False
) -> None:
    Index(name, *columns, unique=unique, sqlite_where=condition, postgresql_where=condition)


# Each index of `runs` costs every run a little. Most are of their owners: the two that are for
# the others leave them out, and the one for cleaning up is written when a run has ended.
_partial("ix_runs_unfinished", runs.c.ended_at.is_(None), runs.c.server)
_partial("ix_runs_ended_at", runs.c.ended_at.is_not(None), runs.c.ended_at)
_partial("ix_runs_owner_by_another", BY_ANOTHER, runs.c.owner, runs.c.started_at)
_partial("ix_runs_command_by_another", BY_ANOTHER, runs.c.command, runs.c.user, runs.c.started_at)

outputs = Table(
    "outputs",
    metadata,
    Column("run_id", ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("kept_at", BigInteger, nullable=False),
    # Bytes of head and tail.
    Column("size", BigInteger, nullable=False),
    Column("dropped", BigInteger, nullable=False),
    Column("head", LargeBinary, nullable=False),
    Column("tail", LargeBinary, nullable=False),
    # The size is within, so that adding up reads no outputs.
    Index(None, "kept_at", "size"),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", _user(), nullable=False, index=True),
    Column("description", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("last_used_at", BigInteger),
    # The keyed hash of its secret.
    Column("digest", LargeBinary, nullable=False),
)

# To a user, to a token, or, where it names neither, to everyone.
grants = Table(
    "grants",
    metadata,
    Column("command_id", ForeignKey("commands.id", ondelete="CASCADE"), nullable=False),
    Column("role", String(8), nullable=False),
    Column("user", _user()),
    Column("token", ForeignKey("tokens.id", ondelete="CASCADE")),
    UniqueConstraint("command_id", "role", "user"),
    UniqueConstraint("command_id", "role", "token"),
)

TO_EVERYONE = grants.c.user.is_(None) & grants.c.token.is_(None)

# Each for what it is of alone: SQLite would look among all that have no token for what is for
# everyone.
_partial("ix_grants_user", grants.c.user.is_not(None), grants.c.user)
_partial("ix_grants_token", grants.c.token.is_not(None), grants.c.token)
_partial("uq_grants_to_everyone", TO_EVERYONE, grants.c.command_id, unique=True)

env = Table(
    "env",
    metadata,
    Column("command_id", ForeignKey("commands.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(256), primary_key=True),
    # Sealed: only who has the key reads it.
    Column("value", LargeBinary, nullable=False),
)

# The record of who changed what. It tells of what was, so it refers to nothing.
entries = Table(
    "entries",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("user", String(64), nullable=False),
    Column("action", String(32), nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),
)

# At most one row, its id 1.
notices = Table(
    "notices",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("text", Text, nullable=False),
    Column("closed", Integer, nullable=False),
)

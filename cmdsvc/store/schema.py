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
    literal_column,
)

WHERE = "where"
"""Key, in an index's `info`, of the condition under which it holds a row.

Said as `postgresql_where` it would load what SQLAlchemy knows of PostgreSQL, some megabytes, wherever
SQLite is used: the module for PostgreSQL says it instead.
"""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def _command() -> ForeignKey:
    return ForeignKey("commands.id", ondelete="CASCADE")


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
    # Deliveries that have not ended. Who adds, ends or removes one holds this row.
    Column("unfinished", Integer, nullable=False, server_default="0"),
    UniqueConstraint("owner", "name"),
)

versions = Table(
    "versions",
    metadata,
    Column("command_id", _command(), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("description", Text, nullable=False),
    Column("author", String(64), nullable=False),
    Column("digest", Text, nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    # SQLite reads a row only as far as it must, and this may be a megabyte.
    Column("source", LargeBinary, nullable=False),
    # The script's own. It is behind the source since it came later, and is read from an index.
    Column("schedule", Text),
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
    Column("token", String(64)),
    Index(None, "user", "started_at"),
    Index(None, "command", "started_at"),
)

BY_ANOTHER = runs.c.owner != runs.c.user
"""Who is not the command's owner ran it."""


def _partial(
    name: str, condition: ColumnElement[bool], *columns: Column[Any], unique: bool = False
) -> None:
    Index(name, *columns, unique=unique, sqlite_where=condition, info={WHERE: condition})


# Each index of `runs` costs every run a little. Most are of their owners: the two that are for
# the others leave them out, and the one for cleaning up is written when a run has ended.
_partial("ix_runs_unfinished", runs.c.ended_at.is_(None), runs.c.server)
_partial("ix_runs_ended_at", runs.c.ended_at.is_not(None), runs.c.ended_at)
_partial("ix_runs_owner_by_another", BY_ANOTHER, runs.c.owner, runs.c.started_at)
_partial("ix_runs_command_by_another", BY_ANOTHER, runs.c.command, runs.c.user, runs.c.started_at)
_partial(
    "ix_versions_schedule",
    versions.c.schedule.is_not(None),
    versions.c.command_id,
    versions.c.number,
    versions.c.schedule,
)

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
    Column("command_id", _command(), nullable=False),
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
    Column("command_id", _command(), primary_key=True),
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

hooks = Table(
    "hooks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("command_id", _command(), nullable=False),
    Column("name", String(64), nullable=False),
    Column("scheme", String(32), nullable=False),
    # A JSON object of texts.
    Column("options", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("rotated_at", BigInteger),
    Column("retries", Integer, nullable=False),
    Column("retry_any", Integer, nullable=False),
    Column("ordered", Integer, nullable=False),
    # Sealed, as in `env`.
    Column("secret", LargeBinary, nullable=False),
    Column("previous", LargeBinary),
    UniqueConstraint("command_id", "name"),
)

deliveries = Table(
    "deliveries",
    metadata,
    # In the order in which they were accepted, within a command. SQLite counts up an INTEGER only.
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("command_id", _command(), nullable=False),
    # Not there: a schedule's. It goes with its hook, which is removed with what is the command's:
    # to be found by its hook alone it would need an index, and each arrival would write to it.
    Column("hook_id", Integer),
    # One of these two is what a repetition has too, as a digest that says of which hook: the first
    # where it is one for as long as this is kept, the second within a window.
    Column("once", LargeBinary, unique=True),
    Column("same", LargeBinary),
    Column("event", Text, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("state", String(8), nullable=False),
    Column("attempt", Integer, nullable=False),
    # When it may be taken: its time where it waits, the lease's end where it runs. Not there where
    # it has ended, or others of its ordered hook go before it.
    Column("due_at", BigInteger),
    # The hook's id, where that is ordered and this has not ended.
    Column("line", Integer),
    # Who runs it; not there where nobody does.
    Column("server", String(64)),
    Column("ended_at", BigInteger),
    Column("run", String(64)),
    Column("exit_status", Integer),
    Column("message", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("retries", Integer, nullable=False),
    Column("retry_any", Integer, nullable=False),
    # A JSON object, a character for each byte.
    Column("env", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index(None, "command_id", "number", "hook_id"),
)

NOT_DONE = deliveries.c.state != literal_column("'done'")
"""Few, of all that are kept. A query says it in these words, for SQLite to know the index by."""

_partial(
    "ix_deliveries_same",
    deliveries.c.same.is_not(None),
    deliveries.c.same,
    deliveries.c.received_at,
)
_partial(
    "ix_deliveries_due_at",
    deliveries.c.due_at.is_not(None),
    deliveries.c.due_at,
    deliveries.c.number,
    # To pass over some without looking at them.
    deliveries.c.command_id,
)
_partial(
    "ix_deliveries_line", deliveries.c.line.is_not(None), deliveries.c.line, deliveries.c.number
)
_partial("ix_deliveries_server", deliveries.c.server.is_not(None), deliveries.c.server)
_partial("ix_deliveries_ended_at", deliveries.c.ended_at.is_not(None), deliveries.c.ended_at)
_partial(
    "ix_deliveries_not_done",
    NOT_DONE,
    deliveries.c.state,
    deliveries.c.command_id,
    deliveries.c.hook_id,
    deliveries.c.received_at,
)

# What owners have set.
schedules = Table(
    "schedules",
    metadata,
    Column("command_id", _command(), primary_key=True, autoincrement=False),
    Column("expression", Text, nullable=False),
    Column("zone", String(64), nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("overlap", Integer, nullable=False),
)

# The planned moment that was dealt with last, of an owner's schedule or a script's.
ticks = Table(
    "ticks",
    metadata,
    Column("command_id", _command(), primary_key=True, autoincrement=False),
    Column("last_at", BigInteger, nullable=False),
    Column("last", String(16), nullable=False),
)

answers = Table(
    "answers",
    metadata,
    Column("caller", String(64), primary_key=True),
    # Its digest: it may be any text.
    Column("key", LargeBinary, primary_key=True),
    Column("server", String(64), nullable=False),
    Column("begun_at", BigInteger, nullable=False, index=True),
    Column("digest", LargeBinary, nullable=False),
    Column("run", String(64), nullable=False),
    # Not there while it is under way.
    Column("status", Integer),
    # A JSON list of pairs.
    Column("headers", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

_partial("ix_answers_under_way", answers.c.status.is_(None), answers.c.server)

"""Hooks, deliveries, schedules, answers; by which token a run was asked for."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("runs", sa.Column("token", sa.String(64)))
    op.add_column("versions", sa.Column("schedule", sa.Text))
    _partial_index(
        "ix_versions_schedule", "versions", ["command_id", "number", "schedule"], "schedule"
    )
    op.add_column(
        "commands", sa.Column("unfinished", sa.Integer, nullable=False, server_default="0")
    )
    _hooks()
    _deliveries()
    _schedules()
    _answers()


def _hooks() -> None:
    op.create_table(
        "hooks",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("command_id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("scheme", sa.String(32), nullable=False),
        sa.Column("options", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("rotated_at", sa.BigInteger),
        sa.Column("retries", sa.Integer, nullable=False),
        sa.Column("retry_any", sa.Integer, nullable=False),
        sa.Column("ordered", sa.Integer, nullable=False),
        sa.Column("secret", sa.LargeBinary, nullable=False),
        sa.Column("previous", sa.LargeBinary),
        sa.PrimaryKeyConstraint("id", name="pk_hooks"),
        _to_command("hooks"),
        sa.UniqueConstraint("command_id", "name", name="uq_hooks_command_id_name"),
    )


def _deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("command_id", sa.Integer, nullable=False),
        sa.Column("hook_id", sa.Integer),
        sa.Column("once", sa.LargeBinary),
        sa.Column("same", sa.LargeBinary),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("received_at", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("due_at", sa.BigInteger),
        sa.Column("line", sa.Integer),
        sa.Column("server", sa.String(64)),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("run", sa.String(64)),
        sa.Column("exit_status", sa.Integer),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("retries", sa.Integer, nullable=False),
        sa.Column("retry_any", sa.Integer, nullable=False),
        sa.Column("env", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_deliveries"),
        _to_command("deliveries"),
        sa.UniqueConstraint("id", name="uq_deliveries_id"),
        sa.UniqueConstraint("once", name="uq_deliveries_once"),
    )
    listed = ["command_id", "number", "hook_id"]
    op.create_index("ix_deliveries_command_id_number_hook_id", "deliveries", listed)
    for one, *more in (
        ("same", "received_at"),
        ("due_at", "number", "command_id"),
        ("line", "number"),
        ("server",),
        ("ended_at",),
    ):
        _partial_index(f"ix_deliveries_{one}", "deliveries", [one, *more], one)
    not_done = sa.text("state != 'done'")
    op.create_index(
        "ix_deliveries_not_done",
        "deliveries",
        ["state", "command_id", "hook_id", "received_at"],
        sqlite_where=not_done,
        postgresql_where=not_done,
    )


def _schedules() -> None:
    op.create_table(
        "schedules",
        _command_id(),
        sa.Column("expression", sa.Text, nullable=False),
        sa.Column("zone", sa.String(64), nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("overlap", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("command_id", name="pk_schedules"),
        _to_command("schedules"),
    )
    op.create_table(
        "ticks",
        _command_id(),
        sa.Column("last_at", sa.BigInteger, nullable=False),
        sa.Column("last", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("command_id", name="pk_ticks"),
        _to_command("ticks"),
    )


def _answers() -> None:
    op.create_table(
        "answers",
        sa.Column("caller", sa.String(64), nullable=False),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("server", sa.String(64), nullable=False),
        sa.Column("begun_at", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("headers", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("caller", "key", name="pk_answers"),
    )
    op.create_index("ix_answers_begun_at", "answers", ["begun_at"])
    under_way = sa.text("status IS NULL")
    op.create_index(
        "ix_answers_under_way",
        "answers",
        ["server"],
        sqlite_where=under_way,
        postgresql_where=under_way,
    )


def _command_id() -> sa.Column[Any]:
    return sa.Column("command_id", sa.Integer, nullable=False, autoincrement=False)


def _to_command(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["command_id"], ["commands.id"], name=f"fk_{table}_command_id", ondelete="CASCADE"
    )


def _partial_index(name: str, table: str, columns: list[str], where: str) -> None:
    """Of the rows that have a value in the column `where`."""
    condition = sa.text(f"{where} IS NOT NULL")
    op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)

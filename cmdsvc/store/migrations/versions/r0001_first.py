"""Users, commands and their versions, runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("name", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_users"),
    )
    op.create_table(
        "commands",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("current", sa.Integer, nullable=False),
        sa.Column("last", sa.Integer, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_commands"),
        sa.ForeignKeyConstraint(
            ["owner"], ["users.name"], name="fk_commands_owner", onupdate="CASCADE"
        ),
        sa.UniqueConstraint("owner", "name", name="uq_commands_owner_name"),
    )
    op.create_table(
        "versions",
        sa.Column("command_id", sa.Integer, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("author", sa.String(64), nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("source", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("command_id", "number", name="pk_versions"),
        sa.ForeignKeyConstraint(
            ["command_id"], ["commands.id"], name="fk_versions_command_id", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("server", sa.String(64), nullable=False),
        sa.Column("command", sa.String(129), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("user", sa.String(64), nullable=False),
        sa.Column("door", sa.String(16), nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("exit_status", sa.Integer),
        sa.Column("reason", sa.String(16)),
        sa.Column("message", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    op.create_index("ix_runs_user_started_at", "runs", ["user", "started_at"])
    op.create_index("ix_runs_command_started_at", "runs", ["command", "started_at"])
    unfinished = sa.text("ended_at IS NULL")
    op.create_index(
        "ix_runs_unfinished",
        "runs",
        ["server"],
        sqlite_where=unfinished,
        postgresql_where=unfinished,
    )

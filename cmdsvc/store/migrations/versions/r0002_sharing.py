"""Tokens, grants, sealed environments, kept outputs, the record, the notice; whose a run's command is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _runs()
    op.create_index("ix_versions_digest", "versions", ["digest"])
    op.create_table(
        "outputs",
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("kept_at", sa.BigInteger, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("dropped", sa.BigInteger, nullable=False),
        sa.Column("head", sa.LargeBinary, nullable=False),
        sa.Column("tail", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_outputs"),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name="fk_outputs_run_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_outputs_kept_at_size", "outputs", ["kept_at", "size"])
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("last_used_at", sa.BigInteger),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        _to_user("tokens", "owner"),
    )
    op.create_index("ix_tokens_owner", "tokens", ["owner"])
    _grants()
    op.create_table(
        "env",
        sa.Column("command_id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(256), nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("command_id", "name", name="pk_env"),
        _to_command("env"),
    )
    op.create_table(
        "entries",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("user", sa.String(64), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_entries"),
    )
    op.create_table(
        "notices",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("closed", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_notices"),
    )


def _runs() -> None:
    op.add_column("runs", sa.Column("owner", sa.String(64)))
    slash = "instr" if op.get_bind().dialect.name == "sqlite" else "strpos"
    op.execute(f"UPDATE runs SET owner = substr(command, 1, {slash}(command, '/') - 1)")  # noqa: S608
    _partial_index("ix_runs_ended_at", "runs", ["ended_at"], "ended_at IS NOT NULL")
    by_another = 'owner != "user"'
    _partial_index("ix_runs_owner_by_another", "runs", ["owner", "started_at"], by_another)
    _partial_index(
        "ix_runs_command_by_another", "runs", ["command", "user", "started_at"], by_another
    )


def _grants() -> None:
    op.create_table(
        "grants",
        sa.Column("command_id", sa.Integer, nullable=False),
        sa.Column("role", sa.String(8), nullable=False),
        sa.Column("user", sa.String(64)),
        sa.Column("token", sa.String(64)),
        _to_command("grants"),
        _to_user("grants", "user"),
        sa.ForeignKeyConstraint(
            ["token"], ["tokens.id"], name="fk_grants_token", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("command_id", "role", "user", name="uq_grants_command_id_role_user"),
        sa.UniqueConstraint("command_id", "role", "token", name="uq_grants_command_id_role_token"),
    )
    _partial_index("ix_grants_user", "grants", ["user"], '"user" IS NOT NULL')
    _partial_index("ix_grants_token", "grants", ["token"], "token IS NOT NULL")
    to_everyone = '"user" IS NULL AND token IS NULL'
    _partial_index("uq_grants_to_everyone", "grants", ["command_id"], to_everyone, unique=True)


def _to_command(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["command_id"], ["commands.id"], name=f"fk_{table}_command_id", ondelete="CASCADE"
    )


def _to_user(table: str, column: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        [column],
        ["users.name"],
        name=f"fk_{table}_{column}",
        onupdate="CASCADE",
        ondelete="CASCADE",
    )


def _partial_index(
    name: str, table: str, columns: list[str], where: str, *, unique: bool = False
) -> None:
    condition = sa.text(where)
    op.create_index(
        name,
        table,
        columns,
        unique=unique,
        sqlite_where=condition,
        postgresql_where=condition,
    )

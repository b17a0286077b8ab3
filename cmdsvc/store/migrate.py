"""From the schema that is there to the one that this program knows.

Alembic is needed where an older store is brought up, and imported only then: it is large.
"""

from __future__ import annotations

from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    inspect,
    select,
)

from cmdsvc.errors import InternalError
from cmdsvc.store.kinds import Found
from cmdsvc.store.schema import metadata

HEAD = "0003"
"""The last of `migrations`: what it leaves is what `schema` makes at once."""

_version = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Alembic's own, where it looks up which schema there is."""


def check(connection: Connection) -> Found:
    """What the database is, where `upgrade` can bring it up: else InternalError. It only reads."""
    tables = inspect(connection).get_table_names()
    if not tables:
        return Found.NOTHING
    revision = _version.name in tables and connection.scalar(select(_version.c.version_num))
    if not revision:
        raise InternalError(
            "the database holds other tables than this program's",
            "give the service a database of its own",
        )
    if revision == HEAD:
        return Found.CURRENT
    from cmdsvc.store import migrations  # noqa: PLC0415

    if not migrations.known(revision):
        raise InternalError(
            f"the store was written by a newer version of this program (schema {revision})",
            "install that version, or restore a backup made before it",
        )
    return Found.OLDER


def upgrade(connection: Connection) -> None:
    """Within the transaction that `connection` is in. Errors are those of `check`."""
    found = check(connection)
    if found is Found.NOTHING:
        _version.create(connection)
        metadata.create_all(connection)
        connection.execute(_version.insert().values(version_num=HEAD))
    elif found is Found.OLDER:
        from cmdsvc.store import migrations  # noqa: PLC0415

        migrations.run(connection)

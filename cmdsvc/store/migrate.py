"""From the schema that is there to the one that this program knows, by Alembic, without a file of settings."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, inspect

from cmdsvc.errors import InternalError
from cmdsvc.store.kinds import Found


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "cmdsvc.store:migrations")
    config.set_main_option("path_separator", "os")
    return config


def check(connection: Connection) -> Found:
    """What the database is, where `upgrade` can bring it up: else InternalError. It only reads."""
    context = MigrationContext.configure(connection)
    revision = context.get_current_revision()
    if revision is None:
        if inspect(connection).get_table_names():
            raise InternalError(
                "the database holds other tables than this program's",
                "give the service a database of its own",
            )
        return Found.NOTHING
    known = ScriptDirectory.from_config(_config())
    try:
        known.get_revision(revision)
    except CommandError as error:
        raise InternalError(
            f"the store was written by a newer version of this program (schema {revision})",
            "install that version, or restore a backup made before it",
        ) from error
    return Found.CURRENT if revision == known.get_current_head() else Found.OLDER


def upgrade(connection: Connection) -> None:
    """Within the transaction that `connection` is in."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")

"""From the schema that is there to the one that this program knows, by Alembic, without a file of settings."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, inspect

from cmdsvc.errors import InternalError


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "cmdsvc.store:migrations")
    config.set_main_option("path_separator", "os")
    return config


def check(connection: Connection) -> None:
    """Whether the database is empty or a store that `upgrade` can bring up: else InternalError.

    It only reads.
    """
    context = MigrationContext.configure(connection)
    revision = context.get_current_revision()
    if revision is None:
        if inspect(connection).get_table_names():
            raise InternalError(
                "the database holds other tables than this program's",
                "give the service a database of its own",
            )
        return
    try:
        ScriptDirectory.from_config(_config()).get_revision(revision)
    except CommandError as error:
        raise InternalError(
            f"the store was written by a newer version of this program (schema {revision})",
            "install that version, or restore a backup made before it",
        ) from error


def upgrade(connection: Connection) -> None:
    """Within the transaction that `connection` is in."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")

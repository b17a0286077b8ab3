"""From each older schema to the next, by Alembic, without a file of settings."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection


def known(revision: str) -> bool:
    """Whether it is one of these."""
    try:
        ScriptDirectory.from_config(_config()).get_revision(revision)
    except CommandError:
        return False
    return True


def run(connection: Connection, to: str = "head") -> None:
    """Those that are due, within the transaction that `connection` is in."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, to)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "cmdsvc.store:migrations")
    config.set_main_option("path_separator", "os")
    return config

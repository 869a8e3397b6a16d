"""What processes must share to find each other."""

from __future__ import annotations

from livetape.errors import ConfigError
from livetape.settings import Settings


def check_shared(settings: Settings, what: str, *, database: bool = True) -> None:
    """Refuse to start where others could not see what happens here. `what`: the command that needs it.

    Without `database` the database may be that of this process alone.

    Raises:
        ConfigError: no PostgreSQL, or no Redis.
    """
    alone = "or run everything in one process: livetape up"
    if database and settings.postgres_url is None:
        raise ConfigError(
            f"{what} needs a database that several processes share",
            because="the database is the SQLite file of the data folder, which belongs to one process",
            set_by="database",
            fix=f"set LIVETAPE_DATABASE=postgresql://USER@HOST/NAME; {alone}",
        )
    if not settings.is_distributed:
        raise ConfigError(
            f"{what} needs a Redis over which others see what happens",
            because="neither LIVETAPE_BUS nor REDIS_HOST is set",
            set_by="bus",
            fix=f"set LIVETAPE_BUS=redis://HOST:6379/0; {alone}",
        )

"""The folder of large values, by the settings."""

from __future__ import annotations

from typing import Final

from livetape.adapters.folder.blobs import FolderBlobs
from livetape.adapters.sql.memory import SqlMemory
from livetape.engine.large_values import BlobLimits, Keeping
from livetape.errors import BlobUnavailableError, ConfigError
from livetape.observability import get_logger
from livetape.settings import Settings

logger = get_logger(__name__)

NOBODY: Final = ""
IDENTITY: Final = "livetape:blobs"


def open_blobs(settings: Settings) -> Keeping:
    """Raises ConfigError when it cannot be written."""
    blobs = FolderBlobs(settings.blobs_dir)
    try:
        blobs.check()
    except BlobUnavailableError as error:
        raise ConfigError(
            f"cannot write to the folder of large values {settings.blobs_dir}",
            because=str(error.__cause__ or error),
            set_by="blobs",
            fix="make it writable for this user, or set LIVETAPE_BLOBS=file:///another/folder",
        ) from error
    engine = settings.engine
    return Keeping(blobs, BlobLimits(inline=engine.blob_bytes, execution=engine.blob_execution_bytes))


async def is_shared(settings: Settings, memory: SqlMemory) -> bool:
    """Whether this is the folder of those who used the database first; a warning says that it is not.

    Raises:
        StoreUnavailableError, BlobUnavailableError
    """
    mine = await FolderBlobs(settings.blobs_dir).identity()
    found, theirs = await memory.get(NOBODY, IDENTITY)
    if not found:
        await memory.set(NOBODY, IDENTITY, mine)
        _, theirs = await memory.get(NOBODY, IDENTITY)
    if theirs == mine:
        return True
    logger.warning(
        "%s is not the folder in which others on this database keep large values: what is kept in one is not found in "
        "the other. Set LIVETAPE_BLOBS=file:///folder to one that all of them see.",
        settings.blobs_dir,
        extra={"action": "blobs_apart"},
    )
    return False

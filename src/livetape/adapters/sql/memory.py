"""What blocks keep beyond their execution, in SQL."""

from __future__ import annotations

from typing import Any, Final

from pydantic_core import from_json, to_json
from sqlalchemy import Connection, insert, select, update

from livetape.adapters.sql.database import Database
from livetape.adapters.sql.tables import key_value
from livetape.clock import Clock, SystemClock
from livetape.errors import BlockExecutionError

MAX_BYTES: Final = 1024 * 1024


class SqlMemory:
    """The `Memory` of blocks: JSON values by user and key."""

    def __init__(self, database: Database, *, clock: Clock | None = None) -> None:
        self._database = database
        self._clock = clock or SystemClock()

    async def get(self, user_id: str, key: str) -> tuple[bool, Any]:
        """Whether there is one, and it."""
        if "\0" in key:
            return False, None
        query = select(key_value.c.value).where(key_value.c.user_id == user_id, key_value.c.key == key)
        found = await self._database.read(lambda db: db.execute(query).scalar())
        return (False, None) if found is None else (True, from_json(found))

    async def set(self, user_id: str, key: str, value: Any) -> None:
        """Keep it in place of what was there.

        Raises:
            BlockExecutionError: it is larger than 1 MiB as JSON, or its key cannot be kept.
        """
        if "\0" in key:
            raise BlockExecutionError("the key of a kept value has a zero character")
        body = to_json(value)
        if len(body) > MAX_BYTES:
            raise BlockExecutionError(f"a kept value of {len(body)} bytes; at most {MAX_BYTES} are kept")

        def unit(db: Connection) -> None:
            fields = {"value": body, "updated_at": self._clock.now()}
            same = (key_value.c.user_id == user_id) & (key_value.c.key == key)
            if not db.execute(update(key_value).where(same).values(fields)).rowcount:
                db.execute(insert(key_value), {"user_id": user_id, "key": key, **fields})

        await self._database.write(unit)

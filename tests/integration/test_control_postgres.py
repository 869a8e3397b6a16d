"""What the engine's tests of control, waits and recovery say holds on PostgreSQL too."""

from __future__ import annotations

from pathlib import Path

import pytest

from stage import POSTGRES_URL
from unit.engine.test_control import *  # noqa: F403
from unit.engine.test_diagnosis import *  # noqa: F403
from unit.engine.test_large_values import *  # noqa: F403
from unit.engine.test_recovery import *  # noqa: F403
from unit.engine.test_reviews import *  # noqa: F403
from unit.engine.test_waits import *  # noqa: F403

pytestmark = pytest.mark.needs("postgres")


@pytest.fixture(autouse=True)
def on_postgres(tmp_path: Path, postgres_url: str) -> None:
    (tmp_path / POSTGRES_URL).write_text(postgres_url)

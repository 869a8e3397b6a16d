"""Which variables of the worker's environment a block in a process of its own gets: a list of names. Pure.

Everything else stays with the worker: what is not known to be harmless may be a key (`PGPASSWORD`, `AWS_…`), or an
address with one in it (`HTTPS_PROXY`).
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Final

_SYSTEM: Final = frozenset(
    {
        "HOME",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",  # without it, some installations of Python do not start
        "LOGNAME",
        "PATH",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TMPDIR",
        "TZ",
        "TZDIR",
        "USER",
        "VIRTUAL_ENV",
    }
)
_WINDOWS: Final = frozenset(
    {"COMSPEC", "PATHEXT", "SYSTEMDRIVE", "SYSTEMROOT", "TEMP", "TMP", "USERNAME", "USERPROFILE", "WINDIR"}
)
_PYTHON: Final = frozenset(
    {
        "PYTHONDEVMODE",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONFAULTHANDLER",
        "PYTHONHASHSEED",
        "PYTHONHOME",
        "PYTHONIOENCODING",
        "PYTHONMALLOC",
        "PYTHONNOUSERSITE",
        "PYTHONOPTIMIZE",
        "PYTHONPATH",
        "PYTHONPLATLIBDIR",
        "PYTHONPYCACHEPREFIX",
        "PYTHONSAFEPATH",
        "PYTHONTZPATH",
        "PYTHONUNBUFFERED",
        "PYTHONUSERBASE",
        "PYTHONUTF8",
        "PYTHONWARNINGS",
    }
)
_GIVEN: Final = _SYSTEM | _PYTHON | (_WINDOWS if sys.platform == "win32" else frozenset())
_LOCALE: Final = "LC_"


def process_environment(environ: Mapping[str, str], more: Collection[str] = ()) -> dict[str, str]:
    """Of `environ` what every process needs to start and to find its files, and the names in `more`."""
    return {
        name: value for name, value in environ.items() if name in _GIVEN or name in more or name.startswith(_LOCALE)
    }

"""What a process is called where others see it: in leases and on a broker."""

from __future__ import annotations

import os
import secrets
import socket


def process_name() -> str:
    """A name that no other process has, and no later one will have."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

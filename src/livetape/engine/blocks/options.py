"""What the settings say to blocks that reach other machines."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Limits of HTTP requests. `allow`: host names, addresses and networks (`10.1.0.0/16`) that are no public ones and
    may be reached all the same. `max_bytes` of an answer, `timeout_s` for all of it with its redirects.
    """

    allow: tuple[str, ...] = ()
    max_bytes: int = 4 * 1024 * 1024
    timeout_s: float = 60.0
    max_redirects: int = 5


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The endpoint of language models: `base_url` as OpenAI's clients have it (`https://host/v1`).

    The one who runs livetape chooses it, so it may be on this machine. `api_key` goes there and nowhere else.
    `silence_s`: the endpoint may say nothing for so long.
    """

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    model: str | None = None
    silence_s: float = 60.0


@dataclass(frozen=True, slots=True)
class BlockOptions:
    """All of them."""

    requests: RequestOptions = RequestOptions()
    model: ModelOptions = ModelOptions()

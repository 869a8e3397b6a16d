"""Reading the `Accept` header. Pure."""

from __future__ import annotations


def quality(accept: str, media_type: str) -> float:
    """How much the client wants this media type, 0 to 1; wildcards count, the most exact range decides."""
    main_type = media_type.partition("/")[0]
    precision, value = -1, 0.0
    for media_range, q in _ranges(accept):
        rank = {media_type: 2, f"{main_type}/*": 1, "*/*": 0}.get(media_range, -1)
        if rank > precision:
            precision, value = rank, q
    return value


def asks_for(accept: str, media_type: str) -> bool:
    """Whether the client names exactly this media type and would take it."""
    return any(media_range == media_type and q > 0 for media_range, q in _ranges(accept))


def prefers_html(accept: str) -> bool:
    """Whether this is a browser that opens a page, not a program that wants data."""
    return asks_for(accept, "text/html") and quality(accept, "text/html") > quality(accept, "application/json")


def _ranges(accept: str) -> list[tuple[str, float]]:
    found = []
    for item in accept[:2000].split(","):
        media_range, *parameters = (part.strip().lower() for part in item.split(";"))
        if media_range:
            found.append((media_range, _weight(parameters)))
    return found


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 0.0
    return 1.0

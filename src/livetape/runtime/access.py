"""Who may come in, and how a gateway is set up: from the settings."""

from __future__ import annotations

from livetape.auth import Authenticator, OriginPolicy, TokenOptions, TokenVerifier
from livetape.gateway.options import GatewayOptions
from livetape.settings import Settings, is_loopback


def development_user(settings: Settings) -> bool:
    """Whether callers of this machine without a token are the development user."""
    return settings.enable_auth and settings.app_env == "local" and is_loopback(settings.host)


def authenticator(settings: Settings, key: str | None) -> Authenticator:
    """Checks tokens with this key, which is None only where auth is off."""
    verifier: TokenVerifier | None = None
    if settings.enable_auth and key is not None:
        verifier = TokenVerifier(TokenOptions(verify_key=key, algorithm=settings.jwt_sign_algorithm))
    return Authenticator(
        verifier,
        enable_auth=settings.enable_auth,
        dev_user=development_user(settings),
        allowed_hosts=settings.allowed_hosts,
        origins=OriginPolicy(settings.allowed_origins),
    )


def gateway_options(settings: Settings) -> GatewayOptions:
    """What the gateway is given of its settings."""
    known = settings.gateway.model_dump(include=set(GatewayOptions.model_fields))
    return GatewayOptions(**known)


def cors(settings: Settings) -> tuple[list[str], str | None]:
    """Exact origins, and one pattern for all others, as `CORSMiddleware` takes them."""
    exact = [origin for origin in settings.allowed_origins if not origin.startswith("regex:")]
    patterns = [origin.removeprefix("regex:") for origin in settings.allowed_origins if origin.startswith("regex:")]
    return exact, "|".join(f"(?:{pattern})" for pattern in patterns) or None

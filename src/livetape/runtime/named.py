"""Functions of others that the settings name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import Any

from livetape.errors import ConfigError


def named_function(source: str, what: str, *, setting: str) -> Callable[..., Any]:
    """The function `module:function`. `what` it is for: `the error hook`.

    Raises:
        ConfigError: there is none, or it cannot be imported or called.
    """
    module, _, name = source.partition(":")
    fix = f"correct LIVETAPE_{setting.upper()}"
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot load {what} {source}", because=str(error), set_by=setting, fix=fix) from error
    if not callable(found):
        raise ConfigError(f"{what} {source} cannot be called", because="it is no function", set_by=setting, fix=fix)
    return found


def made_by(source: str, what: str, *methods: str, setting: str) -> Any:
    """What the function `module:function` makes when it is called without arguments: it has these `async` methods.

    Raises:
        ConfigError: as `named_function`; or it fails, or makes something else.
    """
    make = named_function(source, what, setting=setting)
    fix = f"correct {source}: it takes no arguments and returns an object with "
    fix += " and ".join(f"async def {method}" for method in methods)
    try:
        made = make()
    except Exception as error:  # any code may stand there
        raise ConfigError(
            f"{what} {source} cannot be made", because=f"{type(error).__name__}: {error}", set_by=setting, fix=fix
        ) from error
    lacking = [method for method in methods if not iscoroutinefunction(getattr(made, method, None))]
    if lacking:
        because = f"{type(made).__name__} has no async def {' and no async def '.join(lacking)}"
        raise ConfigError(f"{what} {source} is none", because=because, set_by=setting, fix=fix)
    return made

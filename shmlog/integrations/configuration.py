"""Configuration: where to ship to, and the settings that are passed on to an engine's own library.

    nats://h1,h2:4223/STREAM?replicas=1       scheme, hosts, place, options
    [nats]                                    a TOML table for the library, as it names its settings
    user = "shipper"
    password = { file = "/run/secrets/nats" }       or { env = "NATS_PASSWORD" }

Secrets come from files or the environment.  A URL with a password in it is refused: others see it in
the list of processes.

This module knows words.  It may not know engines.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

SECRET_WORDS = (
    *("password", "token", "secret", "seed", "passphrase", "account_key", "sas_key"),
    *("authorization", "api-key", "api_key", "apikey", "cookie"),
)
"""A setting whose name has one of these is never written out in a file of settings."""


class Target(NamedTuple):
    """A URL of an engine, taken apart."""

    scheme: str
    hosts: list[str]
    place: str
    """stream, topic or key"""
    options: dict[str, str]


def refuse_secrets(url: str) -> None:
    """ValueError for a URL that names a user."""
    if "@" in urlsplit(url).netloc:
        raise ValueError("a URL must not hold a user or a password: --config names files with them")


def parse_url(url: str) -> Target:
    """ValueError, which does not show the URL, for one that names no place or holds a secret."""
    refuse_secrets(url)
    parts = urlsplit(url)
    place = parts.path.strip("/")
    if not parts.scheme or not parts.netloc or not place or "/" in place:
        raise ValueError("a URL is SCHEME://HOST[,HOST...]/PLACE[?OPTION=VALUE]")
    return Target(parts.scheme, parts.netloc.split(","), place, dict(parse_qsl(parts.query)))


def load(path: str | os.PathLike[str] | None) -> dict[str, Any]:
    """The tables of a TOML file, with what comes from files and the environment put in.

    ValueError for what is no TOML, a secret that is written out, or one that is not there; the message
    names the setting and never shows a value.
    """
    if path is None:
        return {}
    try:
        tables = tomllib.loads(Path(path).read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{os.fspath(path)} is no TOML: {error}") from error
    return {name: _resolved(name, value) for name, value in tables.items()}


def _resolved(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"file"}:
            try:
                return Path(value["file"]).read_text().rstrip("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{name}: {value['file']} cannot be read: {type(error).__name__}") from None
        if value.keys() == {"env"}:
            if value["env"] not in os.environ:
                raise ValueError(f"{name}: there is no {value['env']} in the environment")
            return os.environ[value["env"]]
        return {key: _resolved(f"{name}.{key}", inner) for key, inner in value.items()}
    word = name.rpartition(".")[2].lower()
    secret = name.endswith("key.pem") or any(secret in word for secret in SECRET_WORDS)
    if isinstance(value, str) and secret:
        raise ValueError(f'{name} is a secret: write {{ file = "..." }} or {{ env = "..." }}')
    return value

"""Masking of secrets in what a run writes down: command lines, addresses, arguments of callbacks."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

MASK = "***"

# the last word of a name that holds a secret, such as `api_key`, `--hf-token` or `WANDB_API_KEY`
_WORDS = frozenset(
    (
        "key",
        "apikey",
        "token",
        "secret",
        "password",
        "passwd",
        "passphrase",
        "pwd",
        "credential",
        "credentials",
        "auth",
        "authorization",
        "cookie",
    )
)
_LOGIN = re.compile(r"(?<=://)[^/\s@'\"]+@")  # `name:password@` in an address
_QUERY = re.compile(r"(?<=[?&])([^=&\s]+)=([^&\s'\"]+)")  # `?token=...` in an address
# the keys of common services, and long texts of letters and digits without a separator
_KEYS = re.compile(
    r"\b(?:(?:sk|pk|rk|glpat|xox[abprs])-[\w-]{12,}|(?:hf|gh[pousr]|github_pat|npm|pypi|r8|wandb_v1)_[\w-]{12,}|"
    r"(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}[\w.-]*|"
    r"(?=[A-Za-z0-9]*[0-9])(?=[A-Za-z0-9]*[A-Za-z])[A-Za-z0-9]{32,})\b"
)
_NUMBER = re.compile(r"[-+]?[\d.]+(?:e[-+]?\d+)?|true|false|none", re.IGNORECASE)


def is_secret_name(name: str) -> bool:
    """Returns whether a name is that of a secret.

    Example:
        >>> [name for name in ("--api-key", "hfToken", "num_tokens", "monkey", "PASSWORD") if is_secret_name(name)]
        ['--api-key', 'hfToken', 'PASSWORD']
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    parts = re.findall(r"[a-z0-9]+", words.lower())
    return bool(parts) and (parts[-1] in _WORDS or "".join(parts[-2:]) in _WORDS)


def mask_text(text: str) -> str:
    """Masks logins in addresses, and what looks like a key.

    Example:
        >>> mask_text("http://me:word@host/?token=abc&step=3")
        'http://***@host/?token=***&step=3'
    """
    text = _LOGIN.sub(f"{MASK}@", text)
    text = _QUERY.sub(lambda m: f"{m[1]}={MASK if is_secret_name(m[1]) else m[2]}", text)
    return _KEYS.sub(MASK, text)


def mask_value(name: str, value: Any) -> Any:
    """Masks a text whose name is that of a secret; other values are returned unchanged, texts after `mask_text`."""
    if not isinstance(value, str):
        return value
    if is_secret_name(name) and not _NUMBER.fullmatch(value) and value:
        return MASK
    return mask_text(value)


def mask_command(arguments: Sequence[str]) -> list[str]:
    """Masks the secrets in a command line: values of options that are named like one, and what looks like a key.

    Example:
        >>> mask_command(["train.py", "--api-key", "abc", "--hf_token=abc", "--steps", "3", "KEY=abc"])
        ['train.py', '--api-key', '***', '--hf_token=***', '--steps', '3', 'KEY=***']
    """
    return list(_masked(arguments))


def _masked(arguments: Sequence[str]) -> Iterable[str]:
    option = ""  # the option whose value comes next
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and re.fullmatch(r"[\w.+-]+", name):
            yield f"{name}={mask_value(name, value)}"
            option = ""
        elif argument.startswith("-") and len(argument) > 1 and not _NUMBER.fullmatch(argument):
            yield mask_text(argument)
            option = argument
        else:
            yield mask_value(option, argument)
            option = ""

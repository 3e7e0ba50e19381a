"""What a sink's settings say of addresses, and the key of its pseudonyms."""

import stat
from typing import Final

from conntrackd.config.options import SINK_OPTIONS
from conntrackd.config.read import Config
from conntrackd.errors import ConfigError
from conntrackd.files import KindError, read_file
from conntrackd.render.anonymize import SIDES, Anonymizer
from conntrackd.render.cryptopan import KEY_BYTES
from conntrackd.sinks.secrets import find_credential

CREDENTIAL: Final = "anonymize_key"
NO_LIBRARY: Final = "is pseudonym, and the Python package cryptography is missing"
INSTALL: Final = "apt install python3-cryptography (dnf on Fedora and RHEL)"
# More than a key has, so that the size of what is none can be named.
MOST_READ: Final = 4096


def read_anonymizer(config: Config, kind: str) -> Anonymizer | None:
    """None for a sink that writes addresses as they are. ConfigError where it cannot do otherwise."""
    options = SINK_OPTIONS[kind].anonymize
    if config[options.mode] == "none":
        return None
    found = Anonymizer(
        key=_read_key(config, kind) if config[options.mode] == "pseudonym" else b"",
        ipv4_bits=config[options.ipv4_bits],
        ipv6_bits=config[options.ipv6_bits],
        sides=SIDES[config[options.which]],
        only=config[options.only],
    )
    try:
        found.load()
    except ImportError as error:
        raise config.explain(options.mode, NO_LIBRARY, INSTALL) from error
    return found


def _read_key(config: Config, kind: str) -> bytes:
    """From the file, or from systemd's credential NAME.anonymize_key."""
    options = SINK_OPTIONS[kind].anonymize
    credential = f"{kind if config.sink is None else config.sink.name}.{CREDENTIAL}"
    path = config[options.key_file] or find_credential(credential)
    if path is None:
        setting = config.resolve(options.key_file).key
        hint = f"openssl rand -out FILE {KEY_BYTES}, then {setting}: FILE, or a credential {credential}"
        raise config.explain(options.mode, "is pseudonym, and there is no key", hint)
    try:
        key, status = read_file(path, MOST_READ)
    except KindError as error:
        raise _explain(config, kind, f"{path} {error}") from error
    except OSError as error:
        raise _explain(config, kind, f"cannot read {path}: {error.strerror}") from error
    if len(key) != KEY_BYTES:
        hint = f"openssl rand -out FILE {KEY_BYTES} makes one"
        raise _explain(config, kind, f"{path} has {len(key)} bytes, and a key has {KEY_BYTES}", hint)
    if status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        raise _explain(config, kind, f"{path} is open to every user", f"chmod o= '{path}'")
    return key


def _explain(config: Config, kind: str, message: str, hint: str = "") -> ConfigError:
    """At the setting of the file; where the key is a credential, at that of pseudonyms."""
    options = SINK_OPTIONS[kind].anonymize
    return config.explain(options.key_file if config[options.key_file] else options.mode, message, hint, ": ")

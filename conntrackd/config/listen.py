"""The types of metrics.listen and metrics.textfile: text -> value, with its limits and its mistakes."""

import re
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Final

from conntrackd.config.values import BadValueError, ValueType, parse_path, parse_text

MAX_SOCKET: Final = 107  # struct sockaddr_un, without the 0 at its end
PORTS: Final = range(1, 65_536)


def parse_listen(text: str) -> str:
    """ADDRESS:PORT with a literal address, or an absolute path as unix:///PATH."""
    if parse_text(text).startswith("unix:"):
        path = text.removeprefix("unix://")
        if not path.startswith("/") or len(path) < 2 or len(path.encode()) > MAX_SOCKET:
            raise BadValueError(text, f"has no path of up to {MAX_SOCKET} bytes: write unix:///PATH")
        return text
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})", text)
    try:
        address = ip_address(match[1] or match[2]) if match else None
    except ValueError:
        address = None
    if match is None or address is None or (address.version == 6) != (match[1] is not None):
        raise BadValueError(
            text, "is not a valid address to listen at", "such as 127.0.0.1:9477, [::1]:9477 or unix:///PATH"
        )
    if int(match[3]) not in PORTS:
        raise BadValueError(text, f"has a port that is not from {PORTS[0]} to {PORTS[-1]}")
    # As the C library writes it: Python 3.13 writes mapped addresses as others do, 3.11 does not.
    shown = inet_ntop(AF_INET6 if address.version == 6 else AF_INET, address.packed)
    return f"[{shown}]:{int(match[3])}" if address.version == 6 else f"{shown}:{int(match[3])}"


def parse_textfile(text: str) -> Path:
    """A path; node_exporter looks at no other names."""
    path = parse_path(text)
    if path.suffix != ".prom" or not path.stem:
        raise BadValueError(text, "does not end with .prom", "node_exporter reads no other files")
    return path


LISTEN: Final = ValueType(
    "ADDRESS", "ADDRESS:PORT, [ADDRESS]:PORT or unix:///PATH", lambda items: parse_listen(items[0])
)
TEXTFILE: Final = ValueType(
    "PATH", "a path that ends with .prom", lambda items: parse_textfile(items[0]), is_path=True
)

"""Syslog messages without their frames: RFC 5424, RFC 3164 and CEE."""

import os
import socket
from contextlib import suppress
from typing import Final

from conntrackd.config.options import FACILITIES
from conntrackd.render.fields import HEADS
from conntrackd.render.json import write_object
from conntrackd.render.template import JSON_SYNTAX, Syntax, Template, make_visible

APP_NAME: Final = "conntrackd"
# RFC 5612: the enterprise number that is reserved for examples; there is none of our own.
SD_ID: Final = "event@32473"
INFO, WARNING = 6, 4  # RFC 5424, 6.2.1
MAX_HOSTNAME: Final = 255
# Where a message's number comes when it is sent, and its order is known: a character that no message holds.
NUMBER: Final = "\0"


def escape_value(value: str) -> str:
    """RFC 5424, 6.3.3. Control characters become visible too: one line is one record."""
    return make_visible(value.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]"))


# PARAM-VALUE is always in quotes.
PARAMETERS: Final = Syntax(' {}="'.format, '"', ' {}="'.format, '"', escape_value)
SYNTAXES: Final = {"rfc5424": PARAMETERS, "rfc3164": PARAMETERS, "cee": JSON_SYNTAX}
BSD: Final = "<$priority>$bsd $origin$app[$pid]: "


def _write_text(form: str, names: frozenset[str] | None) -> str:
    """A message with these fields; None for all."""
    message = "$message" if names is None or "msg" in names else ""
    if form == "cee":
        return f"{BSD}@cee: {write_object(names)}"
    if form == "rfc3164":
        return f"{BSD}{message}$fields"
    data = f'[meta sequenceId="{NUMBER}"][{SD_ID}$fields]'
    return f"<$priority>1 $micros $host $app $pid $type {data} {message}".rstrip()


def _is_bare(form: str, names: frozenset[str] | None) -> bool:
    """Whether the fields have nothing before them that they are to be separated from."""
    heads = {"rfc5424": None, "rfc3164": {"msg"}, "cee": set(HEADS)}[form]
    return names is not None and heads is not None and not names & heads


def make_template(
    form: str,
    facility: str,
    host: str = "",
    pid: int = 0,
    *,
    is_local: bool = False,
    names: frozenset[str] | None = None,
) -> Template:
    """`is_local`: to a socket of this host, over which RFC 3164's messages carry no name of it.

    `names`: of the fields; None for all.
    """
    host = clean_name(host or socket.gethostname())
    # As syslog(3): rsyslog, syslog-ng and journald take what stands there for the program.
    origin = "" if is_local else f"{host} "
    own = {"host": host, "origin": origin, "app": APP_NAME, "pid": str(pid or os.getpid())}
    base = number_facility(facility) * 8
    return Template(
        _write_text(form, names),
        SYNTAXES[form],
        {**own, "priority": str(base + INFO), "level": "INFO"},
        {**own, "priority": str(base + WARNING), "level": "WARN"},
        fields=names,
        loss_text=_write_text(form, None),
        is_bare=_is_bare(form, names),
    )


def number_facility(name: str) -> int:
    """RFC 5424, 6.2.1. Between ftp (11) and local0 (16) are four that nobody sends events to."""
    index = FACILITIES.index(name)
    return index if index < FACILITIES.index("local0") else index + 4


def clean_name(host: str) -> str:
    """RFC 5424, 6: PRINTUSASCII, at most 255; `-` for none.

    A name in other letters becomes what DNS has for it (`xn--...`): with letters left out it would be the
    name of another machine.
    """
    with suppress(UnicodeError):
        host = host.encode("idna").decode()
    return "".join(char if "!" <= char <= "~" else "?" for char in host)[:MAX_HOSTNAME] or "-"

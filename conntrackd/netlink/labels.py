"""The names of conntrack labels, as /etc/xtables/connlabel.conf gives them."""

from pathlib import Path
from typing import Final

PATH: Final = Path("/etc/xtables/connlabel.conf")
MAX_LABELS: Final = 128
MAX_BYTES: Final = 1 << 16


def read_label_names() -> dict[int, str]:
    """Bit -> name; nothing where there is no such file. A name that would need quoting is passed over.

    A line is a number and a name; `#` begins a comment (libnetfilter_conntrack, src/conntrack/labels.c).
    """
    try:
        with PATH.open("rb") as file:
            text = file.read(MAX_BYTES).decode("ascii", "replace")
    except OSError:
        return {}
    names: dict[int, str] = {}
    for line in text.splitlines():
        number, _, name = line.partition("#")[0].strip().partition(" ")
        name = name.strip()
        if (
            number.isdecimal()
            and int(number) < MAX_LABELS
            and name
            and all(c.isalnum() or c in "_-." for c in name)
        ):
            names.setdefault(int(number), name)
    return names

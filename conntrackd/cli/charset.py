"""What is drawn where a character set lacks it: bars and marks of ASCII, a column for a column."""

import codecs
from typing import Final

ERRORS: Final = "conntrackd.drawn"
"""The name to encode with: as backslashreplace, but for what we draw."""
PLAIN: Final = dict(zip("▁▂▃▄▅▆▇█▏▎▍▌▋▊▉…", "_.-:=+*#---====~", strict=True))


def replace(error: UnicodeError) -> tuple[str, int]:
    """For codecs.register_error()."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    shown = (
        PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode() for character in text
    )
    return "".join(shown), error.end


codecs.register_error(ERRORS, replace)

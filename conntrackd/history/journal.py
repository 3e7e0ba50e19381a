"""Events in the systemd journal, through journalctl.

Not through python3-systemd: nothing here depends on it, a virtual environment does not have it, and
journalctl is there wherever the journal is. The simple parts of rules become matches, which the journal finds
by its index; what journalctl prints is evaluated by the rules all the same.

Its export form costs a third of its JSON, and to name our fields alone costs more than to print all.
"""

import os
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Final

from conntrackd.errors import DataError, NotPermittedError, UnavailableError
from conntrackd.filter.ast import Rule
from conntrackd.flow import NANO
from conntrackd.history.selection import HistorySelection, find_conditions
from conntrackd.render.journal import EVENT_ID, LOST_ID, SUPPRESSED_ID, WARNING
from conntrackd.render.parse import NAMES, Record, parse_text

# How much later than it happened an event may stand in the journal and still be found by --until: journald
# may be busy, or was restarted.
LATE_SECONDS: Final = 300
# Of all rules; journalctl allows more, but there is no gain in it.
MAX_MATCHES: Final = 256
PREFIX: Final = "EVENT_"
OWN: Final = {"level": "PRIORITY", "host": "_HOSTNAME", "msg": "MESSAGE"}
KEYS: Final = {name: OWN.get(name, f"{PREFIX}{name.upper()}").encode() for name in NAMES}
CURSOR: Final = b"__CURSOR"
# Of a field with its name. Ours are shorter; anybody may log an entry that looks like ours, of up to 768 MB.
MAX_LINE: Final = 4096
HINT: Final = "run it as root, such as with sudo; members of the groups systemd-journal and adm may, too"


class JournalSource:
    """What journalctl prints of the events; the journal of this machine, or in a directory."""

    def __init__(self, directory: str, selection: HistorySelection) -> None:
        self._directory = directory
        self._selection = selection
        self._cursor = b""
        """Of the newest entry that was read."""
        self._process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End journalctl, if it runs."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with process:
                pass

    def read(self) -> Iterator[Record]:
        """All that is wanted, oldest first."""
        return self._read(*self._list_bounds())

    def read_last(self, count: int) -> list[Record]:
        """The last so many of what is wanted, oldest first."""
        found: deque[Record] = deque()
        newest = b""
        for record in self._read("--reverse", *self._list_bounds()):
            newest = newest or self._cursor
            found.appendleft(record)
            if len(found) == count:
                break
        self.close()
        self._cursor = newest
        return list(found)

    def follow(self) -> Iterator[Record]:
        """What comes after what was read, without an end."""
        after = [f"--after-cursor={self._cursor.decode()}", "--lines=all"] if self._cursor else ["--lines=0"]
        return self._read("--follow", *after)

    def _list_bounds(self) -> list[str]:
        since, until = self._selection.span
        bounds = [] if since is None else [f"--since=@{since // NANO}"]
        return bounds + ([] if until is None else [f"--until=@{until // NANO + LATE_SECONDS}"])

    def _read(self, *arguments: str) -> Iterator[Record]:
        command = ["journalctl", "--no-pager", "--output=export", *arguments]
        command += [f"--directory={self._directory}"] if self._directory else []
        with tempfile.TemporaryFile() as errors:
            try:
                self._process = subprocess.Popen(
                    [*command, *list_matches(self._selection.rules)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0"},
                )
            except OSError as error:
                raise UnavailableError(
                    "journalctl cannot be started",
                    hint="the package systemd has it; --from file:PATH needs none",
                ) from error
            process = self._process
            try:
                assert process.stdout is not None
                yield from self._read_entries(process.stdout)
            finally:
                self.close()
            self._look_at(errors, process.returncode)

    def _read_entries(self, output: IO[bytes]) -> Iterator[Record]:
        for entry in read_export(output):
            try:
                self._cursor = entry[CURSOR]
                record = read_entry(entry)
                if self._selection.accepts(record):
                    yield record
            except DataError as error:
                self._selection.damage.add("journal", error)
            except (ValueError, KeyError):
                self._selection.damage.add("journal", DataError("this is not what journalctl prints"))

    def _look_at(self, errors: IO[bytes], status: int) -> None:
        """What journalctl wrote to stderr: that something is hidden, or that it failed."""
        errors.seek(0)
        text = errors.read(1 << 16).decode(errors="replace").strip()
        if "insufficient permissions" in text:
            raise NotPermittedError("you may not read the journal", hint=HINT)
        if "not seeing messages" in text:
            self._selection.damage.hidden = NotPermittedError("you see only a part of the journal", hint=HINT)
        if status > 0:
            last = text.splitlines()[-1:] or [f"exit status {status}"]
            raise UnavailableError(f"journalctl: {last[0]}")


def read_export(output: IO[bytes]) -> Iterator[dict[bytes, bytes]]:
    """Entries, with their fields of text: a line for each, and an empty one behind the last.

    Of what cannot be a line there is a line with the name, then the size and the value: none of ours is so.
    https://systemd.io/JOURNAL_EXPORT_FORMATS/
    """
    entry: dict[bytes, bytes] = {}
    while line := output.readline(MAX_LINE):
        name, is_text, value = line.partition(b"=")
        if line == b"\n":
            yield entry
            entry = {}
        elif not is_text:
            _skip(output, int.from_bytes(output.read(8), "little") + 1)
        elif line.endswith(b"\n"):
            entry[name] = value[:-1]
        else:
            while line and not line.endswith(b"\n"):
                line = output.readline(MAX_LINE)


def _skip(output: IO[bytes], size: int) -> None:
    while size > 0 and (part := output.read(min(size, MAX_LINE))):
        size -= len(part)


def read_entry(entry: Mapping[bytes, bytes]) -> Record:
    """An entry as journalctl prints it -> the record that the stream would have, with the host."""
    record = {name: parse_text(name, entry[key].decode()) for name, key in KEYS.items() if key in entry}
    record["level"] = "WARN" if record.get("level") == str(WARNING) else "INFO"
    return record


def list_matches(rules: Sequence[Rule]) -> list[str]:
    """The words for journalctl: reports, and the events that the rules can keep, or more than those."""
    wanted = find_conditions(rules)
    groups = [[f"MESSAGE_ID={EVENT_ID}"]] if wanted is None else []
    for condition in wanted or ():
        fields = [f"{PREFIX}{name.upper()}={value}" for name, values in condition.items() for value in values]
        groups.append([f"MESSAGE_ID={EVENT_ID}", *fields])
    if sum(map(len, groups)) > MAX_MATCHES:
        groups = [[f"MESSAGE_ID={EVENT_ID}"]]
    return [word for group in groups for word in (*group, "+")] + [
        f"MESSAGE_ID={LOST_ID}",
        f"MESSAGE_ID={SUPPRESSED_ID}",
    ]

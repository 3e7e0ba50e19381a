"""SINKS: the list of kinds, nothing else."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Protocol

from conntrackd.sinks.sink import Sink


class Settings(Protocol):
    """What is needed of a Config here."""

    def __getitem__(self, key: str, /) -> Any: ...  # noqa: ANN401  # a key's type is its option's


@dataclass(frozen=True, slots=True)
class SinkKind:
    """One kind of sink. Its module has the same name, and a function `create(config)`."""

    name: str

    def enabled(self, config: Settings) -> bool:
        """Whether the configuration asks for it."""
        return bool(config[f"sink.{self.name}.enable"])

    def create(self, config: Settings) -> Sink[Any]:
        """A sink, not yet open. ConfigError when a setting cannot be used.

        The module is imported here and not above: urllib3 and libsystemd cost memory that only those pay who
        enabled the sink, and python-systemd may be missing where journald is.
        """
        sink: Sink[Any] = import_module(f"conntrackd.sinks.{self.name}").create(config)
        return sink


SINKS: Final = tuple(map(SinkKind, ("stream", "journal", "syslog", "loki")))

"""SINKS: the list of kinds, and how a sink of each is made; list_sinks(): those that a configuration has."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple

from conntrackd.config import options
from conntrackd.config.option import Option
from conntrackd.config.options import SINK_OPTIONS, SinkOptions, SpoolOptions
from conntrackd.config.read import Config
from conntrackd.config.together import find_spool, has_receipts
from conntrackd.delivery.sink import Sink
from conntrackd.delivery.spool import Spool
from conntrackd.delivery.store import Store
from conntrackd.errors import ConfigError
from conntrackd.files import MADE, KindError, check_folder


@dataclass(frozen=True, slots=True)
class SinkKind:
    """One kind of sink. Its module has the same name, and a function `create(config)`.

    Of a configuration it sees the settings of one sink: Config.view().
    """

    name: str
    shared: tuple[Option[object], ...] = ()
    """What its records have of the settings that belong to no sink: a change of them makes the sink anew."""
    acknowledges: Callable[[Config], bool] = lambda _: True
    """Whether its receiver says what has arrived, with these settings: else keeping it makes no sense."""

    @property
    def options(self) -> SinkOptions:
        """Its settings that other kinds have, too."""
        return SINK_OPTIONS[self.name]

    @property
    def spool(self) -> SpoolOptions | None:
        """Those of its spool, where it can have one."""
        return self.options.spool

    @property
    def filter(self) -> Option[tuple[str, ...]]:
        """The rules of its own."""
        return self.options.filter

    def enabled(self, config: Config) -> bool:
        """Whether the configuration asks for it."""
        return config[self.options.enable]

    def create(self, config: Config) -> Sink:
        """A sink, not yet open. ConfigError when a setting cannot be used.

        The module is imported here and not above: ssl costs memory that only those pay who
        enabled the sink.
        """
        sink: Sink = import_module(f"conntrackd.sinks.{self.name}").create(config)
        return sink

    def gains_spool(self, old: Config, new: Config) -> bool:
        """Whether it can use a spool with the new settings, and could not with the old ones."""
        return self.spool is not None and self.acknowledges(new) and not self.acknowledges(old)

    def find_spool(self, config: Config) -> Path | None:
        """Where its spool is, where it has one: as set, or in the state directory."""
        if self.spool is None or not self.acknowledges(config):
            return None
        return find_spool(config, self.spool.path, self.name)

    def open_spool(self, config: Config) -> Store | None:
        """Its spool, where it has one. ConfigError as Spool says, and where its directory cannot be made."""
        directory = self.find_spool(config)
        if self.spool is None or directory is None:
            return None
        origin = config.locate(self.spool.path if config[self.spool.path] else options.STATE_DIRECTORY)
        try:
            with suppress(OSError):  # what it says then is better
                check_folder(directory)
            # Its files have the kind's name: one of another kind could not send what is in them.
            name = self.name if config.sink is None else config.sink.name
            return Spool(directory, self.name, config[self.spool.size], name)
        except KindError as error:
            raise ConfigError(f"{directory}: {error}", origin=origin, hint=MADE) from error
        except ConfigError as error:
            error.origin = origin
            raise


SINKS: Final = (
    SinkKind("stream", shared=(options.HOST,)),
    SinkKind("journal"),
    SinkKind("syslog", shared=(options.HOST,), acknowledges=has_receipts),
    SinkKind("loki", shared=(options.HOST,)),
)


class ConfiguredSink(NamedTuple):
    """A sink as the configuration has it, enabled or not: `config` shows the kind its settings."""

    name: str
    kind: SinkKind
    config: Config

    @property
    def is_enabled(self) -> bool:
        """Whether the configuration asks for it."""
        return self.kind.enabled(self.config)

    def list_options(self) -> list[Option[object]]:
        """Its settings."""
        if self.config.sink is not None:
            return list(self.config.sink.options.values())
        return [option for option in options.OPTIONS if self.owns(option)]

    def owns(self, option: Option[object]) -> bool:
        """Whether the option is one of its settings."""
        return option.key.startswith(self.prefix)

    def uses(self, option: Option[object]) -> bool:
        """Whether a change of the option makes it anew: not one of its filter, which the core applies."""
        if option.key == self.config.resolve(self.kind.filter).key:
            return False
        return self.owns(option) or option in self.kind.shared

    @property
    def prefix(self) -> str:
        """What the keys of its settings begin with."""
        return f"sink.{self.name}." if self.config.sink is None else self.config.sink.prefix


def list_sinks(config: Config) -> list[ConfiguredSink]:
    """All of them: the one of each kind, and those that are named, in their order."""
    kinds = {kind.name: kind for kind in SINKS}
    return [ConfiguredSink(name, kinds[kind], view) for name, kind, view in config.list_views()]


def find_sink(config: Config, name: str) -> ConfiguredSink | None:
    """The one of this name."""
    return next((sink for sink in list_sinks(config) if sink.name == name), None)

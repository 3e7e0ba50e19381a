"""What is written of events: conntrack.records and community_id, as the settings have them."""

from dataclasses import dataclass

from conntrackd.config import options
from conntrackd.config.read import Config
from conntrackd.config.together import list_identified
from conntrackd.errors import ConntrackdError
from conntrackd.flow import EventType
from conntrackd.netlink import tracking
from conntrackd.netlink.namespace import enter


@dataclass(frozen=True, slots=True)
class Records:
    """What becomes of what the rules keep. By value: the same settings are the same records."""

    of_events: bool = True
    """Whether each event is written. Else the rules evaluate DESTROY events alone."""
    of_flows: bool = False
    """Whether each DESTROY is written as a FLOW, too."""
    remembered: int = 0
    """How many flows' beginnings are remembered at most. 0 where none is: the kernel reports them."""


def choose_records(config: Config) -> Records:
    """As configured, and as the kernel is set now; to see that, this thread enters its namespace."""
    wanted = config[options.CONNTRACK_RECORDS]
    if wanted == "events":
        return Records()
    remembered = 0 if _is_start_reported(config) else config[options.CONNTRACK_FLOWS_MAX]
    return Records(wanted == "both", True, remembered)


def list_types(config: Config) -> int:
    """The types that rules evaluate, EventType bits: ALIVE is one where flows have heartbeats."""
    is_alone = config[options.CONNTRACK_RECORDS] == "flows"
    types = EventType.DESTROY if is_alone else config[options.CONNTRACK_EVENTS]
    return int(types if config[options.CONNTRACK_HEARTBEAT] is None else types | EventType.ALIVE)


def _is_start_reported(config: Config) -> bool:
    """Whether DESTROY has the time when the flow began. Of a recording nobody knows."""
    if config[options.CONNTRACK_REPLAY] is not None:
        return False
    try:
        with enter(config[options.CONNTRACK_NETNS]):
            return tracking.read_setting("nf_conntrack_timestamp") == 1
    except ConntrackdError:  # whoever listens there says what is wrong
        return False


def choose_community_seeds(config: Config) -> tuple[int | None, dict[str, int]]:
    """That of all records, None where nobody asks for Community IDs; by name that of sinks that do."""
    seed = config[options.COMMUNITY_ID_SEED]
    return seed if config[options.COMMUNITY_ID_ENABLE] else None, dict.fromkeys(list_identified(config), seed)

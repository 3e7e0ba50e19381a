"""What is written of events: conntrack.records and community_id, as the settings have them."""

from conntrackd.config import options
from conntrackd.config.read import Config


def find_community_seed(config: Config) -> int | None:
    """None where no Community ID is asked for."""
    return config[options.COMMUNITY_ID_SEED] if config[options.COMMUNITY_ID_ENABLE] else None

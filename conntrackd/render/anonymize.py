"""What a sink writes in place of addresses: some bits less, or a pseudonym.

Nothing here runs for an event: the engine asks once for each address that it does not know.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from conntrackd.filter.fields import name_network
from conntrackd.flow import Flow
from conntrackd.render.cryptopan import CryptoPan

IPV4_BYTES: Final = 4
# enum of core/anonymize.h
SOURCE: Final = 1
DESTINATION: Final = 2
SIDES: Final = {"source": SOURCE, "destination": DESTINATION, "both": SOURCE | DESTINATION}
PLACES: Final = {
    "src": SOURCE,
    "dst": DESTINATION,
    # Replies come from the destination after its translation, and go to the source after its own.
    "reply_src": DESTINATION,
    "reply_dst": SOURCE,
    "master_src": SOURCE,
    "master_dst": DESTINATION,
}
"""Each attribute of Flow that is an address, and whose."""


# No slots: cached_property keeps the cipher in the object's dictionary.
@dataclass(frozen=True)
class Anonymizer:
    """Two that are equal write the same. `key` is that of pseudonyms; without one, bits are cut off."""

    key: bytes = field(default=b"", repr=False)
    ipv4_bits: int = 8
    ipv6_bits: int = 80
    sides: int = SOURCE | DESTINATION
    only: str = "all"

    def write(self, addresses: Sequence[bytes]) -> list[bytes]:
        """What stands for each of them, in their order; those that are not meant stay as they are."""
        meant = [address for address in addresses if self._is_meant(address)]
        if not meant:
            return list(addresses)
        written = self._pseudonyms.write(meant) if self.key else map(self._truncate, meant)
        known = dict(zip(meant, written, strict=True))
        return [known.get(address, address) for address in addresses]

    @cached_property
    def _pseudonyms(self) -> CryptoPan:
        return CryptoPan(self.key)

    def load(self) -> None:
        """ImportError where there is no library for pseudonyms."""
        if self.key:
            _ = self._pseudonyms

    def _is_meant(self, address: bytes) -> bool:
        return self.only == "all" or name_network(address) == self.only.upper()

    def _truncate(self, address: bytes) -> bytes:
        bits = self.ipv4_bits if len(address) == IPV4_BYTES else self.ipv6_bits
        return (int.from_bytes(address) >> bits << bits).to_bytes(len(address))


def conceal(flow: Flow, anonymizer: Anonymizer) -> Flow:
    """What is shown of a flow: the reference of core/anonymize.c.

    An address that is concealed at one place of a record is so at each: side by side they would give it away.
    """
    addresses = {name: getattr(flow, name) for name in PLACES if getattr(flow, name)}
    hidden = {address for name, address in addresses.items() if PLACES[name] & anonymizer.sides}
    chosen = {name: address for name, address in addresses.items() if address in hidden}
    written: dict[str, Any] = dict(zip(chosen, anonymizer.write(list(chosen.values())), strict=True))
    return replace(flow, **written)

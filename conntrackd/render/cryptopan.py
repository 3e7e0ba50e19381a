"""Crypto-PAn: pseudonyms of addresses that keep prefixes, by a key.

J. Xu, J. Fan, M. Ammar, S. Moon: Prefix-Preserving IP Address Anonymization (ICNP 2002). Two addresses have
as many first bits in common as their pseudonyms, and no more. IPv6 addresses go the same way, with their 128
bits in place of the first 32 of a block, as in other programs.
"""

from collections.abc import Iterator, Sequence
from typing import Final

KEY_BYTES: Final = 32
BLOCK: Final = 16
BITS: Final = 8 * BLOCK
# The first bit of a byte, as a digit.
FIRST_BIT: Final = bytes(ord("1" if byte & 0x80 else "0") for byte in range(256))


class CryptoPan:
    """Half of the key is that of AES; the other half is encrypted, and fills the blocks up."""

    def __init__(self, key: bytes) -> None:
        """ImportError without the library."""
        # 8 MiB, for those alone who ask for it.
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: PLC0415

        # Each block alone is what the paper asks for: it is a function of the prefix, not a text.
        self._cipher = Cipher(algorithms.AES(key[:BLOCK]), modes.ECB())  # noqa: S305
        pad = int.from_bytes(self._encrypt(key[BLOCK:KEY_BYTES]))
        # For each bit of an address: which bits stand before it, and what fills the block up.
        self._before = [(1 << BITS) - (1 << BITS - bit) for bit in range(BITS)]
        self._fill = [pad & ~mask for mask in self._before]

    def _encrypt(self, blocks: bytes) -> bytes:
        encrypted: bytes = self._cipher.encryptor().update(blocks)
        return encrypted

    def write(self, addresses: Sequence[bytes]) -> list[bytes]:
        """The pseudonym of each, of 4 or 16 bytes."""
        # Each bit is turned round, or not, by the first bit of a block that holds those before it. All blocks
        # of all addresses are encrypted in one call, of which each costs more than a hundred blocks.
        encrypted = self._encrypt(b"".join(self._list_blocks(addresses)))
        digits, found, at = encrypted[::BLOCK].translate(FIRST_BIT), [], 0
        for address in addresses:
            end = at + 8 * len(address)
            turned = int(digits[at:end], 2)
            found.append((int.from_bytes(address) ^ turned).to_bytes(len(address)))
            at = end
        return found

    def _list_blocks(self, addresses: Sequence[bytes]) -> Iterator[bytes]:
        for address in addresses:
            value, bits = int.from_bytes(address.ljust(BLOCK, b"\0")), 8 * len(address)
            for mask, fill in zip(self._before[:bits], self._fill[:bits], strict=True):
                yield (value & mask | fill).to_bytes(BLOCK)

"""The settings by which a sink writes something else in place of addresses: the same for each kind."""

from typing import NamedTuple

from conntrackd.config.option import File, Option
from conntrackd.config.values import PATH, count, one_of


class AnonymizeOptions(NamedTuple):
    """Those of one kind, in their order."""

    mode: Option[str]
    which: Option[str]
    only: Option[str]
    ipv4_bits: Option[int]
    ipv6_bits: Option[int]
    key_file: Option[File]


def make_anonymize(kind: str) -> AnonymizeOptions:
    """Those of this kind."""
    key = f"sink.{kind}.anonymize"
    modes = one_of("none", "truncate", "pseudonym")
    which, only = one_of("both", "source", "destination"), one_of("all", "private", "public")
    return AnonymizeOptions(
        Option(key, modes, "none", "Write addresses cut short, or a pseudonym of each"),
        Option(f"{key}_which", which, "both", "Whose addresses to anonymize"),
        Option(f"{key}_only", only, "all", "Networks whose addresses to anonymize, as rules name them"),
        Option(f"{key}_ipv4_bits", count(1, 32), 8, "Last bits of IPv4 addresses that truncate sets to 0"),
        Option(f"{key}_ipv6_bits", count(1, 128), 80, "Last bits of IPv6 addresses that truncate sets to 0"),
        Option[File](
            f"{key}_key_file",
            PATH,
            None,
            "File with the 32 bytes of the key of pseudonyms",
            example=f"/etc/conntrackd/{kind}.key",
            secret=True,
        ),
    )

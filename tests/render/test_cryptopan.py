"""Crypto-PAn: the sample that its authors published with it, and what it promises of prefixes."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrackd.render.cryptopan import CryptoPan

# Key, raw trace and sanitized trace of the authors' distribution.
KEY = bytes.fromhex("1522178d33a4cf80130a5b1649907d10d8988f837979652762574c2d2a842202")
SAMPLE = {
    "128.11.68.132": "135.242.180.132",
    "129.118.74.4": "134.136.186.123",
    "130.132.252.244": "133.68.164.234",
    "141.223.7.43": "141.167.8.160",
    "152.163.225.39": "151.140.114.167",
    "192.102.249.13": "252.138.62.131",
    "205.188.147.153": "242.96.16.101",
    "205.188.248.25": "242.96.88.27",
    "24.0.250.221": "100.15.198.226",
    "4.3.88.225": "124.60.155.63",
    "64.14.118.196": "0.255.183.58",
    "10.185.25.118": "117.161.29.118",
    # The paper has no IPv6; these are what other programs have for the same key.
    "::1": "78ff:f001:9fc0:20df:8380:b1f1:704:ed",
    "::2": "78ff:f001:9fc0:20df:8380:b1f1:704:ef",
    "::ffff": "78ff:f001:9fc0:20df:8380:b1f1:704:f838",
    "2001:db8::1": "4401:2bc:603f:d91d:27f:ff8e:e6f1:dc1e",
    "2001:db8::2": "4401:2bc:603f:d91d:27f:ff8e:e6f1:dc1c",
}
pan = CryptoPan(KEY)


def count_common_bits(one: bytes, other: bytes) -> int:
    difference = int.from_bytes(one) ^ int.from_bytes(other)
    return 8 * len(one) - difference.bit_length()


def test_the_published_sample_is_written_as_it_is_published() -> None:
    written = pan.write([ip_address(text).packed for text in SAMPLE])

    assert dict(zip(SAMPLE, (str(ip_address(found)) for found in written), strict=True)) == SAMPLE


@pytest.mark.parametrize("size", [4, 16])
@given(data=st.data())
def test_pseudonyms_have_as_many_first_bits_in_common_as_the_addresses(
    size: int, data: st.DataObject
) -> None:
    one = data.draw(st.binary(min_size=size, max_size=size))
    bit = data.draw(st.integers(0, 8 * size - 1))
    other = (int.from_bytes(one) ^ 1 << bit).to_bytes(size)

    written = pan.write([one, other])

    assert count_common_bits(*written) == count_common_bits(one, other)
    assert pan.write([other, one]) == written[::-1]


def test_another_key_has_other_pseudonyms() -> None:
    addresses = [ip_address(text).packed for text in SAMPLE]

    assert not set(CryptoPan(KEY[::-1]).write(addresses)) & set(pan.write(addresses))

"""config/listen.py: where metrics may be."""

from pathlib import Path

import pytest

from conntrackd.config.listen import LISTEN, TEXTFILE
from conntrackd.config.values import BadValueError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("127.0.0.1:9477", "127.0.0.1:9477"),
        ("0.0.0.0:09477", "0.0.0.0:9477"),
        ("[::1]:65535", "[::1]:65535"),
        ("[0:0::1]:1", "[::1]:1"),
        ("[::ffff:c000:201]:80", "[::ffff:192.0.2.1]:80"),
        ("unix:///run/conntrackd/metrics.sock", "unix:///run/conntrackd/metrics.sock"),
        (f"unix:///{'x' * 106}", f"unix:///{'x' * 106}"),
    ],
)
def test_an_address_is_read(text: str, value: str) -> None:
    assert LISTEN.parse([text]) == value
    assert LISTEN.parse([value]) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9477", "is not a valid address to listen at"),
        (":9477", "is not a valid address to listen at"),
        ("127.0.0.1", "is not a valid address to listen at"),
        ("localhost:9477", "is not a valid address to listen at"),
        ("::1:9477", "is not a valid address to listen at"),
        ("[127.0.0.1]:9477", "is not a valid address to listen at"),
        ("127.0.0.256:9477", "is not a valid address to listen at"),
        ("http://127.0.0.1:9477", "is not a valid address to listen at"),
        ("127.0.0.1:0", "has a port that is not from 1 to 65535"),
        ("127.0.0.1:65536", "has a port that is not from 1 to 65535"),
        ("unix:metrics.sock", "has no path of up to 107 bytes: write unix:///PATH"),
        ("unix:///", "has no path of up to 107 bytes: write unix:///PATH"),
        (f"unix:///{'x' * 107}", "has no path of up to 107 bytes: write unix:///PATH"),
        ("", "is empty"),
    ],
)
def test_what_is_not_an_address_is_reported(text: str, message: str) -> None:
    with pytest.raises(BadValueError) as caught:
        LISTEN.parse([text])

    assert caught.value.message == message


def test_a_file_has_the_name_that_node_exporter_reads() -> None:
    assert TEXTFILE.parse(["/run/conntrackd/conntrackd.prom"]) == Path("/run/conntrackd/conntrackd.prom")
    for text in ("/run/metrics", "/run/metrics.txt", "/run/.prom"):
        with pytest.raises(BadValueError, match="does not end with"):
            TEXTFILE.parse([text])

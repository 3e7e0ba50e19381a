"""top and stats --watch on real terminals of several sizes, and what they leave behind."""

import json
import signal
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conntrackd.cli.columns import cut, lay_out, measure, pad, shorten
from conntrackd.cli.screen import ENTER, LEAVE
from conntrackd.cli.stats import BARS, History, render_sparkline
from conntrackd.cli.talkers import SORTS, Ranking, Talkers
from tests.bus.private import PrivateBus, Served
from tests.cli.teller import Teller
from tests.cli.terminal import Terminal
from tests.live.daemon import ctl_command

pytestmark = pytest.mark.privileged

LONG: Final = "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff"
RECORDS: Final[tuple[dict[str, Any], ...]] = (
    {"type": "DESTROY", "prot": "TCP", "src": LONG, "dport": 443, "city": "北京", "bytes": 5 << 30},
    {"type": "DESTROY", "prot": "TCP", "src": "10.0.0.9", "dport": 80, "city": "Nürnberg", "bytes": 2000},
    {"type": "NEW", "prot": "UDP", "src": "10.0.0.10", "dport": 53, "city": "\033[2Jevil"},
    {"type": "NEW", "prot": "UDP", "src": "10.0.0.10", "dport": 53, "city": "\033[2Jevil"},
)
SIZES: Final = pytest.mark.parametrize("size", [(80, 24), (200, 50)], ids=["80", "200"])


@pytest.fixture
def talking(served: Served) -> Served:
    """A daemon with a tail that goes on after these records."""
    assert isinstance(served.control, Teller)
    served.control.text = b"".join(json.dumps(record).encode() + b"\n" for record in RECORDS)
    served.control.is_endless = True
    return served


def start(bus: PrivateBus, size: tuple[int, int], *words: str, **environ: str) -> Terminal:
    return Terminal(ctl_command(*words), size, DBUS_SYSTEM_BUS_ADDRESS=bus.address, **environ)


def list_keys(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines[2:5]]


@SIZES
def test_top_keeps_its_shape_and_obeys_keys(size: tuple[int, int], bus: PrivateBus, talking: Served) -> None:
    with start(
        bus, size, "top", "--by", "src,dport,city", "log type NEW", "--filter", "drop any"
    ) as terminal:
        # The line below the rows is drawn last.
        lines = terminal.wait(lambda lines: "4 events" in lines[0] and lines[5].startswith("sort:"))
        assert talking.control.asked == [("open_tail", ("drop any", "log type NEW"), 0)]
        assert lines[1].split()[-4:] == ["EVENTS", "EVENTS/S", "BYTES", "BYTES/S"]
        # Each number ends below its heading, behind three addresses where there is room for them.
        edge = min(size[0], 3 * (39 + 2) + 41 - 2)
        for row in range(1, 5):
            assert [terminal.has_end(row, edge - 1 - before) for before in (0, 11, 22, 32)] == [True] * 4
        assert lines[2].startswith(f"{LONG} " if size[0] == 200 else LONG[:6])
        assert f"{LONG[-4:]} " in lines[2]  # what it differs in
        assert "\\x1b[2Jevil" in lines[4]
        assert lines[5].startswith("sort: b bytes")

        # A view may come in parts, the line that says its order first.
        terminal.press("k")
        terminal.wait(
            lambda lines: "sorted by key" in lines[0] and list_keys(lines)[:2] == ["10.0.0.9", "10.0.0.10"]
        )
        terminal.press("R")
        terminal.wait(
            lambda lines: "reversed" in lines[0] and list_keys(lines)[1:] == ["10.0.0.10", "10.0.0.9"]
        )
        terminal.press("\033[A><<")  # an arrow is not the letter in it
        terminal.wait(lambda lines: "by events/s" in lines[0] and list_keys(lines)[2] == "10.0.0.10")

        terminal.press("q")
        assert terminal.finish() == 0
        assert terminal.is_restored()
        last = terminal.sent.partition(LEAVE.encode())[2].decode()
        assert "4 events" in last
        assert "q quit" not in last
        assert b"\033[2J" not in terminal.sent, "what is cleared flickers"


def test_a_view_follows_the_size_of_its_terminal(bus: PrivateBus, talking: Served) -> None:
    with start(bus, (80, 24), "top", "--by", "flow", "--interval", "999") as terminal:
        terminal.wait(lambda lines: len(lines[1]) == 80)
        terminal.resize(120, 10)
        terminal.wait(lambda lines: len(lines[1]) == 120)
        terminal.resize(40, 4)
        terminal.wait(lambda lines: len(lines[1]) == 40 and lines[2].startswith("sort:"))


@SIZES
def test_counters_have_a_course(size: tuple[int, int], bus: PrivateBus, served: Served) -> None:
    served.control.counters |= {"buffer_bytes": 1 << 26}
    with start(bus, size, "stats", "--watch") as terminal:
        lines = terminal.wait(lambda lines: {"▁", "█"} <= set("".join(lines)))
        rows = {line.split()[0]: line for line in lines if line}
        assert set(rows["events_received_total"].split()[-1]) == {"▁"}
        assert set(rows["buffer_bytes"].split()[-1]) == {"█"}
        assert rows["COUNTER"].split() == ["COUNTER", "VALUE", "PER", "SECOND"]
        terminal.press("\x03")
        assert terminal.finish() == 0
        assert terminal.is_restored()


@pytest.mark.parametrize(
    ("send", "status"), [("\x03", 0), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGTSTP, 0)], ids=str
)
def test_whatever_ends_or_stops_it_gives_the_terminal_back(
    send: str | signal.Signals, status: int, bus: PrivateBus, talking: Served
) -> None:
    with start(bus, (80, 24), "top") as terminal:
        terminal.wait(lambda lines: "events" in lines[0])
        if isinstance(send, str):
            terminal.press(send)
        else:
            terminal.process.send_signal(send)
        if send is signal.SIGTSTP:  # the kernel stops nobody whom no shell could continue
            terminal.wait(lambda _: terminal.sent.count(ENTER.encode()) == 2)
            terminal.press("q")
        assert terminal.finish() == status
        assert terminal.is_restored()
        assert terminal.sent.count(LEAVE.encode()) == terminal.sent.count(ENTER.encode()) > 0
        assert b"Traceback" not in terminal.sent


@pytest.mark.parametrize("words", [["top", "-n", "1"], ["stats", "--watch", "-n", "2"]], ids=" ".join)
def test_a_terminal_that_can_nothing_gets_views_one_below_the_other(
    words: list[str], bus: PrivateBus, talking: Served
) -> None:
    with start(bus, (80, 24), *words, TERM="dumb") as terminal:
        assert terminal.finish() == 0
        assert b"\033" not in terminal.sent
        heading = b"EVENTS/S" if words[0] == "top" else b"PER SECOND"
        assert terminal.sent.count(heading) == int(words[-1])


# ---- parts --------------------------------------------------------------------------------------------


def test_an_order_is_of_any_column_and_rates_of_the_last_interval() -> None:
    talkers = Talkers("src", "dport")
    ranking = Ranking(talkers, "bytes", 0.0)
    for number, size in ((9, 50), (10, 100), (10, 0)):
        talkers.add({"type": "DESTROY", "src": f"10.0.0.{number}", "dport": 80, "bytes": size})
    ranking.tick(2.0)
    talkers.add({"type": "DESTROY", "src": "10.0.0.9", "dport": 80, "bytes": 30})
    ranking.tick(4.0)

    nine, ten = ranking.list(5)[::-1]
    assert nine == (("10.0.0.9", "80"), 2, 0.5, 80, 15.0)
    assert ten == (("10.0.0.10", "80"), 2, 0.0, 100, 0.0)
    orders = {}
    for ranking.sort in SORTS:
        ranking.is_reversed = False
        orders[ranking.sort] = ranking.list(5)[0]
        ranking.is_reversed = True
        assert ranking.list(5)[-1] == orders[ranking.sort]
    assert orders == {"bytes": ten, "bytes/s": nine, "events": ten, "events/s": nine, "key": nine}


def test_a_sparkline_goes_from_0_to_its_largest() -> None:
    history = History()
    for value in (0, 1, 50, 100):
        history.add({"a": value})

    assert render_sparkline(history.list("a"), 9) == "▁▂▅█"
    assert render_sparkline(history.list("a"), 2) == "▅█"
    assert (render_sparkline([0.0, 0.0], 9), render_sparkline(history.list("b"), 9)) == ("▁▁", "")
    assert len(BARS) == 8


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(), st.text(), st.from_regex(r"[0-9]{1,9}", fullmatch=True)), min_size=1))
def test_no_text_breaks_the_columns(rows: list[tuple[str, str, str]]) -> None:
    lines = list(lay_out(rows, 60, numbers=(2,), full=60))
    most = max(sum(map(measure, row)) for row in lay_out(rows, None, numbers=(2,)))

    assert {measure(line) for line in lines} == {60}
    assert {measure(line) for line in lay_out(rows, 60, numbers=(2,), full=50)} == {min(60, max(50, most))}
    assert [line.rsplit(maxsplit=1)[-1] for line in lines] == [row[2] for row in rows]
    for make in (cut, shorten):
        assert all(measure(pad(make(row[0], 20), 20)) == 20 for row in rows)

"""Sets that change at run time: what is in them, for how long, who follows; and the answers."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from conntrackd import live_sets
from conntrackd.daemon import Daemon, Sources
from conntrackd.engine import Engine
from conntrackd.errors import ConfigError, ConntrackdError, ManyErrors, UsageError
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.grammar import parse_rules
from conntrackd.metrics.flows import FlowMetric
from conntrackd.tails import Tail
from tests.filter.strategies import make_set
from tests.sinks.flows import make_flows
from tests.test_pipeline import make_pipeline
from tests.test_sink_filters import Gathering, process

LASTS = "until a reload or restart"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a configuration with two sets."""
    (tmp_path / "bad.txt").write_text("10.0.0.0/8\n10.1.0.1\n192.0.2.7\n192.0.2.7\n")
    (tmp_path / "own.txt").write_text("")
    (tmp_path / "conntrackd.yaml").write_text(
        "sets: {bad: bad.txt, own: own.txt}\n"
        "filter: [drop port 1, log source address @bad]\n"
        "sink.stream: {enable: true, writer: discard, filter: [drop not address @BAD]}\n"
    )
    return tmp_path


@pytest.fixture
def daemon(folder: Path) -> Daemon:
    return Daemon(Sources(environ={"CONNTRACKD_BUS_ENABLE": "no"}, etc=folder))


def do(*steps: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What they give, one after the other, in one loop."""

    async def run() -> list[Any]:
        return [await step() for step in steps]

    return asyncio.run(run())


def add(
    daemon: Daemon, *texts: str, name: str = "bad", seconds: int = 0
) -> Callable[[], Awaitable[list[str]]]:
    return lambda: daemon.control.add_to_set(name, list(texts), seconds)


def remove(
    daemon: Daemon, *texts: str, name: str = "bad", seconds: int = 0
) -> Callable[[], Awaitable[list[str]]]:
    return lambda: daemon.control.remove_from_set(name, list(texts), seconds)


def show(daemon: Daemon, name: str = "bad", after: str = "") -> Callable[[], Awaitable[list[Any]]]:
    async def read() -> list[Any]:
        return [(entry.text, entry.change) for entry in await daemon.control.show_set(name, after)]

    return read


# -- what is in them


def test_a_change_is_of_the_file_and_never_in_it(daemon: Daemon, folder: Path) -> None:
    before = (folder / "bad.txt").read_bytes()
    *_, shown = do(
        add(daemon, "192.0.2.8", "2001:db8::/32", "10.2.0.0/16"),
        remove(daemon, "192.0.2.7", "10.0.0.0/8"),
        show(daemon, "@BAD"),
    )
    (status, other) = daemon.live_sets.list_statuses()

    assert shown == [
        ("10.0.0.0/8", "removed"),
        ("10.1.0.1", ""),
        ("10.2.0.0/16", "added"),
        ("192.0.2.7", "removed"),
        ("192.0.2.8", "added"),
        ("2001:db8::/32", "added"),
    ]
    assert (status.entries, status.added, status.removed, status.expires_s) == (4, 3, 2, 0)
    assert status.uses == ("rule 2", "rule 1 of sink stream")
    assert (other.name, other.path, other.entries, other.uses) == ("own", str(folder / "own.txt"), 0, ())
    assert daemon.live_sets.list_changed() == ["bad"]
    (explained,) = do(lambda: daemon.control.explain_filter([]))
    assert "@bad (4 entries)" in explained
    in_force = daemon.live_sets.in_force["bad"]
    # What was within the network that is removed is there again.
    assert [bytes([10, 1, 0, last]) in in_force for last in (1, 2)] == [True, False]
    assert (folder / "bad.txt").read_bytes() == before


def test_what_is_there_already_or_is_not_gets_a_kind_answer_and_the_rest_is_done(daemon: Daemon) -> None:
    answers = do(
        add(daemon, "192.0.2.7", "192.0.2.8", "192.0.2.8", "::1", "::2", "::3"),
        remove(daemon, "192.0.2.9", "10.9.0.0/16", "192.0.2.8", "192.0.2.7"),
        add(daemon, "192.0.2.7", seconds=60),
        add(daemon, "192.0.2.7"),
        add(daemon, "::1", name="own", seconds=60),
        add(daemon, "::1", name="own", seconds=3600),
        remove(daemon, "10.1.0.1"),
    )

    assert answers == [
        [f"added to @bad {LASTS}: 192.0.2.8, ::1, ::2 and 1 more", "192.0.2.7 is in @bad already"],
        [
            f"removed from @bad {LASTS}: 192.0.2.7",
            "removed from @bad again, as its file has it: 192.0.2.8",
            "192.0.2.9 is not in @bad",
            "10.9.0.0/16 stays in @bad as a part of 10.0.0.0/8, which can be removed",
        ],
        ["added to @bad again, as its file has it: 192.0.2.7"],
        ["192.0.2.7 is in @bad already"],
        ["added to @own for 60 s: ::1", "no rule in force names @own"],
        ["added to @own for 3600 s: ::1", "no rule in force names @own"],
        [
            f"removed from @bad {LASTS}: 10.1.0.1",
            "10.1.0.1 stays in @bad as a part of 10.0.0.0/8, which can be removed",
        ],
    ]


@pytest.mark.parametrize(
    ("step", "message", "hint"),
    [
        (lambda daemon: add(daemon, "::1", name="bax"), "there is no set 'bax'", "did you mean bad?"),
        (lambda daemon: show(daemon, "x\n"), r"there is no set 'x\n'", "sets: bad, own"),
        (
            lambda daemon: lambda: daemon.control.reload_sets(["own", "x"]),
            "there is no set 'x'",
            "sets: bad, own",
        ),
        (
            lambda daemon: add(daemon, "::1", "10.0.0.1/8"),
            "'10.0.0.1/8' has host bits set under its prefix length",
            "did you mean 10.0.0.0/8?",
        ),
        (
            lambda daemon: remove(daemon, "192.0.2.7", "one"),
            "'one' is not a valid address",
            "IPv4 or IPv6, with or without a prefix length",
        ),
        (add, "there is no address to add or remove", "such as 192.0.2.7 or 2001:db8::/32"),
    ],
)
def test_a_mistake_changes_nothing(daemon: Daemon, step: Any, message: str, hint: str) -> None:
    before = daemon.live_sets.in_force
    with pytest.raises((UsageError, ManyErrors)) as caught:
        do(step(daemon))

    (error,) = caught.value.errors if isinstance(caught.value, ManyErrors) else (caught.value,)
    assert (error.message, error.hint, error.exit_status) == (message, hint, 64)
    assert daemon.live_sets.in_force is before


def test_so_many_entries_may_differ_from_the_files_and_no_more(
    daemon: Daemon, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_sets, "MAX_CHANGES", 3)
    do(add(daemon, "::1", name="own"), remove(daemon, "192.0.2.7"))
    with pytest.raises(
        UsageError, match="more than 3 addresses and networks would be added or removed"
    ) as caught:
        do(add(daemon, "::1", "::2"))
    assert caught.value.hint == f"change {folder}/bad.txt, then: conntrackctl set reload bad"
    assert [(found.added, found.removed) for found in daemon.live_sets.list_statuses()] == [(0, 1), (1, 0)]
    do(add(daemon, "192.0.2.7"), add(daemon, "::1", "::2"))
    assert [(found.added, found.removed) for found in daemon.live_sets.list_statuses()] == [(2, 0), (1, 0)]


def test_pages_are_bounded_and_together_all_of_it(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_sets, "MAX_PAGE", 2)
    do(add(daemon, "::1", "192.0.2.8", "192.0.2.6"), remove(daemon, "192.0.2.7"))
    pages: list[list[Any]] = [do(show(daemon))[0]]
    while pages[-1]:
        pages += do(show(daemon, after=pages[-1][-1][0]))

    assert [len(page) for page in pages] == [2, 2, 2, 0]
    assert list(chain(*pages)) == do(lambda: show_all(daemon, monkeypatch))[0]
    assert [text for text, _ in list(chain(*pages))] == [
        *("10.0.0.0/8", "10.1.0.1", "192.0.2.6", "192.0.2.7", "192.0.2.8", "::1")
    ]


async def show_all(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(live_sets, "MAX_PAGE", 100)
    found: list[Any] = await show(daemon)()
    return found


def test_of_many_rules_that_name_a_set_some_are_shown(folder: Path) -> None:
    rules = ", ".join(f"log address @own and port {port}" for port in range(1, 12))
    text = (folder / "conntrackd.yaml").read_text()
    text = text.replace("filter: [drop port 1,", f"filter: [{rules},")
    metrics = "metrics.flows: ['{name: a, by: [destination.port], where: log address @bad}']\n"
    (folder / "conntrackd.yaml").write_text(text + metrics)
    daemon = Daemon(Sources(environ={"CONNTRACKD_BUS_ENABLE": "no"}, etc=folder))
    (bad, own) = daemon.live_sets.list_statuses()

    assert bad.uses == ("rule 12", "rule 1 of sink stream", "metric a")
    assert own.uses == (*(f"rule {number}" for number in range(1, 9)), "3 more")


# -- files


def test_one_set_is_read_anew_and_nothing_else_is_touched(daemon: Daemon, folder: Path) -> None:
    (folder / "bad.txt").write_text("::1\n")
    (folder / "own.txt").write_text("::2\n::3\n")
    (folder / "conntrackd.yaml").write_text("filter: [nonsense]\n")
    filters = daemon.filter, dict(daemon.sink_filters.in_force), daemon.pipeline.tables[0].filter
    first, second, third, *_, shown = do(
        add(daemon, "::7", name="own"),
        add(daemon, "::7"),
        lambda: daemon.control.reload_sets(["@own"]),
        show(daemon, "own"),
        show(daemon),
    )
    again = do(lambda: daemon.control.reload_sets([]), show(daemon), lambda: daemon.control.reload_sets([]))

    assert (first[0], second[0]) == (f"added to @own {LASTS}: ::7", f"added to @bad {LASTS}: ::7")
    assert third == ["set @own (2 entries) has changed"]
    assert shown[-1] == ("::7", "added")  # of the other set what was changed stays
    assert again == [["set @bad (1 entry) has changed"], [("::1", "")], ["nothing has changed"]]
    assert filters == (daemon.filter, daemon.sink_filters.in_force, daemon.pipeline.tables[0].filter)
    assert daemon.live_sets.list_changed() == []


def test_files_with_mistakes_change_no_set(
    daemon: Daemon, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do(add(daemon, "::7"))
    before = daemon.live_sets.in_force
    (folder / "own.txt").write_text("::1\n")
    (folder / "bad.txt").write_text("10.0.0.1\nnonsense\n10.0.0.2/8\n")
    with pytest.raises(ManyErrors) as caught:
        do(lambda: daemon.control.reload_sets([]))
    assert [error.origin for error in caught.value.errors] == [f"{folder}/bad.txt:2", f"{folder}/bad.txt:3"]
    (folder / "bad.txt").unlink()
    with pytest.raises(ConntrackdError, match=r"conntrackd.yaml:1: sets: bad: .*bad.txt: No such file"):
        do(lambda: daemon.control.reload_sets(["bad"]))
    monkeypatch.setattr(live_sets, "MAX_ENTRIES", 4)  # all of which bad has
    with pytest.raises(ConntrackdError, match=r"own\.txt:1: more than 1,000,000 addresses"):
        do(lambda: daemon.control.reload_sets(["own"]))

    assert daemon.live_sets.in_force is before


def test_of_files_that_are_read_together_one_may_have_the_room_that_another_gives_up(
    daemon: Daemon, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_sets, "MAX_ENTRIES", 4)
    (folder / "bad.txt").write_text("::1\n")
    (folder / "own.txt").write_text("::2\n::3\n::4\n")
    (lines,) = do(lambda: daemon.control.reload_sets(["own", "bad"]))

    assert lines == ["set @bad (1 entry) has changed", "set @own (3 entries) has changed"]


@pytest.mark.parametrize("method", ["reload", "reload_filter"])
def test_a_reload_ends_what_was_changed_and_one_that_fails_does_not(
    daemon: Daemon, folder: Path, method: str
) -> None:
    text = (folder / "conntrackd.yaml").read_text()
    do(add(daemon, "::7"))
    (folder / "conntrackd.yaml").write_text("filter: [nonsense]\n")
    with pytest.raises((ConfigError, ManyErrors)):
        do(getattr(daemon.control, method))
    assert daemon.live_sets.list_changed() == ["bad"]
    (folder / "conntrackd.yaml").write_text(text)
    (lines,) = do(getattr(daemon.control, method))

    assert daemon.live_sets.list_changed() == []
    assert daemon.live_sets.in_force["bad"].entries == 4
    assert ("set @bad (4 entries) has changed" in lines) is (method == "reload")


# -- for a time


def test_what_is_for_a_time_ends_by_itself_and_the_rest_stays(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> tuple[list[Any], ...]:
        loop = asyncio.get_running_loop()
        ended, set_sets, now = asyncio.Event(), daemon.pipeline.set_sets, [loop.time()]

        def set_and_tell(sets: Any) -> None:
            set_sets(sets)
            ended.set()

        monkeypatch.setattr(daemon.pipeline, "set_sets", set_and_tell)
        monkeypatch.setattr(loop, "time", lambda: now[0])
        await add(daemon, "::1", "::2", seconds=60)()
        await remove(daemon, "192.0.2.7", seconds=60)()
        await add(daemon, "::2", "::3")()
        await add(daemon, "::4", seconds=62)()
        left = daemon.live_sets.list_statuses()[0].expires_s
        ended.clear()
        now[0] += 61.5
        await asyncio.wait_for(ended.wait(), 10)
        return [left], await show(daemon)()

    left, shown = asyncio.run(run())

    assert left == [60]
    assert shown == [
        ("10.0.0.0/8", ""),
        ("10.1.0.1", ""),
        ("192.0.2.7", ""),
        ("::2", "added"),
        ("::3", "added"),
        ("::4", "added"),
    ]


def test_an_end_that_fails_is_tried_again(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        open_sets, asked, ended = daemon.engine.open_sets, list[object](), asyncio.Event()

        def fail_once(sets: Any) -> Any:
            asked.append(sets)
            if len(asked) == 1:
                raise MemoryError
            loop.call_soon_threadsafe(ended.set)
            return open_sets(sets)

        await add(daemon, "::1", seconds=60)()
        monkeypatch.setattr(daemon.engine, "open_sets", fail_once)
        monkeypatch.setattr(live_sets, "GATHER_SECONDS", 0.0)
        now = loop.time()
        monkeypatch.setattr(loop, "time", lambda: now + 61)
        await asyncio.wait_for(ended.wait(), 10)
        async with daemon.control.turn:
            return

    asyncio.run(run())

    assert daemon.live_sets.list_statuses()[0].added == 0
    assert "retrying their end in 1 s" in caplog.text


# -- who follows


def test_all_filters_follow_with_their_next_batch_and_go_on_counting(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = {"bad": make_set("bad"), "gone": make_set("gone", "10.0.0.0/8")}

    def parse(*texts: str) -> Any:
        return parse_rules([RuleText(text) for text in texts], sets)

    outboxes = [Gathering("stream"), Gathering("loki")]
    rules = parse("drop source address @bad", "log source address @gone", "drop any")
    pipeline = make_pipeline(engine, outboxes, rules, {"loki": parse("drop destination address @bad")})
    tail = SimpleNamespace(rules=[engine.compile_table(parse("log address @bad", "drop any"))])
    series = SimpleNamespace(count=lambda batch, events: None)
    metric = SimpleNamespace(
        series=series, tables=[engine.compile_table(parse("log address @bad", "drop any"))]
    )
    pipeline.flow_metrics = (cast(FlowMetric, metric),)
    pipeline.tails.wanting = (cast(Tail, tail),)
    shown: list[int] = []
    monkeypatch.setattr(pipeline.tails, "put", lambda tail, rendered: shown.append(rendered.events))
    flows = make_flows(2, first=1)  # from 10.0.0.1 and .2 to 192.0.2.1

    process(pipeline, flows)
    for texts in (("10.0.0.1",), ("192.0.2.0/24",), ("2001:db8::1",)):
        pipeline.set_sets(engine.open_sets({"bad": make_set("bad", *texts)}))
        process(pipeline, flows)

    assert outboxes[0].flows == [1, 2, 2, 1, 2, 1, 2]
    assert outboxes[1].flows == [1, 2, 2, 1, 2]
    assert shown == [2]
    assert pipeline.tables[0].filter.counts == [0, 1, 7, 0]
    assert pipeline.tables[0].sinks["loki"].counts == [5, 2]
    assert tail.rules[0].counts == metric.tables[0].counts == [0, 2, 5]


def test_a_batch_is_decided_by_the_sets_of_before_or_of_after(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the old set for the global rules and the new one for the others there would be an event."""
    sets = {"bad": make_set("bad", "192.0.2.1")}
    outbox, shown = Gathering("loki"), list[int]()
    rules, own = (parse_rules([RuleText(text)], sets) for text in ("log any", "drop address @bad"))
    pipeline = make_pipeline(engine, [outbox], rules, {"loki": own})
    pipeline.tails.wanting = (cast(Tail, SimpleNamespace(rules=[engine.compile_table(own)])),)
    monkeypatch.setattr(pipeline.tails, "put", lambda tail, rendered: shown.append(rendered.events))
    pipeline.set_sets(engine.open_sets(sets))
    decide = engine.decide

    def change_and_decide(*arguments: Any, **named: Any) -> bytes:
        pipeline.set_sets(engine.open_sets({"bad": make_set("bad")}))
        return decide(*arguments, **named)

    monkeypatch.setattr(engine, "decide", change_and_decide)
    process(pipeline, make_flows(2))
    first = [*outbox.flows, *shown]
    process(pipeline, make_flows(2))

    assert (first, outbox.flows, shown) == ([], [0, 1], [2])

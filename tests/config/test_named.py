"""Sinks with names of their own: where their settings come from, and what is said of mistakes in them."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pytest

from conntrackd.cli.render import SAMPLE_SINKS
from conntrackd.config import named, options
from conntrackd.config.document import MAX_NODES, read_document
from conntrackd.config.option import Option
from conntrackd.config.options import OPTIONS
from conntrackd.config.read import Config, changed, check_sinks, read_config, read_fragment, stands_alone
from conntrackd.config.values import FLAG
from conntrackd.errors import ConfigError, ManyErrors
from conntrackd.sink_changes import adopt, describe
from conntrackd.sink_changes import check_sinks as check_running
from conntrackd.sinks import find_sink, list_sinks
from conntrackd.sinks.loki import read_settings

ROOT: Final = Path(__file__).parents[2]
KIND_HINT: Final = "one of stream, journal, syslog, loki"
OUTPUT_HINT: Final = "hint: each sink needs an output of its own"
NAMING: Final = "use up to 32 lower-case letters, digits and - between them, such as audit"


def read(
    etc: Path,
    text: str = "",
    flags: Mapping[str, Sequence[str]] | None = None,
    environ: Mapping[str, str] | None = None,
    **drop_ins: str,
) -> Config:
    (etc / "conntrackd.yaml").write_text(text)
    (etc / "conntrackd.d").mkdir(exist_ok=True)
    for name, more in drop_ins.items():
        (etc / "conntrackd.d" / f"{name}.yaml").write_text(more)
    return read_config(flags or {}, environ or {}, etc=etc)


def list_mistakes(etc: Path, *arguments: Any, **more: Any) -> list[str]:
    with pytest.raises((ConfigError, ManyErrors)) as caught:
        read(etc, *arguments, **more)
    errors = caught.value.errors if isinstance(caught.value, ManyErrors) else (caught.value,)
    return [str(error).replace(f"{etc}/conntrackd", "c") for error in errors]


def test_a_named_sink_has_every_setting_of_its_kind_and_its_defaults(tmp_path: Path) -> None:
    config = read(tmp_path, "".join(f"sinks.the-{kind}.kind: {kind}\n" for kind in named.KINDS))
    own = {kind: config.view(f"the-{kind}") for kind in named.KINDS}
    of_sinks = [option for option in OPTIONS if option.key.startswith("sink.")]

    assert named.KINDS == ("stream", "journal", "syslog", "loki")
    for option in of_sinks:
        kind = option.key.split(".")[1]
        is_switch = option.key.endswith(".enable")
        assert own[kind][option] == (True if is_switch else config[option]), option.key
        assert own[kind].resolve(option).key == option.key.replace(f"sink.{kind}.", f"sinks.the-{kind}.")
        assert not own[kind].is_set(option)
    with pytest.raises(KeyError):  # and never one of the sink that has the kind's name
        _ = own["loki"][options.SINK_SYSLOG_ADDRESS]


@pytest.mark.parametrize("kind", named.KINDS)
def test_values_are_read_as_those_of_the_kinds_own_sink(kind: str, tmp_path: Path) -> None:
    for end, option in named.SETTINGS[kind].items():
        value = option.default_text or option.example
        spelled = "- " + value.splitlines()[0] if option.kind.separator == "\n" else value
        plain = read_fragment(_write(tmp_path, f"sink.{kind}.{end}: \n  {spelled}\n")).config
        own = read_fragment(
            _write(tmp_path, f"sinks: {{x: {{kind: {kind}}}}}\nsinks.x.{end}: \n  {spelled}\n")
        )

        assert own.mistakes == (), end
        view = own.config.view("x")
        assert view[option] == plain[option], end
        assert (view.origin(option), plain.origin(option)) == (f"{tmp_path}/f.yaml:2", f"{tmp_path}/f.yaml:1")


def _write(folder: Path, text: str) -> Path:
    path = folder / "f.yaml"
    path.write_text(text)
    return path


def test_kinds_agree_on_how_a_setting_that_they_share_is_written() -> None:
    for end in {end for own in named.SETTINGS.values() for end in own}:
        shared = [own[end] for own in named.SETTINGS.values() if end in own]
        assert len({(option.kind is FLAG, option.kind.separator) for option in shared}) == 1, end


def test_no_two_settings_of_sinks_share_a_variable() -> None:
    # Or `a-tls` with `ca` could be taken for `a` with `tls.ca`: a name may end as a setting does.
    ends = {end.replace(".", "_") for own in named.SETTINGS.values() for end in own} | {"kind"}

    assert [(end, rest) for end in ends for rest in ends if end != rest and end.endswith(f"_{rest}")] == []


def test_drop_ins_environment_and_command_line_go_over_the_file_key_by_key(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "sinks: {audit: {address: 'http://a', tenant: one}, b: {kind: stream}}\nsinks.b.writer: discard",
        {"sinks.audit.queue": ["7"], "sinks.c.kind": ["journal"], "sinks.c.enable": ["no"]},
        {"CONNTRACKD_SINKS_AUDIT_TENANT": "three", "CONNTRACKD_SINKS_A_B_KIND": "stream"},
        x="sinks: {audit: {kind: loki, tenant: two, batch_wait: 5s}}\nsinks.a-b.writer: stderr",
    )
    audit = config.view("audit")

    assert [(sink.name, sink.kind.name, sink.is_enabled) for sink in list_sinks(config)][4:] == [
        *(("audit", "loki", True), ("b", "stream", True), ("a-b", "stream", True)),
        ("c", "journal", False),
    ]
    assert (audit[options.SINK_LOKI_ADDRESS], audit[options.SINK_LOKI_TENANT]) == ("http://a", "three")
    assert (audit[options.SINK_LOKI_QUEUE], audit[options.SINK_LOKI_BATCH_WAIT]) == (7, 5.0)
    assert audit.locate(options.SINK_LOKI_TENANT) == "CONNTRACKD_SINKS_AUDIT_TENANT"
    assert (
        audit.locate(options.SINK_LOKI_BATCH_WAIT)
        == f"{tmp_path}/conntrackd.d/x.yaml:1: sinks.audit.batch_wait"
    )
    assert audit.locate(options.SINK_LOKI_QUEUE) == "--sinks.audit.queue"
    assert audit.locate(options.SINK_LOKI_TLS.ca) == "sinks.audit.tls.ca"
    check_sinks(config)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("conntrackd.json", '{"sinks": {"audit": {"kind": "loki", "labels": ["a=b"]}}}'),
        ("conntrackd.toml", '[sinks.audit]\nkind = "loki"\nlabels = ["a=b"]'),
    ],
)
def test_json_and_toml_name_sinks_too(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)

    assert read_config({}, {}, etc=tmp_path).view("audit")[options.SINK_LOKI_LABELS] == (("a", "b"),)


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        (
            "sinks: {a: {kind: loki, adress: x}}",
            ["unknown key 'sinks.a.adress'\nhint: did you mean sinks.a.address?"],
        ),
        (
            "sinks: {a: {kind: loki, tls: {caa: x}}}",
            ["unknown key 'sinks.a.tls.caa'\nhint: did you mean sinks.a.tls.ca?"],
        ),
        (
            "sinks: {a: {kind: stream, zzzz: x}}",
            [
                "unknown key 'sinks.a.zzzz'\n"
                "hint: valid keys: kind, enable, writer, queue, filter, fields, schema, anonymize, "
                "anonymize_which, anonymize_only, anonymize_ipv4_bits, anonymize_ipv6_bits, "
                "anonymize_key_file"
            ],
        ),
        (
            "sinks: {a: {kind: loki, facility: user}}",
            ["sinks.a.facility is a setting of syslog\nhint: the kind of sink a is loki"],
        ),
        (
            "sinks: {a: {kind: journal, address: x}}",
            ["sinks.a.address is a setting of syslog and loki\nhint: the kind of sink a is journal"],
        ),
        (
            "sinks: {a: {kind: lokki, address: x, qeueu: 5}}",
            [
                f"sinks.a.kind: 'lokki' is not {KIND_HINT}\nhint: did you mean loki?",
                "unknown key 'sinks.a.qeueu'\nhint: did you mean sinks.a.queue?",
            ],
        ),
        ("sinks: {a: {}}", [f"sinks.a: has no kind\nhint: add sinks.a.kind: {KIND_HINT}"]),
        (
            "sinks.a: {}\nsinks: {b: {kind: loki}}",
            [f"sinks.a: has no kind\nhint: add sinks.a.kind: {KIND_HINT}"],
        ),
        ("sinks: {a: {address: x}}", [f"sinks.a: has no kind\nhint: add sinks.a.kind: {KIND_HINT}"]),
        (
            "sinks: {a: , c: {kind: }}",
            [f"sinks.c.kind: has no value\nhint: set it to {KIND_HINT}, or remove the key"],
        ),
        ("sinks: {a: {knid: loki}}", ["unknown key 'sinks.a.knid'\nhint: did you mean sinks.a.kind?"]),
        ("sinks: {a: loki}", ["sinks.a: is a section and has no value of its own\nhint: its keys are: kind"]),
        (
            "sinks: [a]",
            [
                "sinks: is a section and has no value of its own\n"
                "hint: its keys are names of sinks: sinks.audit.kind: loki"
            ],
        ),
        (
            "sinks: {loki: {kind: loki}}",
            ["sinks: 'loki' is the name of a kind\nhint: did you mean sink.loki?"],
        ),
        ("sinks: {Audit: {kind: loki}}", [f"sinks: 'Audit' is not a valid name of a sink\nhint: {NAMING}"]),
        ("sinks: {a_b: {kind: loki}}", [f"sinks: 'a_b' is not a valid name of a sink\nhint: {NAMING}"]),
        ("sinks: {a-: {kind: loki}}", [f"sinks: 'a-' is not a valid name of a sink\nhint: {NAMING}"]),
        ("sinks: {a/b: {kind: loki}}", [f"sinks: 'a/b' is not a valid name of a sink\nhint: {NAMING}"]),
        (
            f"sinks: {{{'a' * 33}: {{kind: loki}}}}",
            [f"sinks: '{'a' * 33}' is not a valid name of a sink\nhint: {NAMING}"],
        ),
        (
            "sinks: {kernel: {kind: loki}}",
            [f"sinks: 'kernel' is what LOST records call another place\nhint: {NAMING}"],
        ),
        (
            "sink: {audit: {kind: loki}}",
            [
                "unknown key 'sink.audit'\nhint: valid keys: stream, journal, syslog, loki; "
                "those with names of their own stand in sinks"
            ],
        ),
        ("sinks: {a: {kind: loki, kind: stream}}", ["sinks.a.kind: is given twice\nhint: first in c.yaml:1"]),
        (
            "sinks: {a: {kind: stream, fields: dpotr, queue: none}}",
            [
                "sinks.a.fields: 'dpotr' is not a field of a record\nhint: did you mean dport?",
                "sinks.a.queue: 'none' is not a whole number",
            ],
        ),
        # What contradicts each other, by the names that stand there.
        (
            "sinks: {a: {kind: loki, password_file: x}}",
            ["sinks.a.password_file has no effect alone\nhint: set sinks.a.username too"],
        ),
        (
            "sinks: {a: {kind: loki, token_file: x, username: y}}",
            ["sinks.a.token_file and sinks.a.username exclude each other"],
        ),
        (
            "sinks: {a: {kind: syslog, tls: {ca: x}}}",
            ["sinks.a.tls.ca has no effect on udp://localhost:514\nhint: use an address with tls://"],
        ),
        (
            "sinks: {a: {kind: syslog, format: rfc3164, fields: src}}",
            [
                "sinks.a.fields leaves out time: it stands in the header of the message\n"
                "hint: it has to be written: add time, or remove -time"
            ],
        ),
        # Two that cannot be together.
        (
            "sinks: {a: {kind: stream}, b: {kind: stream}}",
            [f"sinks.b.writer is stdout, and so is sinks.a.writer\n{OUTPUT_HINT}"],
        ),
        (
            "sinks: {a: {kind: stream}}\nsink.stream.enable: true",
            [f"sinks.a.writer is stdout, and so is sink.stream.writer\n{OUTPUT_HINT}"],
        ),
        (
            "sinks: {a: {kind: stream, writer: 'file:///tmp/a%20b'}}\n"
            "sinks.b: {kind: stream, writer: 'file:///tmp//./a b'}",
            [
                "sinks.b.writer is file:///tmp//./a b, and so is sinks.a.writer\n"
                "hint: each sink needs an output of its own"
            ],
        ),
        (
            "sinks: {a: {kind: loki, spool: /tmp/s}}\n"
            "sinks.b: {kind: syslog, address: 'tcp://x', spool: /tmp/../tmp/s}",
            [
                "sinks.b.spool is /tmp/../tmp/s, and so is sinks.a.spool\n"
                "hint: each sink needs a directory of its own"
            ],
        ),
        (
            "state_directory: /var/x\nsinks: {a: {kind: loki}}\n"
            "sink.loki: {enable: true, spool: /var/x/sink-a}",
            [
                "sinks.a.spool is /var/x/sink-a, and so is sink.loki.spool\n"
                "hint: each sink needs a directory of its own"
            ],
        ),
    ],
)
def test_a_mistake_is_reported_with_where_it_stands_and_what_was_meant(
    text: str, mistakes: list[str], tmp_path: Path
) -> None:
    found = list_mistakes(tmp_path, text)

    assert [line.split(": ", 1)[1] if line.startswith("c.yaml:") else line for line in found] == mistakes


@pytest.mark.parametrize(
    ("flags", "environ", "mistake"),
    [
        (
            {"sinks.a.queue": ["1"]},
            {},
            f"--sinks.a.queue: sinks.a: has no kind\nhint: add sinks.a.kind: {KIND_HINT}",
        ),
        ({"sinks.a.kind": ["x"]}, {}, f"--sinks.a.kind: 'x' is not {KIND_HINT}"),
        ({}, {"CONNTRACKD_SINKS_A_KIND": "x"}, f"CONNTRACKD_SINKS_A_KIND: 'x' is not {KIND_HINT}"),
        (
            {},
            {"CONNTRACKD_SINKS_A_KIND": "loki", "CONNTRACKD_SINKS_A_ADRESS": "x"},
            "environment: unknown variable 'CONNTRACKD_SINKS_A_ADRESS'\n"
            "hint: did you mean CONNTRACKD_SINKS_A_ADDRESS?",
        ),
    ],
)
def test_a_mistake_of_a_flag_or_variable_is_reported(
    flags: dict[str, list[str]], environ: dict[str, str], mistake: str, tmp_path: Path
) -> None:
    assert list_mistakes(tmp_path, "", flags, environ) == [mistake]


def test_what_can_be_together_is(tmp_path: Path) -> None:
    stream = "writer: stdout, enable: false"
    config = read(
        tmp_path,
        f"sinks: {{a: {{kind: stream}}, b: {{kind: stream, {stream}}}, c: {{kind: loki}}, d: {{kind: loki}}, "
        "e: {kind: stream, writer: discard}, f: {kind: stream, writer: discard}, g: {kind: journal}}\n"
        # The two kinds' own could always share a directory.
        f"sink: {{loki: {{enable: true, spool: {tmp_path}}}, syslog: {{enable: true, address: 'tcp://x', "
        f"spool: {tmp_path}}}}}\nstate_directory: {tmp_path}\n",
    )

    assert [sink.name for sink in list_sinks(config) if sink.is_enabled] == ["syslog", "loki", *"acdefg"]
    assert config.warnings == ()


def test_there_is_a_bound(tmp_path: Path) -> None:
    lines = [f"sinks.n{number}.kind: journal" for number in range(named.MAX_SINKS + 1)]
    last = f"n{named.MAX_SINKS}"

    read(tmp_path, "\n".join(lines[:-1]))
    message = f"sinks: more than {named.MAX_SINKS} sinks are named\nhint: remove {last}, or another one"
    assert list_mistakes(tmp_path, "\n".join(lines)) == [f"c.yaml:{len(lines)}: {message}"]


def test_an_alias_of_many_keys_is_not_looked_at_for_every_name(tmp_path: Path) -> None:
    """As many names as fit, all with the same keys: that would be 25 million."""
    half = MAX_NODES // 4 - 10
    keys = "".join(f"  x{number}: a\n" for number in range(half))
    names = "".join(f" n{number}: *all\n" for number in range(half))
    path = _write(tmp_path, f"sinks:\n n: &all\n{keys}{names}")
    (entry,) = read_document(path).entries
    most = (named.MAX_SINKS + 1) * half
    looked_at = islice(named._list_mentioned(named.Deferred(entry, "", path, tmp_path, {})), 2 * most)

    assert sum(1 for _ in looked_at) == most
    assert len(read_fragment(path).mistakes) == 101


def test_an_alias_that_holds_itself_ends(tmp_path: Path) -> None:
    assert list_mistakes(tmp_path, "sinks: &a {x: *a, y: {kind: *a}}")


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("sinks.a.address: tcp://x", 0),  # another file says the kind
        ("sinks.a: {addres: tcp://x}", 1),
        ("sinks.a: {kind: loki, address: tcp://x}", 1),
    ],
)
def test_a_fragment_may_leave_the_kind_to_another_file(text: str, mistakes: int, tmp_path: Path) -> None:
    assert len(read_fragment(_write(tmp_path, text)).mistakes) == mistakes


@pytest.mark.parametrize(
    ("flags", "alone"),
    [
        ({"sinks.a.kind": ["stream"]}, True),
        ({"sinks.a.kind": ["stream"], "sinks.a.enable": ["no"]}, False),
        ({"sinks.a.enable": ["yes"]}, False),  # one that a file names
        ({"sinks.a.address": ["http://x"]}, False),
    ],
)
def test_a_sink_that_is_made_on_the_command_line_leaves_the_files_alone(
    flags: dict[str, list[str]], alone: bool
) -> None:
    assert stands_alone(flags, {}) == alone


def test_the_examples_of_the_sample_and_the_manual_are_valid(tmp_path: Path) -> None:
    page = (ROOT / "man" / "conntrackd.yaml.5").read_text().partition(".Sh SEVERAL SINKS OF A KIND")[2]
    manual = page.partition(".Bd -literal -offset indent\n")[2].partition(".Ed")[0]
    sample = SAMPLE_SINKS.replace("\n#", "\n").replace("\n More", "\n# More")

    found = [
        [(sink.name, sink.kind) for sink in read(tmp_path, text).named.values()] for text in (manual, sample)
    ]

    assert found == [[("audit", "loki"), ("siem", "syslog")], [("audit", "loki")]]


# ---- what carries the names ---------------------------------------------------------------------------


def test_credentials_are_those_of_the_name_and_never_of_another_sink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    for name in ("loki.token", "loki.password", "b.token"):
        (tmp_path / name).write_text("x")
    config = read(tmp_path, "sinks: {a: {kind: loki}, b: {kind: loki}}")
    found = {
        name: (settings.token_file, settings.password_file)
        for name in ("loki", "a", "b")
        for settings in [read_settings(config.view(name))]
    }

    assert found == {
        "loki": (tmp_path / "loki.token", tmp_path / "loki.password"),
        "a": (None, None),
        "b": (tmp_path / "b.token", None),
    }


def test_a_spool_has_the_name_of_its_sink_and_files_of_its_kind(tmp_path: Path) -> None:
    config = read(tmp_path, f"state_directory: {tmp_path}\nsinks: {{a: {{kind: loki}}, b: {{kind: syslog}}}}")
    sink = find_sink(config, "a")
    assert sink is not None
    spool = sink.kind.open_spool(sink.config)
    assert spool is not None
    try:
        assert (tmp_path / "sink-a" / "loki.lock").exists()
        assert spool._make_loss(3, "spool").where == "a"  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match="is in use by another process"):
            sink.kind.open_spool(sink.config)
    finally:
        spool.close()
    other = find_sink(config, "b")
    assert other is not None
    assert other.kind.open_spool(other.config) is None  # over UDP nobody says what has arrived


# ---- reloads ------------------------------------------------------------------------------------------


def list_changes(old: Config, new: Config) -> list[str]:
    options: list[Option[object]] = changed(old, new)
    return [option.key for option in options] + describe(old, new)


def test_a_reload_reports_what_has_become_of_named_sinks(tmp_path: Path) -> None:
    old = read(tmp_path, "sinks: {a: {kind: loki}, b: {kind: loki}, c: {kind: loki}}")
    new = read(
        tmp_path,
        "sinks: {a: {kind: loki, tenant: x, spool_max: 5M}, c: {kind: journal}}\n"
        "sinks.d: {kind: stream, enable: false}",
    )

    assert list_changes(old, old) == []
    assert list_changes(old, new) == [
        *("sinks.a.tenant", "sinks.a.spool_max"),
        *("sink c (journal) is new", "sink d (stream) is new, and off"),
        *("sink b (loki) is removed", "sink c (loki) is removed"),
    ]
    with pytest.raises(ConfigError) as caught:
        check_running(old, new, dict.fromkeys("abc"))  # type: ignore[arg-type]
    assert str(caught.value).endswith(
        "conntrackd.yaml:1: sinks.c.kind is journal, and the sink c that runs is of kind loki\n"
        "hint: use another name, remove it by one reload and add it by the next, or restart"
    )
    check_running(old, new, dict.fromkeys("ab"))  # type: ignore[arg-type]  # it is off


def test_a_spool_does_not_go_to_another_sink_by_one_reload(tmp_path: Path) -> None:
    old = read(tmp_path, f"sink.loki: {{enable: true, spool: {tmp_path}}}")
    new = read(tmp_path, f"sinks.a: {{kind: loki, spool: {tmp_path}}}\nsinks.b: {{kind: journal}}")

    with pytest.raises(ConfigError) as caught:
        check_running(old, new, {"loki": None})  # type: ignore[dict-item]
    assert str(caught.value).endswith(
        f"conntrackd.yaml:1: sinks.a.spool is {tmp_path}, which sink loki has until it is removed\n"
        "hint: use another directory, remove loki by one reload and add a by the next, or restart"
    )
    check_running(old, new, {})
    check_running(new, new, {"a": None})  # type: ignore[dict-item]


def test_what_waits_for_a_restart_is_compared_with_what_a_sink_was_made_with(tmp_path: Path) -> None:
    started = read(tmp_path, "sinks: {a: {kind: loki, spool_max: 5M}}")
    new = read(tmp_path, "sinks: {a: {kind: loki, spool_max: 6M}, b: {kind: loki, spool_max: 7M}}")
    started = adopt(started, new, {"a"})
    later = read(tmp_path, "sinks: {a: {kind: loki, spool_max: 6M}, b: {kind: loki, spool_max: 8M}}")

    assert list(started.named) == ["a", "b"]
    assert [option.key for option in changed(started, new)] == ["sinks.a.spool_max"]
    assert [option.key for option in changed(started, later)] == ["sinks.a.spool_max", "sinks.b.spool_max"]


def test_nothing_of_a_sink_that_does_not_run_waits_for_a_restart(tmp_path: Path) -> None:
    started = read(tmp_path, "sink.loki: {enable: true, spool_max: 5M}\nsinks.a: {kind: loki, spool_max: 5M}")
    new = read(tmp_path, "sink.loki.spool_max: 6M\nsinks.a: {kind: loki, enable: false, spool_max: 6M}")

    assert changed(adopt(started, new, ()), new) == []

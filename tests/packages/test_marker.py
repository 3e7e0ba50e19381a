"""The maintainer scripts, with the machine's folders moved aside: who says `replace` says it once."""

import subprocess
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]


def run_script(name: str, root: Path, *arguments: str) -> None:
    """A script of the package whose /etc and /var are below `root`, and in which nothing is running."""
    text = (ROOT / f"debian/conntrackd.{name}").read_text()
    for folder in ("/etc/", "/var/", "/run/systemd/", "/proc/"):
        text = text.replace(folder, f"{root}{folder}")
    tools = root / "tools"
    tools.mkdir(exist_ok=True)
    for tool in ("deb-systemd-helper", "update-rc.d"):
        (tools / tool).write_text("#!/bin/sh\n")
        (tools / tool).chmod(0o755)
    environ = {"PATH": f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin"}
    subprocess.run(["sh", "-c", text, name, *arguments], check=True, timeout=20, env=environ)


@pytest.mark.parametrize(
    ("name", "arguments", "stays"),
    [
        ("preinst", ("install", "1:1.4.6-5"), False),
        ("preinst", ("upgrade", "1:1.4.8-2"), False),
        ("preinst", ("upgrade", "2:2.0.0-1"), True),
        ("postinst", ("configure", ""), False),
        ("postinst", ("configure", "2:2.0.0-1"), False),
        ("postrm", ("remove",), True),
        ("postrm", ("purge",), False),
    ],
)
def test_the_marker_is_gone_once_it_has_counted_or_has_nothing_to_count_for(
    name: str, arguments: tuple[str, ...], stays: bool, tmp_path: Path
) -> None:
    """What replaces nothing takes no notice of it."""
    marker = tmp_path / "etc/conntrackd/replace"
    marker.parent.mkdir(parents=True)
    marker.touch()

    run_script(name, tmp_path, *arguments)

    assert marker.exists() == stays

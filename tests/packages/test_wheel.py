"""The wheel and the source distribution, for pipx and containers."""

import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_wheel_and_source_have_every_module_and_both_commands(tmp_path: Path) -> None:
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", ROOT, "ls-files", "conntrackd"],
        capture_output=True,
        text=True,
        check=True,
    )
    modules = set(listed.stdout.split())
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", tmp_path, ROOT],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]

    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.namelist()
        (entries,) = (name for name in packed if name.endswith("entry_points.txt"))
        parser = ConfigParser()
        parser.read_string(archive.read(entries).decode())
    (source,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(source) as tape:
        taken = {name.partition("/")[2] for name in tape.getnames()}

    assert modules - set(packed) == set()
    assert modules - taken == set()
    assert set(parser["console_scripts"]) == {"conntrackd", "conntrackctl"}

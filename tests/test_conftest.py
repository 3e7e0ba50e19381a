"""The rules for all tests hold for tests that break them: run by a pytest of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conntrackd.engine import VARIABLE
from tests.conftest import may_run_privileged

CONFTEST = Path(__file__).with_name("conftest.py")
SETTINGS = (
    "[pytest]\nmarkers = privileged: needs root\naddopts = -p no:cacheprovider\nfilterwarnings = error\n"
)
# Root without a capability: an ordinary user who can read pytest's temporary files.
# It goes on to read the files of others: the tree may lie in a home of mode 0700.
DEMOTE = ["setpriv", "--bounding-set", "-net_admin,-net_raw,-sys_admin", "--"] if os.geteuid() == 0 else []

PRIVILEGED = """
import pytest

@pytest.mark.privileged
def test_of_the_kernel():
    raise RuntimeError("ran")

def test_of_anyone():
    pass
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    return tmp_path


def run(
    project: Path, text: str, *words: str, ci: bool = False, prefix: list[str] = DEMOTE
) -> tuple[int, str]:
    """Exit status and output of pytest on a project with that one test file."""
    (project / "test_it.py").write_text(text)
    environ = {name: value for name, value in os.environ.items() if name not in ("CI", VARIABLE)}
    environ |= {"CI": "true"} if ci else {}
    argv = [*prefix, sys.executable, "-m", "pytest", "-q", str(project), *words]
    done = subprocess.run(argv, cwd=project, env=environ, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_an_ordinary_user_reads_in_one_line_what_was_left_out(project: Path) -> None:
    status, output = run(project, PRIVILEGED)

    line = "1 privileged tests left out (needs root (CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN)); to run them"
    assert status == 0
    assert f"{line}: sudo make test\n" in output
    assert "1 passed, 1 skipped" in output


def test_ci_fails_when_a_privileged_test_is_skipped_and_says_why(project: Path) -> None:
    status, output = run(project, PRIVILEGED, ci=True)

    assert status == 1
    assert "FAILED, because CI leaves nothing out: 1 privileged tests left out (needs root" in output


def test_ci_fails_when_a_privileged_test_skips_itself(project: Path) -> None:
    text = PRIVILEGED.replace('raise RuntimeError("ran")', 'pytest.skip("no nft here")')
    prefix: list[str] = []
    status, output = run(project, text, ci=True, prefix=prefix)

    reason = "no nft here" if may_run_privileged() else "needs root"
    assert status == 1
    assert f"1 privileged tests left out ({reason}" in output


def test_other_skips_do_not_fail_ci(project: Path) -> None:
    status, output = run(project, "import pytest\n\ndef test_it():\n    pytest.skip('no reason')\n", ci=True)

    assert status == 0
    assert "left out" not in output


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("os.open('/dev/null', os.O_RDONLY)", "-> /dev/null"),
        ("subprocess.Popen(['cat'], stdin=subprocess.PIPE).stdin.close", "child process"),
        ("threading.Thread(target=threading.Event().wait, name='idle', daemon=True).start()", "thread idle"),
    ],
)
def test_a_test_that_leaves_something_behind_fails(project: Path, body: str, left: str) -> None:
    shorter = CONFTEST.read_text().replace("SETTLE_SECONDS: Final = 5.0", "SETTLE_SECONDS: Final = 0.0")
    (project / "conftest.py").write_text(shorter)
    text = f"import os, subprocess, threading\n\nKEEP = []\n\ndef test_it():\n    KEEP.append({body})\n"
    status, output = run(project, text)

    assert status == 1
    assert "left behind: " in output
    assert left in output


def test_a_test_that_cleans_up_passes(project: Path) -> None:
    text = "import os\n\ndef test_it():\n    os.close(os.open('/dev/null', os.O_RDONLY))\n"
    status, output = run(project, text)

    assert status == 0
    assert "1 passed" in output


@pytest.mark.parametrize(
    ("words", "name"), [([], "core"), (["--engine", "core"], "core"), (["--engine", "plain"], "plain")]
)
def test_the_engine_that_was_chosen_is_that_of_this_process_and_its_children(
    project: Path, words: list[str], name: str
) -> None:
    text = f"""
import subprocess
import sys

ASK = "from conntrackd.engine import load_engine; print(load_engine().name)"

def test_it():
    from conntrackd.engine import load_engine

    asked = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    assert [load_engine().name, asked.stdout.strip()] == [{name!r}] * 2
"""
    status, output = run(project, text, *words, prefix=[])

    assert (status, "1 passed" in output) == (0, True), output


def test_what_the_tests_start_can_be_interrupted_also_in_the_background_of_a_script(project: Path) -> None:
    text = (
        "import subprocess, sys\n\ndef test_it():\n"
        "    code = 'import os, signal; os.kill(os.getpid(), signal.SIG{}); print(1)'\n"
        "    for name in ('INT', 'QUIT'):\n"
        "        done = subprocess.run([sys.executable, '-c', code.format(name)], capture_output=True)\n"
        "        assert done.returncode and not done.stdout\n"
    )
    status, output = run(project, text, prefix=["sh", "-c", 'trap "" INT QUIT; exec "$@"', "sh"])

    assert (status, "1 passed" in output) == (0, True), output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads what lies in another's home")
def test_the_rules_are_tried_also_in_a_home_that_is_closed(project: Path) -> None:
    os.chown(project, 65534, 65534)
    project.chmod(0o700)
    status, output = run(project, "def test_it():\n    pass\n")

    assert (status, "1 passed" in output) == (0, True), output


@pytest.mark.parametrize(
    "module",
    ["tests.faults.dearest_files", "tests.faults.mutations", "tests.filter.dearest", "tests.pictures.make"],
)
def test_a_program_of_the_tests_explains_itself(module: str) -> None:
    for words, status in ((["--help"], 0), (["no such thing"], 2)):
        done = subprocess.run(
            [sys.executable, "-m", module, *words], capture_output=True, text=True, check=False
        )
        assert (done.returncode, (done.stdout + done.stderr)[:16]) == (status, "usage: python -m")

"""tracking.py: nft is found where it is installed, and what it is refused is told as what it is."""

from pathlib import Path

import pytest

from conntrackd.errors import NotPermittedError, UnavailableError
from conntrackd.netlink import tracking


def install_nft(folder: Path, said: str) -> None:
    folder.mkdir()
    nft = folder / "nft"
    nft.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    nft.chmod(0o755)


@pytest.mark.parametrize("path", ["", "/nonexistent"])
def test_nft_is_found_without_sbin_in_the_path(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nft(tmp_path / "sbin", "Error: Operation not permitted (you must be root)")
    monkeypatch.setattr(tracking, "SYSTEM_PATH", str(tmp_path / "sbin"))
    monkeypatch.setenv("PATH", path)

    with pytest.raises(NotPermittedError, match="not permitted") as caught:
        tracking._run_nft("-f", "-")

    assert caught.value.exit_status == 77


def test_any_other_answer_of_nft_is_no_matter_of_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nft(tmp_path / "sbin", "Error: syntax error, unexpected newline")
    monkeypatch.setenv("PATH", str(tmp_path / "sbin"))

    with pytest.raises(UnavailableError, match="syntax error"):
        tracking._run_nft("-f", "-")


def test_no_nft_anywhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "SYSTEM_PATH", "/nonexistent")
    monkeypatch.setenv("PATH", "/nonexistent")

    with pytest.raises(UnavailableError, match="there is no nft here"):
        tracking._run_nft("-f", "-")

"""Certificates of one's own, for servers on loopback."""

import subprocess
from pathlib import Path


class Authority:
    """Certificates of one's own, made by openssl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem")

    def _run(self, command: str, *arguments: str) -> None:
        subject = ["-subj", "/CN=test"] if command == "req" else []
        done = subprocess.run(
            ["openssl", command, *arguments, *subject], cwd=self.folder, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()

    def issue(self, name: str, host: str, *days: str) -> Path:
        """A certificate with its key in one file."""
        self._run("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (self.folder / f"{name}.ext").write_text(f"subjectAltName={host}\n")
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", f"{name}.ext"]
        times = days or ("-days", "2")
        self._run("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed, *times)
        both = self.folder / f"{name}-both.pem"
        both.write_text((self.folder / f"{name}.pem").read_text() + (self.folder / f"{name}.key").read_text())
        return both

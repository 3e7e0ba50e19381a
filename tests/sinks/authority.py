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

    def issue(self, name: str, host: str, *, expired: bool = False) -> Path:
        """A certificate with its key in one file."""
        self._run("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (self.folder / f"{name}.ext").write_text(f"subjectAltName={host}\n")
        files = ["-in", f"{name}.csr", "-out", f"{name}.pem", "-extfile", f"{name}.ext"]
        if expired:
            self._sign_in_the_past(*files)
        else:
            self._run(
                "x509", "-req", *files, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"
            )
        both = self.folder / f"{name}-both.pem"
        both.write_text((self.folder / f"{name}.pem").read_text() + (self.folder / f"{name}.key").read_text())
        return both

    def _sign_in_the_past(self, *files: str) -> None:
        """Only `openssl ca` can: `x509` takes no times, and since 3.5 no negative number of days."""
        (self.folder / "index.txt").write_text("")
        (self.folder / "ca.cnf").write_text(
            "[ca]\ndefault_ca = it\n[it]\ndatabase = index.txt\nnew_certs_dir = .\ndefault_md = sha256\n"
            "policy = any\nrand_serial = yes\n[any]\ncommonName = supplied\n"
        )
        times = ("-startdate", "20200101000000Z", "-enddate", "20210101000000Z")
        own = ("-config", "ca.cnf", "-keyfile", "ca.key", "-cert", "ca.pem")
        self._run("ca", "-batch", "-notext", *own, *files, *times)

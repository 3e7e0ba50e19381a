"""The page of Cockpit in a real browser, against a real Cockpit, D-Bus and daemon on a booted machine.

Pictures of it are left in build/cockpit.
"""

import itertools
import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.system.conftest import Suite
from tests.system.debian import ENVIRONMENT, ROOT
from tests.system.machine import SERVICE, Machine, boot

pytestmark = [pytest.mark.privileged, pytest.mark.slow]

PICTURES = ROOT / "build/cockpit"
MARKUP = "<b id=injected>Berlin</b>"
# Nothing of Chromium's own asks the network; a container's user is root.
BROWSER = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--no-proxy-server", "--disable-background-networking", "--disable-component-update"),
)
SECONDS = 30
ROUNDS = itertools.count(1)  # of flows that no round before had


class Page:
    """What a user sees and does there, by its id; what is drawn anew meanwhile is looked for again."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def get(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def read(self, name: str) -> str:
        return self.get(name).text

    def wait(self, condition: Callable[[], object], what: str) -> None:
        waiting = WebDriverWait(self.driver, SECONDS, ignored_exceptions=[StaleElementReferenceException])
        try:
            waiting.until(lambda _: condition())
        except TimeoutException:
            shown = self.driver.find_element(By.TAG_NAME, "body").text
            pytest.fail(f"{what}: not in {SECONDS} s; the page says:\n{shown}")

    def wait_for(self, name: str, text: str) -> None:
        self.wait(lambda: text in self.read(name), f"{text!r} in {name}")

    def wait_for_state(self, name: str, state: str) -> None:
        self.wait(lambda: self.get(name).get_attribute("aria-checked") == state, f"{name} is {state}")

    def click(self, name: str) -> None:
        self._act(lambda: self.get(name).click(), name)

    def press(self, name: str, key: str) -> None:
        self._act(lambda: self.get(name).send_keys(key), name)

    def _act(self, act: Callable[[], None], name: str) -> None:
        def attempt() -> bool:
            act()
            return True

        self.wait(attempt, f"{name} is not there for long enough")

    def write(self, name: str, text: str) -> None:
        field = self.get(name)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)

    def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(PICTURES / f"{name}.png"))


@pytest.fixture(scope="module")
def console(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with Cockpit, the page, the daemon, and a database with markup in a city's name."""
    with boot(suite.distribution, tmp_path_factory.mktemp("console") / "root") as machine:
        machine.offer(suite.current)
        machine.install("cockpit-conntrackd", "cockpit-ws")
        cities = MMDBWriter(6, "GeoLite2-City", languages=["en"], ipv4_compatible=True, float_type="f64")
        cities.insert_network(IPSet(["127.0.0.0/8"]), {"city": {"names": {"en": MARKUP}}})
        cities.to_db_file(str(machine.root / "srv/city.mmdb"))
        machine.configure(
            "geoip.database: [/srv/city.mmdb]\n"
            "sink.journal.enable: true\n"
            "sinks: {audit-log: {kind: stream, writer: 'file:///var/log/conntrackd/audit'}}\n"
        )
        machine.start()
        machine.run("useradd", "--create-home", "joe")
        machine.run("useradd", "--create-home", "--groups", "conntrackd-observers", "ann")
        yield machine


@contextmanager
def open_page(machine: Machine, user: str, profile: Path) -> Iterator[Page]:
    """The page as the user has it, who is logged in already: one session of Cockpit's own web server."""
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        port = str(chosen.getsockname()[1])
    as_user = ("setpriv", "--pdeathsig=TERM", f"--reuid={user}", f"--regid={user}", "--init-groups")
    serve = machine.enter(
        *(*as_user, "env", "HOME=/tmp"),
        *("/usr/lib/cockpit/cockpit-ws", "--local-session=/usr/bin/cockpit-bridge", "--no-tls"),
        *("--address=127.0.0.1", f"--port={port}"),
        spaces="muip",  # but for its network: the browser is here
    )
    options = webdriver.ChromeOptions()
    for word in (*BROWSER, f"--user-data-dir={profile}", "--window-size=1200,1600"):
        options.add_argument(word)
    with subprocess.Popen(serve, env=ENVIRONMENT) as server:
        driver = webdriver.Chrome(options, Service("/usr/bin/chromedriver"))
        try:
            machine.wait(lambda: is_served(port), "Cockpit's web server")
            driver.get(f"http://127.0.0.1:{port}/cockpit/@localhost/conntrackd/index.html")
            yield Page(driver)
        finally:
            driver.quit()
            server.terminate()


def is_served(port: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


def test_an_administrator_uses_each_control(console: Machine, suite: Suite, tmp_path: Path) -> None:
    with open_page(console, "root", tmp_path) as page:
        page.wait_for("health-state", "Healthy")
        page.click("doctor")
        page.wait_for("findings", "tracked in this network namespace")

        page.write("tail-rule", "log protocol UDP")
        page.click("tail-start")
        page.click("top-start")
        page.wait(lambda: send_until_shown(console, page), "events and who they are from")
        assert MARKUP in page.read("tail-events")
        assert page.driver.find_elements(By.ID, "injected") == []
        page.wait(lambda: int(page.read("total-received").replace(",", "")) > 0, "a counter that moves")

        page.write("editor", "drop protocol TPC")
        page.wait_for("editor-state", "did you mean TCP?")
        assert "^^^" in page.read("editor-state")
        assert not page.get("editor-apply").is_enabled()
        page.write("editor", "drop destination port 7\nlog any")
        page.wait_for("editor-state", "2 rules, no mistakes")
        page.click("editor-apply")
        page.wait_for("filter-expires", "Reverts in 4:")
        page.wait_for("rules-list", "drop destination port 7")
        page.click("explain")
        page.wait_for("explained", "Program in the kernel")
        page.picture(f"{suite.distribution.suite}-wide")
        page.click("editor-reset")
        page.wait(lambda: "drop destination port 7" not in page.read("rules-list"), "the configured rules")

        names = ("sink-journal-switch", "sink-audit-log-switch")  # the other's path on the bus has no hyphen
        for name in names:
            page.click(name)
            page.wait_for_state(name, "false")
        page.wait_for("health-state", "Degraded")
        for name in names:
            page.press(name, Keys.SPACE)  # by keyboard
            page.wait_for_state(name, "true")
        page.wait_for("health-state", "Healthy")
        page.click("sink-journal-flush")
        page.wait_for("sinks-status", "journal: emptied")
        page.click("sink-audit-log-flush")
        page.wait_for("sinks-status", "audit-log: emptied")
        page.click("tail-start")
        page.wait_for("tail-start", "Follow")


def send_until_shown(machine: Machine, page: Page) -> bool:
    """Both begin some time after they were asked for: what came before is not in them."""
    machine.send(3 * next(ROUNDS), 3)
    return "UDP" in page.read("tail-events") and "127.0.0.1" in page.read("top-list")


def test_who_may_only_look_changes_nothing_and_reads_why(console: Machine, tmp_path: Path) -> None:
    with open_page(console, "ann", tmp_path) as page:
        page.wait_for("health-state", "Healthy")
        page.click("sink-journal-switch")
        page.wait(lambda: page.read("sinks-status"), "a refusal")
        assert page.get("sinks-status").get_attribute("class") == "error"
        page.write("editor", "log any")
        page.wait_for("editor-state", "1 rule, no mistakes")
        page.click("editor-apply")
        page.wait(lambda: page.get("editor-state").get_attribute("class") == "error", "a refusal")
        page.wait_for_state("sink-journal-switch", "true")


def test_who_may_not_even_look_reads_that(console: Machine, tmp_path: Path) -> None:
    with open_page(console, "joe", tmp_path) as page:
        page.wait_for("health-state", "may not look at the daemon")


def test_without_a_daemon_it_says_so_and_comes_back_with_it(console: Machine, tmp_path: Path) -> None:
    with open_page(console, "root", tmp_path) as page:
        page.wait_for("health-state", "Healthy")
        console.run("systemctl", "stop", SERVICE)
        page.wait_for("health-state", "not running")
        page.wait_for("problems", "systemctl start conntrackd")
        assert not page.get("sinks").is_displayed()
        console.run("systemctl", "start", SERVICE)
        page.wait_for("health-state", "Healthy")


def test_it_fits_a_telephone_in_german_too_and_follows_the_dark_style(
    console: Machine, suite: Suite, tmp_path: Path
) -> None:
    with open_page(console, "root", tmp_path) as page:
        page.wait_for("health-state", "Healthy")
        metrics = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        page.click("doctor")
        page.wait_for("findings", "tracked")
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 360
        read_colour = "return getComputedStyle(document.body).backgroundColor"
        light = page.driver.execute_script(read_colour)
        page.driver.execute_script(
            "localStorage.setItem('shell:style', 'dark'); window.dispatchEvent("
            "new StorageEvent('storage', {key: 'shell:style'}))"
        )
        assert page.driver.execute_script(read_colour) != light
        page.picture(f"{suite.distribution.suite}-narrow-dark")

        page.driver.add_cookie({"name": "CockpitLang", "value": "de-de", "path": "/"})
        page.driver.refresh()
        page.wait_for("health-state", "In Ordnung")
        assert page.driver.execute_script("return document.documentElement.lang") == "de"
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 360
        shown = page.driver.execute_script(
            "return [...document.querySelectorAll('h2, button, label, option, th')]"
            ".map(item => item.textContent)"
        )
        assert len(set(shown)) > 20
        assert set(shown) <= read_german()
        page.picture(f"{suite.distribution.suite}-german")


def read_german() -> set[str]:
    """All that the translation says."""
    rows = re.findall(r"\[null, (.*)\]", (ROOT / "cockpit/po.de.js").read_text())
    return {text for row in rows for text in json.loads(f"[{row}]")}

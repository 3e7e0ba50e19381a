// The page: what exists, and nothing else. Each card is a module that listens to the daemon.

import { createCounters } from "./counters.js";
import { Daemon } from "./daemon.js";
import { createHealth } from "./health.js";
import { createRules } from "./rules.js";
import { createSinks } from "./sinks.js";
import { createTail, createTop } from "./tail.js";
import { followTheme } from "./theme.js";

function main() {
    followTheme();
    cockpit.translate();
    document.documentElement.lang = (cockpit.language || "en").replace("_", "-");
    const page = document.getElementById("page");
    const daemon = new Daemon();
    const cards = [createHealth, createCounters, createSinks, createRules, createTail, createTop];
    page.append(...cards.map(create => create(daemon)));
    daemon.addEventListener("owner", () => {
        page.classList.toggle("absent", !daemon.running);
        page.removeAttribute("aria-busy");
    });
    // Administrative access was taken or given up: channels keep what they were opened with.
    const admin = cockpit.permission({ admin: true });
    let first = null;
    admin.addEventListener("changed", () => {
        if (first !== null && first !== admin.allowed)
            window.location.reload();
        first = admin.allowed;
    });
}

cockpit.transport.wait(main);

// Whether events arrive, what is wrong where they do not, and the doctor's findings with their fixes.

import { _, button, card, describe, element } from "./dom.js";

const SEVERITIES = { ok: () => _("good"), note: () => _("note"), warning: () => _("warning"), error: () => _("error") };
const MARKS = { ok: "✓", note: "ℹ", warning: "⚠", error: "✗" };

export function createHealth(daemon) {
    const state = element("p", { id: "health-state", role: "status", class: "state" });
    const problems = element("ul", { id: "problems" });
    const findings = element("ul", { id: "findings" });
    const check = button(_("Check this host"), () => examine(), { id: "doctor" });

    async function examine() {
        check.disabled = true;
        try {
            const [found] = await daemon.call("Doctor");
            findings.replaceChildren(...found.map(renderFinding));
        } catch (error) {
            findings.replaceChildren(element("li", { class: "error" }, describe(error)));
        }
        check.disabled = false;
    }

    async function explainAbsence() {
        // The command names the mistake of a unit that could not start; here nothing can be asked.
        let said = "";
        try {
            const process = cockpit.spawn(["conntrackctl", "status"], { superuser: "try", err: "out" });
            process.stream(data => { said += data });
            await process;
        } catch (error) {
            said = said || error.message; // status 3, with the reason in what it says
        }
        if (!daemon.running)
            problems.replaceChildren(element("li", {}, element("pre", {}, said.trim())));
    }

    daemon.addEventListener("owner", () => {
        check.disabled = !daemon.running;
        findings.replaceChildren();
        if (daemon.running)
            return;
        setState(state, "error", _("The daemon is not running"));
        explainAbsence();
    });
    daemon.addEventListener("refused", () => {
        setState(state, "error", _("This user may not look at the daemon"));
        problems.replaceChildren(element("li", {}, describe({ message: daemon.problem })));
    });
    daemon.addEventListener("changed", () => {
        const found = daemon.properties.Problems || [];
        if (found.length === 0)
            setState(state, "ok", _("Healthy: events are heard and reach every sink"));
        else
            setState(state, "warning", _("Degraded"));
        problems.replaceChildren(...found.map(problem => element("li", {}, problem)));
    });
    return card("health", _("Health"), state, problems, check, findings);
}

function setState(state, kind, text) {
    state.className = `state ${kind}`;
    state.replaceChildren(element("span", { "aria-hidden": "true" }, MARKS[kind]), ` ${text}`);
}

function renderFinding([severity, check, message, fix]) {
    const mark = element("span", { class: "mark", title: severity in SEVERITIES ? SEVERITIES[severity]() : severity }, MARKS[severity] || "?");
    const lines = [mark, " ", element("strong", {}, check), ` ${message}`];
    if (fix)
        lines.push(element("pre", { class: "fix" }, fix));
    return element("li", { class: severity }, lines);
}

// The rules in force with what each has decided, and an editor that has the daemon check while one types.

import { _, button, card, describe, element, number, table } from "./dom.js";

const CHECK_MS = 400;
// How long a change lasts before the daemon takes it back by itself: nobody locks himself out of his own log.
const DURATIONS = [
    [300, () => _("for 5 minutes")],
    [3600, () => _("for an hour")],
    [0, () => _("until a reload")],
];

export function createRules(daemon) {
    const origin = element("p", { id: "filter-origin" });
    const expires = element("p", { id: "filter-expires", role: "timer" });
    const listed = element("div", { id: "rules-list" });
    const explained = element("pre", { id: "explained", tabindex: "0", hidden: true });
    const explain = button(_("Explain"), () => showExplanation(), { id: "explain", "aria-expanded": "false" });
    const editor = createEditor(daemon);
    let endsAt = 0;

    async function showExplanation() {
        const open = explained.hidden;
        try {
            if (open)
                explained.textContent = (await daemon.call("ExplainFilter", "as", []))[0];
        } catch (error) {
            explained.textContent = describe(error);
        }
        explained.hidden = !open;
        explain.setAttribute("aria-expanded", String(open));
    }

    function showCountdown() {
        const seconds = Math.round((endsAt - Date.now()) / 1000);
        expires.textContent = endsAt && seconds > 0
            ? cockpit.format(_("Reverts in $0:$1"), Math.floor(seconds / 60), String(seconds % 60).padStart(2, "0"))
            : "";
    }

    daemon.addEventListener("changed", () => {
        const { Rules = [], FilterOrigin = "", FilterExpires = 0 } = daemon.properties;
        const matches = daemon.statistics ? daemon.statistics.matches : [];
        const rows = Rules.map((rule, place) => [String(place + 1), element("code", {}, rule), number(matches[place + 1] || 0)]);
        rows.push(["", _("no rule: logged"), number(matches[0] || 0)]);
        listed.replaceChildren(table([_("No."), _("Rule"), _("Events")], rows));
        origin.textContent = FilterOrigin;
        endsAt = FilterExpires ? Date.now() + FilterExpires * 1000 : 0;
        showCountdown();
        editor.offer(Rules);
    });
    window.setInterval(showCountdown, 1000);
    return card("rules", _("Rules"), origin, expires, listed, explain, explained, editor.form);
}

function createEditor(daemon) {
    const text = element("textarea", { id: "editor", rows: 4, spellcheck: "false", "aria-describedby": "editor-state",
                                       oninput: () => { touched = true; later() } });
    const state = element("pre", { id: "editor-state", role: "status" });
    const duration = element("select", { id: "editor-for" },
                             DURATIONS.map(([seconds, title]) => element("option", { value: seconds }, title())));
    const apply = button(_("Apply"), () => change("SetFilter", "asu", read(), Number(duration.value)), { id: "editor-apply", class: "primary" });
    const reset = button(_("Back to the configured rules"), () => change("ResetFilter"), { id: "editor-reset" });
    let touched = false;
    let timer = 0;

    /* A rule a line. */
    function read() {
        return text.value.split("\n").map(line => line.trim()).filter(Boolean);
    }

    function later() {
        window.clearTimeout(timer);
        timer = window.setTimeout(check, CHECK_MS);
    }

    async function check() {
        const asked = text.value;
        try {
            const [canonical] = await daemon.call("CheckFilter", "as", read());
            show(asked, "ok", cockpit.format(cockpit.ngettext("$0 rule, no mistakes", "$0 rules, no mistakes", canonical.length), canonical.length));
        } catch (error) {
            show(asked, "error", describe(error));
        }
    }

    function show(asked, kind, message) {
        if (asked !== text.value)
            return; // an answer to what is no longer there
        state.className = kind;
        state.textContent = message;
        apply.disabled = kind === "error";
    }

    async function change(method, types = "", ...values) {
        try {
            const [changes] = await daemon.call(method, types, ...values);
            touched = false;
            show(text.value, "ok", changes.join("\n"));
            await daemon.refresh();
        } catch (error) {
            show(text.value, "error", describe(error));
            apply.disabled = false; // another try, perhaps with administrative access
        }
    }

    /* The rules in force, unless somebody is writing others. */
    function offer(rules) {
        if (!touched)
            text.value = rules.join("\n");
    }

    const controls = element("div", { class: "controls" }, apply, duration, reset);
    const label = element("label", { for: "editor" }, _("Other rules, one a line"));
    return { form: element("div", { class: "editor" }, label, text, state, controls), offer };
}

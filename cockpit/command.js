// conntrackctl as a child whose output is lines of JSON: a pipe cannot come through Cockpit's D-Bus.

/* Starts it; `onLine` gets each object, `onEnd` null or the error. Returns what stops it. */
export function follow(words, onLine, onEnd) {
    let rest = "";
    const process = cockpit.spawn(["conntrackctl", ...words], { superuser: "try", err: "message" });
    process.stream(data => {
        const lines = (rest + data).split("\n");
        rest = lines.pop();
        lines.filter(Boolean).forEach(line => onLine(JSON.parse(line)));
    });
    process.then(() => onEnd(null), error => onEnd(error.problem === "cancelled" ? null : error));
    return () => process.close("cancelled");
}

/* A button that starts and stops a command, with the place where its error is shown. */
export function toggle(button, status, labels, start) {
    let stop = null;

    function ended(error) {
        stop = null;
        button.textContent = labels[0];
        button.setAttribute("aria-pressed", "false");
        status.textContent = error ? error.message : "";
    }

    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
        if (stop !== null) {
            stop();
            return;
        }
        status.textContent = "";
        button.textContent = labels[1];
        button.setAttribute("aria-pressed", "true");
        stop = start(ended);
    });
}

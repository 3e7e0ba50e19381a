// Light or dark, as Cockpit's menu says or, where it says nothing, as the system does.

const KEY = "shell:style";

export function followTheme() {
    const system = window.matchMedia("(prefers-color-scheme: dark)");
    const set = style => document.documentElement.classList.toggle(
        "dark", style === "dark" || (style !== "light" && system.matches));
    const read = () => set(localStorage.getItem(KEY) || "auto");

    window.addEventListener("storage", event => { if (event.key === KEY) read() });
    window.addEventListener("cockpit-style", event => set(event.detail.style)); // from the same window
    system.addEventListener("change", read);
    read();
}

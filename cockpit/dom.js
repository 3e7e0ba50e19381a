// Elements of the page. Text becomes text nodes and nothing else: what an event says can never be markup.

export const _ = cockpit.gettext;

/* An element: attributes as they are written in HTML, `onclick` and the like as functions, children as text or elements. */
export function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (typeof value === "function")
            made.addEventListener(name.slice(2), value);
        else if (value !== false && value !== null && value !== undefined)
            made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.flat().filter(child => child !== null));
    return made;
}

/* A card with a heading; `name` is its id, and what tests and links know it by. */
export function card(name, title, ...children) {
    const heading = element("h2", { id: `${name}-title` }, title);
    return element("section", { id: name, class: "card", "aria-labelledby": `${name}-title` }, heading, ...children);
}

/* A table whose cells repeat their column's name, for screens that are too narrow for columns. */
export function table(columns, rows, attributes = {}) {
    const head = element("tr", {}, columns.map(column => element("th", { scope: "col" }, column)));
    return element("table", attributes, element("thead", {}, head), element("tbody", {}, rows.map(cells => row(columns, cells))));
}

export function row(columns, cells) {
    return element("tr", {}, cells.map((cell, number) => element("td", { "data-label": columns[number] }, cell)));
}

export function button(label, onclick, attributes = {}) {
    return element("button", { type: "button", onclick, ...attributes }, label);
}

/* What a call that failed says, for people: the daemon's messages name what, where and what to do. */
export function describe(error) {
    if (error.problem === "access-denied" || error.name === "org.freedesktop.DBus.Error.AccessDenied")
        return cockpit.format(_("Not permitted: $0"), error.message || error.problem);
    return error.message || error.problem || String(error);
}

/* A number that people can read: 1,234,567. */
export function number(value) {
    return Number(value).toLocaleString(cockpit.language ? cockpit.language.replace("_", "-") : undefined);
}

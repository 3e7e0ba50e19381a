"""Texts of the page for translators: conntrackd.pot, and from LANGUAGE.po what Cockpit loads.

Run as a program it writes all of it: the template from the page, what is new in it into each translation, and
those as JavaScript: po.LANGUAGE.js, and po.manifest.LANGUAGE.js for the menu. Cockpit 287 does not know the
latter yet, so the former has the menu's texts, too.
"""

import json
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Final

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract
from babel.messages.pofile import read_po, write_po

FOLDER: Final = Path(__file__).parent
PAGE: Final = FOLDER.parent
TEMPLATE: Final = FOLDER / "conntrackd.pot"
KEYWORDS: Final = {"_": None, "gettext": None, "ngettext": (1, 2)}
OPTIONS: Final = {"parse_template_string": True}
MANIFEST: Final = "manifest.json"
HEAD: Final = "# Texts of cockpit-conntrackd, under its licence.\n#"
# What changes by itself, or says nothing.
IDLE: Final = re.compile(
    r'(?m)^"(?:POT-Creation-Date|PO-Revision-Date|Generated-By|Project-Id-Version|Report-Msgid-Bugs-To'
    r"|Last-Translator|Language-Team): .*\n"
)


def list_texts() -> Iterator[tuple[str, str | tuple[str, str]]]:
    """File and text, or singular and plural."""
    for path in list_modules():
        with path.open("rb") as file:
            for _, text, _, _ in extract("javascript", file, KEYWORDS, options=OPTIONS):
                yield path.name, text
    yield from ((MANIFEST, text) for text in read_manifest())


def list_modules() -> list[Path]:
    """The page's own, without translations."""
    return sorted(path for path in PAGE.glob("*.js") if not path.name.startswith("po."))


def read_manifest() -> Iterator[str]:
    """What Cockpit's menu shows, and the words that it is found by."""
    for entry in json.loads((PAGE / MANIFEST).read_text())["tools"].values():
        yield entry["label"]
        yield from (word for group in entry["keywords"] for word in group["matches"])


def make_template() -> Catalog:
    """All texts, with the files that have them: line numbers would change with every other change."""
    catalog = Catalog(project="conntrackd", header_comment=HEAD, fuzzy=False)
    for name, text in list_texts():
        catalog.add(text, locations=[(name, 0)])
    return catalog


def read_translation(language: str) -> Catalog:
    """A translation, with all that is new in the template."""
    with (FOLDER / f"{language}.po").open("rb") as file:
        catalog = read_po(file, locale=language)
    catalog.fuzzy = False
    catalog.update(make_template(), no_fuzzy_matching=True, update_header_comment=True)
    return catalog


def write_catalog(catalog: Catalog) -> str:
    """In the format of gettext, without what changes by itself."""
    file = BytesIO()
    write_po(file, catalog, width=110, include_lineno=False, sort_output=True, ignore_obsolete=True)
    return IDLE.sub("", file.getvalue().decode())


def write_script(catalog: Catalog, only: str = "") -> str:
    """As Cockpit's own translations are, of all texts or those of one file.

    The first of each list counts for nothing there.
    """
    language = str(catalog.locale)
    lines = [
        f'"": {{"plural-forms": (n) => {catalog.plural_expr}, "language": "{language}",'
        f' "language-direction": "{catalog.locale.text_direction if catalog.locale else "ltr"}"}}'
    ]
    for message in sorted(catalog, key=lambda message: str(message.id)):
        is_wanted = not only or only in {name for name, _ in message.locations}
        if message.id and is_wanted and not message.fuzzy and all(list_strings(message)):
            name = message.id if isinstance(message.id, str) else message.id[0]
            lines.append(f"{dump(name)}: [null, {', '.join(map(dump, list_strings(message)))}]")
    return (
        "// Made by po/make.py from the translation beside it.\ncockpit.locale({\n"
        + ",\n".join(lines)
        + "\n});\n"
    )


def list_strings(message: Message) -> list[str]:
    """The translation, or those of singular and plurals."""
    return [message.string] if isinstance(message.string, str) else list(message.string)


def dump(text: str) -> str:
    """A literal of JavaScript, which JSON's are."""
    return json.dumps(text, ensure_ascii=False)


def list_languages() -> list[str]:
    """Those of which there is a translation."""
    return sorted(path.stem for path in FOLDER.glob("*.po"))


def list_files() -> Iterator[tuple[Path, str]]:
    """What is written, and what into it."""
    yield TEMPLATE, write_catalog(make_template())
    for language in list_languages():
        catalog = read_translation(language)
        yield FOLDER / f"{language}.po", write_catalog(catalog)
        yield PAGE / f"po.{language}.js", write_script(catalog)
        yield PAGE / f"po.manifest.{language}.js", write_script(catalog, MANIFEST)


if __name__ == "__main__":
    for path, text in list(list_files()):
        path.write_text(text)

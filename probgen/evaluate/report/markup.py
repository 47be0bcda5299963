"""HTML that is safe by construction: text is escaped unless it is already markup."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["Html", "image", "join", "listed", "scrolling", "section", "tag", "visible"]

_VOID = {"img", "meta", "br"}


class Html(str):
    """Text that is markup already; everything else is escaped where it is put."""

    __slots__ = ()


def visible(text: Any) -> str:
    """Text of anyone's with control characters and lone surrogates made visible."""
    return "".join(c if c.isprintable() or c in "\n " else repr(c)[1:-1] for c in str(text))


def _escaped(child: Any) -> str:
    return child if isinstance(child, Html) else html.escape(visible(child), quote=True)


def join(parts: Iterable[Any], between: str = "\n") -> Html:
    return Html(between.join(_escaped(part) for part in parts))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. Attributes: ``class_`` and ``for_`` lose their underscore, others change it to a hyphen; None is
    left out, True stands without a value."""
    shown = []
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            shown.append(f" {key}")
        elif value is not None and value is not False:
            shown.append(f' {key}="{html.escape(visible(value), quote=True)}"')
    opening = f"<{name}{''.join(shown)}>"
    if name in _VOID:
        return Html(opening)
    return Html(f"{opening}{''.join(_escaped(child) for child in children)}</{name}>")


def section(anchor: str, title: str, *children: Any) -> Html:
    """A part of the page with a heading of its own."""
    heading = tag("h2", title, id=anchor)
    return tag("section", heading, *children, aria_labelledby=anchor)


def listed(items: Iterable[Any], name: str = "ul") -> Html:
    return tag(name, *(tag("li", item) for item in items))


def scrolling(what: str, head: Sequence[str], rows: Iterable[Sequence[Any]], numeric: Sequence[bool]) -> Html:
    """A table that scrolls in a box of its own, which the keyboard reaches; the first cell of a row names it.

    Arguments:
        what: Its name for readers who do not see it.
        head: Of the columns.
        rows: Cells, text or markup.
        numeric: Of each column, whether its cells stand right.
    """
    sides = ["number" if side else None for side in numeric]
    top = tag("tr", *(tag("th", text, scope="col", class_=side) for text, side in zip(head, sides, strict=True)))
    body = []
    for first, *rest in rows:
        cells = [tag("td", cell, class_=side) for cell, side in zip(rest, sides[1:], strict=True)]
        body.append(tag("tr", tag("th", first, scope="row", class_=sides[0]), *cells))
    caption = tag("caption", what, class_="hidden")
    inner = tag("table", caption, tag("thead", top), tag("tbody", *body))
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=what)


def image(png: str, text: str, width: int | None = None, class_: str | None = None) -> Html:
    """A picture inside the page.

    Arguments:
        png: In base64.
        text: What it shows, for readers who do not see it.
    """
    return tag("img", src=f"data:image/png;base64,{png}", alt=text, width=width, class_=class_)

# SPDX-License-Identifier: Apache-2.0
"""HTML as a tree of elements: text stays text, wherever it comes from, because nothing is ever pasted together."""

from __future__ import annotations

from xml.etree.ElementTree import Element, tostring

from observe.reports.terminal import Page

_PAGE = Page()

Node = Element | str


def element(tag: str, *children: Node, **attributes: str) -> Element:
    """An element; a trailing underscore of an attribute is dropped (`class_`), others become hyphens."""
    node = Element(tag, {name.rstrip("_").replace("_", "-"): _PAGE.safe(text) for name, text in attributes.items()})
    for child in children:
        if isinstance(child, Element):
            node.append(child)
        elif len(node):
            node[-1].tail = (node[-1].tail or "") + _PAGE.safe(child)
        else:
            node.text = (node.text or "") + _PAGE.safe(child)
    return node


def html(node: Element) -> str:
    """The element as HTML."""
    return tostring(node, encoding="unicode", method="html")


def document(*head: Node, body: Element) -> bytes:
    """A whole page."""
    page = element("html", element("head", element("meta", charset="utf-8"), *head), body, lang="en")
    return f"<!DOCTYPE html>\n{html(page)}\n".encode()

"""What is open at the end of a text that is being written: brackets, strings, tags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tree_sitter

from .parsed import COMMENTS

_CLOSERS = {"{": "}", "(": ")", "[": "]", "${": "}", '"""': '"""', "'''": "'''", "`": "`"}
_STRING_PREFIX = "bBfFrRtTuU"
_TAG_END = "/>"
_NAMES = {"identifier", "member_expression", "nested_identifier", "jsx_namespace_name"}
# Tokens behind which a `<` begins a tag and compares nothing; whole elements are others.
_BEFORE_TAG = set("( [ { } , ; : ? = && || ?? > => return yield default".split())


class Opener(NamedTuple):
    """A bracket, a string's beginning or a tag that stands at a byte, and what would close it.

    Attributes:
        byte: where.
        closer: what closes it.
        end_tag: of a tag that is being written, what is to close it when it has been.
    """

    byte: int
    closer: str
    end_tag: str = ""

    @property
    def is_tag(self) -> bool:
        """Whether it is a tag, in which text or attributes may stand."""
        return bool(self.end_tag) or self.closer.startswith("</")


def unclosed(
    tree: tree_sitter.Tree, inside: range | None = None, already: Sequence[Opener] = ()
) -> list[Opener]:
    """Return what is open at the end of a text, or of a part of it, outermost first.

    The grammar tells brackets from those in strings that are closed and in comments; what it could
    read is balanced, and is passed over, but for tags, whose ends are nodes of their own.

    Args:
        tree: of the text.
        inside: bytes of the part, if it is one.
        already: what is open where that begins.
    """
    found = list(already)
    has_tags = _has_tags(tree)
    stack: list[tree_sitter.Node] = [tree.root_node]
    before: tree_sitter.Node | None = None
    while stack:
        node = stack.pop()
        kind = node.type
        if kind in COMMENTS:
            continue
        if inside and (node.end_byte <= inside.start or node.start_byte >= inside.stop):
            before = node
            continue
        if inside and (node.start_byte < inside.start or node.end_byte > inside.stop):
            if kind == "jsx_closing_element" and node.end_byte <= inside.stop:
                _close_tag(found, "".join(_text(node).split()))
            stack += reversed(node.children)
            continue
        if kind == "jsx_opening_element":
            found.append(Opener(node.start_byte, _end_tag(node.child_by_field_name("name"))))
            stack += reversed(node.children[1:]) if node.has_error else ()
        elif kind == "jsx_closing_element":
            _close_tag(found, "".join(_text(node).split()))
        elif node.child_count and node.has_error:
            stack += reversed(node.children)
            continue
        elif not node.is_missing and not node.is_error:
            behind = stack[-1] if stack else None
            if kind == "<" and has_tags and _may_begin_tag(before, behind):
                end_tag = _end_tag(behind if behind and behind.type in _NAMES else None)
                found.append(Opener(node.start_byte, _TAG_END, end_tag))
            elif kind == ">" and found and found[-1].end_tag:
                found[-1] = Opener(found[-1].byte, found[-1].end_tag)
            else:
                _take(found, node)
        before = node
    return found


def has_wrong_end(tree: tree_sitter.Tree, inside: range) -> bool:
    """Whether an end tag at these bytes is another than that of the element that it ends.

    The grammar does not compare their names. Where an end tag before it is wrong already, what it
    should be is not known.
    """
    stack: list[tree_sitter.Node] = [tree.root_node] if _has_tags(tree) else []
    while stack:
        node = stack.pop()
        if node.end_byte <= inside.start or node.start_byte >= inside.stop:
            continue
        end = node.children[-1] if _is_wrongly_ended(node) else None
        if end and end.start_byte < inside.stop and end.end_byte > inside.start:
            elements = list(node.children)
            while elements and not _is_wrongly_ended(elements[-1]):
                elements += elements.pop().children
            if not elements:
                return True
        stack += node.children
    return False


def _has_tags(tree: tree_sitter.Tree) -> bool:
    return tree.language.id_for_node_kind("jsx_element", True) is not None


def _is_wrongly_ended(node: tree_sitter.Node) -> bool:
    if node.type != "jsx_element":
        return False
    first, last = node.child_by_field_name("open_tag"), node.child_by_field_name("close_tag")
    if first is None or last is None or last.has_error:
        return False
    end_tag = _end_tag(first.child_by_field_name("name"))
    return _end_tag(last.child_by_field_name("name")) != end_tag


def _take(found: list[Opener], node: tree_sitter.Node) -> None:
    """Close what a leaf closes, or add what it opens."""
    kind = node.type
    if kind in ("string_start", "string_end"):
        kind = _text(node).lstrip(_STRING_PREFIX)
    if found and found[-1].closer == kind:
        found.pop()
    elif kind in _CLOSERS:
        found.append(Opener(node.start_byte, _CLOSERS[kind]))


def _close_tag(found: list[Opener], end_tag: str) -> None:
    """Take out the innermost such tag; brackets in it that are open stay so."""
    for number in reversed(range(len(found))):
        if found[number].closer == end_tag:
            del found[number]
            return


def _may_begin_tag(before: tree_sitter.Node | None, behind: tree_sitter.Node | None) -> bool:
    if before is None or (behind is not None and _text(behind).startswith("/")):
        return False  # `</b>` behind an error is a `<` and a regular expression
    return before.type in _BEFORE_TAG or before.type.startswith("jsx_")


def _end_tag(name: tree_sitter.Node | None) -> str:
    return f"</{''.join(_text(name).split()) if name else ''}>"


def _text(node: tree_sitter.Node) -> str:
    return (node.text or b"").decode("utf-8", "replace")

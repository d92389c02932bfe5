"""XML inside values (HS_NAMESPACE, 10320/loc), read without trust.

No document type is taken, so no entity can be defined, let alone fetched or multiplied; size,
depth and number of elements have limits. UTF-8 whatever the declaration says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from xml.parsers import expat

from .cursor import Malformed

XML_OCTETS_MAX: Final = 65_536
ELEMENTS_MAX: Final = 2_048
DEPTH_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Element:
    """`text` is the character data directly inside, all pieces joined."""

    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    text: str = ""
    children: tuple[Element, ...] = ()

    def child(self, name: str) -> Element | None:
        """The first child of that name, ASCII case aside."""
        return next((child for child in self.children if child.is_(name)), None)

    def is_(self, name: str) -> bool:
        return self.name.lower() == name.lower()

    def encode(self) -> bytes:
        """UTF-8 XML. Raises ValueError where a name or a text cannot stand in XML."""
        return self._written().encode()

    def _written(self) -> str:
        attributes = "".join(
            f' {_name(name)}="{_escaped(value)}"' for name, value in self.attributes.items()
        )
        inside = _escaped(self.text) + "".join(child._written() for child in self.children)
        name = _name(self.name)
        return f"<{name}{attributes}>{inside}</{name}>" if inside else f"<{name}{attributes}/>"


@dataclass(slots=True)
class _Open:
    name: str
    attributes: dict[str, str]
    text: list[str] = field(default_factory=list)
    children: list[Element] = field(default_factory=list)

    def closed(self) -> Element:
        return Element(self.name, self.attributes, "".join(self.text), tuple(self.children))


def decode_xml(data: bytes) -> Element:
    """The root element; raises Malformed."""
    if len(data) > XML_OCTETS_MAX:
        raise Malformed(0, f"XML of at most {XML_OCTETS_MAX} octets, not {len(data)}")
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    stack: list[_Open] = [_Open("", {})]
    elements = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal elements
        elements += 1
        if elements > ELEMENTS_MAX or len(stack) > DEPTH_MAX:
            raise Malformed(
                parser.CurrentByteIndex,
                f"at most {ELEMENTS_MAX} elements, {DEPTH_MAX} deep",
            )
        stack.append(_Open(name, attributes))

    def end(_name: str) -> None:
        closed = stack.pop().closed()
        stack[-1].children.append(closed)

    def doctype(*_: object) -> None:
        raise Malformed(parser.CurrentByteIndex, "XML without a document type")

    def characters(data: str) -> None:
        stack[-1].text.append(data)

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        said = expat.ErrorString(error.code)
        raise Malformed(max(parser.ErrorByteIndex, 0), f"XML ({said})") from None
    return stack[0].children[0]


_ESCAPES = {
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    ord('"'): "&quot;",
    ord("\t"): "&#9;",
    ord("\n"): "&#10;",
    ord("\r"): "&#13;",
}


def _escaped(text: str) -> str:
    if any((ord(char) < 32 and char not in "\t\n\r") or char in "\ufffe\uffff" for char in text):
        raise ValueError("a control character cannot stand in XML")
    return text.translate(_ESCAPES)


_NAME_MARKS = str.maketrans("-.:", "___")


def _name(name: str) -> str:
    if not name.translate(_NAME_MARKS).isidentifier():
        raise ValueError(f"{name[:40]!r} is no XML name")
    return name

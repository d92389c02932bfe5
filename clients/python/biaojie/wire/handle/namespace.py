"""HS_NAMESPACE: what holds for all identifiers under a prefix; XML.

Elements below `namespace`, all optional: contact, status (active, inactive or another word),
statusmsg, template with attribute delimiter, locs (an identifier that holds 10320/loc
values; attribute no_nslocs stops inheritance from the parent prefix).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .cursor import Malformed
from .markup import Element, decode_xml


@dataclass(frozen=True, slots=True)
class Namespace:
    """What is not said is None, or inherited from the parent prefix (`inherit`).

    `template` is the whole template element, kept as it is; building values from templates is
    not this module's.
    """

    contact: str | None = None
    status: str | None = None
    status_message: str | None = None
    template: Element | None = None
    locations: tuple[str, ...] = ()
    inherits_locations: bool = True

    @property
    def is_active(self) -> bool:
        return self.status is None or self.status == "active"

    @property
    def delimiter(self) -> str | None:
        """What parts a template's base from an extension."""
        return None if self.template is None else self.template.attributes.get("delimiter")

    def inherit(self, parent: Namespace) -> Namespace:
        """Template and locations completed from the parent prefix's namespace."""
        locations = parent.locations if self.inherits_locations else ()
        return replace(
            self,
            template=self.template or parent.template,
            locations=self.locations + locations,
            inherits_locations=self.inherits_locations and parent.inherits_locations,
        )

    def encode(self) -> bytes:
        """Raises ValueError where a text cannot stand in XML."""
        texts = (
            ("contact", self.contact),
            ("status", self.status),
            ("statusmsg", self.status_message),
        )
        children = [Element(name, text=text) for name, text in texts if text is not None]
        if self.template is not None:
            children.append(self.template)
        stop = {} if self.inherits_locations else {"no_nslocs": "true"}
        children += [Element("locs", stop, handle) for handle in self.locations]
        return Element("namespace", children=tuple(children)).encode()


def decode_namespace(data: bytes) -> Namespace:
    """Raises Malformed; elements that are not above are passed over."""
    root = decode_xml(data)
    if not root.is_("namespace"):
        raise Malformed(0, f"an element namespace, not {root.name[:40]}")
    locations = [child for child in root.children if child.is_("locs")]
    return Namespace(
        contact=_text(root, "contact"),
        status=_text(root, "status"),
        status_message=_text(root, "statusmsg"),
        template=root.child("template"),
        locations=tuple(place.text.strip() for place in locations if place.text.strip()),
        inherits_locations=not any(
            place.attributes.get("no_nslocs", "").lower() in {"1", "true", "yes"}
            for place in locations
        ),
    )


def _text(root: Element, name: str) -> str | None:
    child = root.child(name)
    return None if child is None else child.text.strip()

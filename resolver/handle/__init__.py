"""What the Handle protocol needs of the node, whichever front carries it: identities, sites,
operations."""

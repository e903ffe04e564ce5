"""What the file will be able to say one day, and cannot yet. Whoever builds it deletes its line here."""

NOT_BUILT = frozenset(
    {
        "analytics",
        "models.*.cache",
        "models.*.log_bodies",
        "openmeter",
        "shared",
    }
)
"""Keys, by their path; `*` stands for a name or a place in a list."""

NOT_BUILT_VALUES = frozenset({("upstreams.*.kind", "anthropic")})
"""Values of fields that are there."""

NOT_BUILT_DATABASES = ("postgresql", "postgres")
"""Schemes of `storage.url`."""


def told(what: str) -> str:
    """Return the message for a key or value that is not built yet."""
    return f"{what!r} is not built yet in this version; remove it"

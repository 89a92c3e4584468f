"""Built-in scorers: one file each, named in one table of strings."""

BUILTIN: dict[str, str] = {}

"""Groups of the `millrace` command, one module a group. Each command imports what it needs when it runs."""


class CommandError(Exception):
    """One sentence for the user: what was got, what is allowed, what to do."""

"""Builds Magnetar's guest: kernel, initrd and root image from Debian's packages."""


class BuildError(Exception):
    """A failure that the user can act on; the message says how."""

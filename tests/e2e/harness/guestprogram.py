"""Programs of tests that run in containers, whatever their image has: static, made from tests/e2e/guest."""

import pathlib
import subprocess

SOURCES = pathlib.Path(__file__).resolve().parent.parent / "guest"


def build(name, folder):
    """The path of the program made from <name>.c."""
    program = folder / name
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Werror", "-o", program, SOURCES / f"{name}.c"], check=True)
    return program

"""Finished guests under digest-named directories, never overwritten, and the link to the current one."""

import json
import os
import pathlib
import shutil
import tempfile

from .util import canonical_json, new_directory, sha256_file, sha256_text, write_atomically

FILES = ("vmlinux", "initrd.img", "root.erofs")


def manifest_of(folder):
    try:
        return json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return None


def intact(folder, manifest):
    try:
        return all(sha256_file(folder / name) == entry["sha256"] for name, entry in manifest["files"].items())
    except (OSError, KeyError):
        return False


def guests(out):
    """(folder, manifest) of the guests that are installed."""
    for path in sorted(out.glob("[0-9a-f]*")):
        manifest = manifest_of(path)
        if manifest and not path.is_symlink():
            yield path, manifest


def find(out, inputs):
    """The folder of an undamaged guest that was built from the same inputs."""
    for folder, manifest in guests(out):
        if manifest.get("inputs") == inputs and intact(folder, manifest):
            return folder
    return None


def place(data_path, target, out, digest):
    """Copies a file, or links it to an equal one of an older guest: agents change more often than kernels."""
    for folder, manifest in guests(out):
        older = folder / target.name
        if manifest["files"].get(target.name, {}).get("sha256") == digest and older.is_file():
            if sha256_file(older) == digest:
                os.link(older, target)
                return
    shutil.copyfile(data_path, target)
    target.chmod(0o644)


def install(out, sources, manifest):
    """Writes the guest below `out` and returns its folder."""
    files = {name: {"sha256": sha256_file(sources[name]), "bytes": sources[name].stat().st_size} for name in FILES}
    text = canonical_json({**manifest, "files": files})
    final = out / sha256_text(text)[:16]
    if final.exists() and not intact(final, {"files": files}):
        # Who uses the damaged files keeps them open; others get whole ones.
        aside = tempfile.mkdtemp(dir=out, prefix=".damaged-")
        os.rename(final, aside)
        shutil.rmtree(aside)
    if not final.exists():
        with new_directory(final) as new:
            for name in FILES:
                place(sources[name], new / name, out, files[name]["sha256"])
            write_atomically(new / "manifest.json", text)
    return final


def make_current(out, folder):
    link = out / "current"
    if link.is_symlink() and os.readlink(link) == folder.name:
        return
    temporary = pathlib.Path(tempfile.mktemp(dir=out, prefix=".current-"))
    temporary.symlink_to(folder.name)
    os.rename(temporary, link)

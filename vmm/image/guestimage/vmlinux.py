"""The uncompressed kernel out of Debian's bzImage, as VMMs load it."""

import lzma
import struct
import subprocess

from . import BuildError

ELF_MAGIC = b"\x7fELF"
PAGE = 4096
PT_LOAD = 1
PT_INTERP = 3
EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
# Magic number of the payload -> how to unpack it.
COMPRESSIONS = {
    b"\xfd7zXZ\x00": lambda data: lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data),
    b"\x28\xb5\x2f\xfd": lambda data: filtered(["zstd", "-dc"], data),
    b"\x02\x21\x4c\x18": lambda data: filtered(["lz4", "-dc"], data),
    b"\x1f\x8b": lambda data: filtered(["gzip", "-dc"], data),
}


def filtered(argv, data):
    # The payload ends with its own length, which the tools report as an error after all is unpacked.
    try:
        return subprocess.run(argv, input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    except FileNotFoundError:
        raise BuildError(f"the kernel is compressed with {argv[0]}, which is not installed") from None


def extract(bzimage):
    """The ELF file in a bzImage: Documentation/arch/x86/boot.rst, payload_offset and payload_length."""
    if bzimage[0x202:0x206] != b"HdrS":
        raise BuildError("the kernel package's vmlinuz is no bzImage")
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = bzimage[start : start + length]
    for magic, decompress in COMPRESSIONS.items():
        if payload.startswith(magic):
            vmlinux = decompress(payload)
            break
    else:
        raise BuildError(f"the kernel is compressed in an unknown way ({payload[:6].hex()})")
    if not vmlinux.startswith(ELF_MAGIC):
        raise BuildError("the kernel's payload is no ELF file")
    return vmlinux


def segments_of(elf):
    header = EHDR.unpack_from(elf)
    return [list(PHDR.unpack_from(elf, header[5] + i * header[9])) for i in range(header[10])]


def needs_loader(elf):
    return any(segment[0] == PT_INTERP for segment in segments_of(elf))


def condense(vmlinux):
    """The same segments without what a loader writes as zeros anyway.

    Debian's file carries .bss and an empty scratch area as data and is aligned to 2 MiB: 63 MiB for
    34 MiB of kernel. VMMs keep what they load in their own memory and write all of it to the guest's.
    """
    header = list(EHDR.unpack_from(vmlinux))
    segments = segments_of(vmlinux)
    out = bytearray(EHDR.size + len(segments) * PHDR.size)
    moved = []
    for segment in (s for s in segments if s[0] == PT_LOAD):
        old, size = segment[2], segment[5]
        data = vmlinux[old : old + size].rstrip(b"\0")
        out += bytes(-len(out) % PAGE)
        moved.append((old, size, len(out)))
        segment[2], segment[5], segment[7] = len(out), len(data), PAGE
        out += data
    for segment in (s for s in segments if s[0] != PT_LOAD):
        # The note with the PVH entry point lies inside a loaded segment.
        home = [new + segment[2] - old for old, size, new in moved if old <= segment[2] < old + size]
        if not home:
            raise BuildError("the kernel has a segment outside the loaded ones")
        segment[2] = home[0]
    header[5:7] = [EHDR.size, 0]
    header[11:14] = [0, 0, 0]  # no section headers
    EHDR.pack_into(out, 0, *header)
    for i, segment in enumerate(segments):
        PHDR.pack_into(out, EHDR.size + i * PHDR.size, *segment)
    return bytes(out)

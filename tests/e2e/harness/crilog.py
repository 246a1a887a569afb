"""Container log files as CRI writes them: `<time> <stream> <F|P> <content>` lines."""


def parse(data):
    """{"stdout": bytes, "stderr": bytes} of a log file's bytes."""
    streams = {"stdout": [], "stderr": []}
    for line in data.split(b"\n"):
        if not line:
            continue
        _, stream, tag, content = line.split(b" ", 3)
        # P: a part of a line; what follows of the stream continues it.
        streams[stream.decode()].append(content + (b"\n" if tag == b"F" else b""))
    return {name: b"".join(chunks) for name, chunks in streams.items()}

"""The stream of container events, and whether it tells all."""

import threading

import grpc

ORDER = ("CREATED", "STARTED", "STOPPED", "DELETED")


class Events:
    def __init__(self, cri, faults):
        self._faults, self._types = faults, cri.messages.ContainerEventType
        self._stream = cri.events()
        self._changed = threading.Condition()
        self._seen = {}
        self._closing = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        try:
            for event in self._stream:
                kind = self._types.Name(event.container_event_type).split("_")[1]
                with self._changed:
                    self._seen.setdefault(event.container_id, []).append(kind)
                    self._changed.notify_all()
        except grpc.RpcError as error:
            if not self._closing:
                self._faults.add(f"GetContainerEvents ended: {error.code().name}: {error.details()}")
        else:
            self._faults.add("GetContainerEvents ended")

    def wait(self, name, kind, timeout):
        """Whether an event of that kind has come for a container or pod."""
        with self._changed:
            return self._changed.wait_for(lambda: kind in self._seen.get(name, ()), timeout)

    def check(self, names):
        """All that were made and removed have had each event once, in order."""
        with self._changed:
            for name in names:
                seen = tuple(self._seen.get(name, ()))
                if seen != ORDER:
                    self._faults.add(f"events of {name[:13]}: {', '.join(seen) or 'none'}")
            return sum(len(seen) for seen in self._seen.values())

    def close(self):
        self._closing = True
        self._stream.cancel()
        self._thread.join()

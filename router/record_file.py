"""Writes the record of requests: a thread behind a bounded queue, rotation by size. Floor 5.

The event loop puts a request into the queue and never waits: when the queue is full the request is
lost to the record and counted. Salting, encoding, compression and disk are the thread's. A disk
that fails stops the record with one line in the log; requests go on.
"""

from __future__ import annotations

import gzip
import io
import logging
import queue
import secrets
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from warmlane.router.config_record import Record
from warmlane.router.core import Router
from warmlane.router.errors import ConfigError
from warmlane.router.record import Closed, Recorder, Salt, head
from warmlane.router.record_types import Entry, Head

log = logging.getLogger("warmlane.record")

_FLUSH_S: Final = 1.0
_MARGIN: Final = 512  # bytes of a head, for the size of a new file


class RecordFile:
    """`open` before the first request, `tick` now and then, `close` after the last.

    config: names a file. policy: see `record.head`. ConfigError of `open`: cannot be written.
    """

    def __init__(self, router: Router, config: Record, policy: str | None) -> None:
        self._config = config
        self._router = router
        self._policy = policy
        self._path = Path(config.file)
        self._queue: queue.Queue[Closed | Head | None] = queue.Queue(config.queue)
        self._salt = Salt(secrets.token_bytes(32))
        self._began = time.monotonic()
        self._began_unix = round(time.time(), 3)
        self._encoder = msgspec.json.Encoder()
        self._raw: io.BufferedWriter | None = None
        self._file: io.BufferedWriter | gzip.GzipFile | None = None
        self._written = 0
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        self._failed = False
        self._recorder = Recorder(router, self._put)
        self._looked = self._began
        self._said = self._head()
        self._first = self._said  # of the next file; the thread's

    def open(self) -> None:
        """Begin a file, keeping older ones as FILE.1, FILE.2 and so on."""
        try:
            self._begin()
        except OSError as error:
            raise ConfigError(f"record.file: {self._path}: cannot be written: {error}") from error
        self._recorder.follow()
        self._thread.start()

    def tick(self, now: float) -> None:
        """Follow pools that came, and tell what is known of replicas by now."""
        if now - self._looked < _FLUSH_S:
            return
        self._looked = now
        self._recorder.follow()
        said = self._head()
        if said != self._said and self._put(said):
            self._said = said

    def close(self) -> None:
        """Write what waits, at most for a few seconds, and close the file."""
        if self._thread.is_alive():
            try:
                self._queue.put(None, timeout=_FLUSH_S)
            except queue.Full:
                log.warning("event=record closed=late")
            self._thread.join(5.0)

    def _put(self, item: Closed | Head) -> bool:
        if self._failed:
            return False
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            return False
        return True

    def _head(self) -> Head:
        return head(self._router, self._router.metrics.version, self._began_unix, self._policy)

    # The thread

    def _run(self) -> None:
        flushed = time.monotonic()
        try:
            while True:
                try:
                    item = self._queue.get(timeout=_FLUSH_S)
                except queue.Empty:
                    self._flush()
                    continue
                if item is None:
                    break
                if isinstance(item, Head):
                    self._first = item
                    self._write(item)
                else:
                    self._write(self._salt.entry(item, self._began))
                if time.monotonic() - flushed > _FLUSH_S:
                    self._flush()
                    flushed = time.monotonic()
        except OSError as error:
            self._fail(error)
        finally:
            self._end()

    def _write(self, item: Entry | Head) -> None:
        assert self._file is not None and self._raw is not None
        line = self._encoder.encode(item) + b"\n"
        self._file.write(line)
        # Of a compressed file the size on disk counts; it lags by what the compressor holds.
        self._written += len(line) if self._file is self._raw else 0
        size = self._written if self._file is self._raw else self._raw.tell()
        if size + _MARGIN >= self._config.max_bytes:
            self._end()
            self._begin()

    def _begin(self) -> None:
        """A new file under the name; the older ones move up by one, the oldest goes."""
        path, kept = self._path, self._config.files
        if path.is_dir():
            raise IsADirectoryError("is a folder")
        for number in range(kept - 1, 0, -1):
            older = _numbered(path, number - 1)
            if older.exists():
                older.replace(_numbered(path, number))
        if kept == 1:
            path.unlink(missing_ok=True)
        self._raw = path.open("xb")
        path.chmod(0o600)
        zipped = path.name.endswith(".gz")
        self._file = gzip.GzipFile(fileobj=self._raw, mode="wb", mtime=0) if zipped else self._raw
        self._written = 0
        self._file.write(self._encoder.encode(self._first) + b"\n")
        self._flush()

    def _flush(self) -> None:
        if self._file is not None and self._raw is not None:
            self._file.flush()
            self._raw.flush()

    def _end(self) -> None:
        file, raw, self._file, self._raw = self._file, self._raw, None, None
        try:
            if file is not None and file is not raw:
                file.close()
            if raw is not None:
                raw.close()
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._failed = True
        log.error('event=record state=failed file=%s why="%s"', self._path.name, error)


def _numbered(path: Path, number: int) -> Path:
    """FILE, then FILE.1 and so on; the number comes before .gz, so that the name still tells."""
    if not number:
        return path
    if path.name.endswith(".gz"):
        return path.with_name(f"{path.name.removesuffix('.gz')}.{number}.gz")
    return path.with_name(f"{path.name}.{number}")

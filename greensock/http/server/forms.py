"""Forms, as pages and programs send them: fields, and files that are uploaded (RFC 7578; WHATWG URL section 5).

The parser of ``multipart/form-data`` is the package ``multipart`` (``pip install greensock[forms]``): it has no I/O,
bounds the number of parts, of the fields of each part's head and their lengths, and what hostile bodies cost grows with
their bytes alone. (python-multipart bounds no number of parts: 10 MB of small ones take it 11 s.) What is large is on
disk, all files of a form in one that has no name: a form holds at most one descriptor.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import shutil
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

from greensock import Connection
from greensock.http.errors import BadRequest, Reason
from greensock.http.incoming_body import IncomingBody
from greensock.http.server.response import HTTPError
from greensock.http.server.spool import IN_MEMORY, Spool, SpoolSlice

__all__ = ["DEFAULT_FORM", "Form", "FormLimits", "UploadedFile", "read_form"]

#: Bytes that a field takes in memory beside those of its name and its value.
FIELD_COST = 64
URLENCODED, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"


@dataclasses.dataclass(frozen=True, slots=True)
class FormLimits:
    """How much of a form is taken; what is more gets 413. In bytes or counts; what is exactly at a limit passes.

    Raises:
        ValueError: not a whole number of at least 0.
    """

    #: Fields that are no files.
    max_fields: int = 1000
    #: Files.
    max_files: int = 100
    #: Bytes of all fields that are no files, with their names, and 64 for each.
    max_memory: int = 1 << 20
    #: Bytes of the body, the files among it.
    max_size: int = 100 << 20
    #: Bytes of one file.
    max_file: int = 100 << 20
    #: Fields of the head of each part.
    max_part_fields: int = 8
    #: Bytes of one of these, with its name.
    max_part_field: int = 4096
    #: Bytes of files that are in memory; when there are more, all of a form's are on disk.
    in_memory: int = IN_MEMORY

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{field.name}={value!r}: a whole number of at least 0 expected")


DEFAULT_FORM = FormLimits()


class UploadedFile:
    """A file of a form. It is there until the form is closed, or gone."""

    __slots__ = ("_offset", "_spool", "content_type", "filename", "headers", "size")

    def __init__(self, spool: Spool, filename: str, content_type: str, headers: list[tuple[str, str]]) -> None:
        self._spool = spool
        self._offset = spool.size
        #: Its name, as the client says it: not safe as the name of a file here.
        self.filename = filename
        #: Its type, as the client says it; ``application/octet-stream`` if it does not.
        self.content_type = content_type
        #: The fields of its part's head.
        self.headers = headers
        #: How many bytes it has.
        self.size = 0

    def open(self) -> io.BufferedReader:
        """Return it as a file to be read from its beginning, independent of any other."""
        return io.BufferedReader(SpoolSlice(self._spool, self._offset, self.size))

    def read(self) -> bytes:
        """Return all of it."""
        return self._spool.read_at(self._offset, self.size)

    def save(self, path: Any) -> None:
        """Write it to a file of that name, which must not be there yet.

        Raises:
            FileExistsError: it is there.
            OSError: it cannot be written.
        """
        with open(path, "xb") as file:
            shutil.copyfileobj(self.open(), file)

    def __repr__(self) -> str:
        return f"<UploadedFile {self.filename!r} of {self.size} bytes>"


class Form(Mapping[str, str]):
    """The first value of each field; ``get_all`` has the others, too, ``files`` the files by their fields' names.

    Text is UTF-8; what is none becomes U+FFFD. Files are gone when the form is: it can be closed, or used in a ``with``
    statement.
    """

    __slots__ = ("_files", "_pairs", "_spool")

    def __init__(self, spool: Spool) -> None:
        self._pairs: list[tuple[str, str]] = []
        self._files: list[tuple[str, UploadedFile]] = []
        self._spool = spool

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Names and values in their order."""
        return self._pairs

    @property
    def file_pairs(self) -> list[tuple[str, UploadedFile]]:
        """Names and files in their order."""
        return self._files

    @property
    def files(self) -> dict[str, UploadedFile]:
        """The first file of each name."""
        return dict(reversed(self._files))

    def get_all(self, name: str) -> list[str]:
        """Return the values of that name, in order."""
        return [value for key, value in self._pairs if key == name]

    def get_files(self, name: str) -> list[UploadedFile]:
        """Return the files of that name, in order."""
        return [file for key, file in self._files if key == name]

    def close(self) -> None:
        """Let go of the files."""
        self._spool.close()

    def __enter__(self) -> Form:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getitem__(self, name: str) -> str:
        for key, value in self._pairs:
            if key == name:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(key for key, _ in self._pairs))

    def __len__(self) -> int:
        return len({key for key, _ in self._pairs})

    def __repr__(self) -> str:
        return f"<Form of {len(self._pairs)} fields and {len(self._files)} files>"


def read_form(body: IncomingBody, content_type: str, limits: FormLimits, conn: Connection) -> Form:
    """Read a body that is a form.

    Raises:
        HTTPError: 415, it is another type.
        BadRequest: it is malformed (400), or crosses a limit (413).
        ImportError: it is multipart, and the package is not there.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in (URLENCODED, MULTIPART):
        raise HTTPError(415, f"a form expected: {URLENCODED} or {MULTIPART}")
    form = Form(Spool(limits.in_memory))
    try:
        if kind == URLENCODED:
            _read_urlencoded(body, form, limits, conn)
        else:
            _Parts(form, limits, conn).read(body, content_type)
    except BaseException:
        form.close()
        raise
    return form


def _read_urlencoded(body: IncomingBody, form: Form, limits: FormLimits, conn: Connection) -> None:
    text = body.read_all(min(limits.max_memory, limits.max_size)).decode("utf-8", "replace")
    if not text:
        return
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="replace", max_num_fields=limits.max_fields)
    except ValueError:
        raise _too_much("max_fields", limits.max_fields, conn) from None
    form.pairs.extend(pairs)


def _too_much(limit: str, value: int, conn: Connection) -> BadRequest:
    return BadRequest(f"a form that crosses {limit}={value}", Reason.BODY_TOO_LARGE, conn)


class _Parts:
    """Reads the parts of one form."""

    def __init__(self, form: Form, limits: FormLimits, conn: Connection) -> None:
        self._form = form
        self._limits = limits
        self._conn = conn
        self._memory = self._fields = self._files = 0
        self._name = ""
        self._value = bytearray()
        self._file: UploadedFile | None = None

    def read(self, body: IncomingBody, content_type: str) -> None:
        limits, parsers = self._limits, _parsers()
        boundary = parsers.parse_options_header(content_type)[1].get("boundary", "")
        if not 1 <= len(boundary) <= 70:  # RFC 2046 section 5.1.1
            raise self._malformed(f"a boundary of {len(boundary)} characters, 1 to 70 expected")
        if body.length is not None and body.length > limits.max_size:
            raise _too_much("max_size", limits.max_size, self._conn)
        taken = 0
        try:
            parser = parsers.PushMultipartParser(
                boundary,
                max_header_size=limits.max_part_field,
                max_header_count=limits.max_part_fields,
                max_segment_count=limits.max_fields + limits.max_files,
                strict=True,
            )
            while piece := body.next_piece():
                taken += len(piece)
                if taken > limits.max_size:
                    raise _too_much("max_size", limits.max_size, self._conn)
                for event in parser.parse(bytes(piece)):
                    self._take(event)
                if taken > len(boundary) + 4:
                    # Strictly, the first part is where it must be; but what ends the last line may come in a piece of
                    # its own (test_a_form_however_it_is_cut).
                    parser.strict = False
            parser.close()
        except parsers.ParserLimitReached as error:
            raise BadRequest(f"a form that crosses a limit: {error}", Reason.BODY_TOO_LARGE, self._conn) from None
        except parsers.MultipartError as error:
            raise self._malformed(str(error)) from None

    def _take(self, event: Any) -> None:
        """Take what the parser tells: the head of a part, a piece of it, or None at its end."""
        limits = self._limits
        if event is None:
            self._end()
        elif isinstance(event, bytes | bytearray):
            file = self._file
            if file is None:
                self._count(len(event))
                self._value += event
                return
            file.size += len(event)
            if file.size > limits.max_file:
                raise _too_much("max_file", limits.max_file, self._conn)
            self._form._spool.write(bytes(event))
        else:
            self._name = event.name
            if not self._name:
                raise self._malformed("a part without a name")
            if event.filename is None:
                self._fields += 1
                if self._fields > limits.max_fields:
                    raise _too_much("max_fields", limits.max_fields, self._conn)
                self._count(len(self._name) + FIELD_COST)
                return
            self._files += 1
            if self._files > limits.max_files:
                raise _too_much("max_files", limits.max_files, self._conn)
            kind = event.content_type or "application/octet-stream"
            self._file = UploadedFile(self._form._spool, event.filename, kind, list(event.headerlist))

    def _count(self, size: int) -> None:
        self._memory += size
        if self._memory > self._limits.max_memory:
            raise _too_much("max_memory", self._limits.max_memory, self._conn)

    def _end(self) -> None:
        file, self._file = self._file, None
        if file is None:
            self._form.pairs.append((self._name, self._value.decode("utf-8", "replace")))
            self._value.clear()
        elif file.filename or file.size:  # else a field for a file that the user left empty
            self._form.file_pairs.append((self._name, file))

    def _malformed(self, text: str) -> BadRequest:
        return BadRequest(f"a form that is malformed: {text}", Reason.BODY_MALFORMED, self._conn)


def _parsers() -> Any:
    try:
        found = importlib.import_module("multipart")
        found.PushMultipartParser  # noqa: B018  # an old python-multipart has the same name
    except (ImportError, AttributeError):
        raise ImportError("multipart/form-data needs the package multipart: pip install greensock[forms]") from None
    return found

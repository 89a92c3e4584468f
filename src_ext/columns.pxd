"""Columns: how the arithmetic of `cost` reads and writes one value per replica, inlined there.

A column is an `array.array` (read through its struct) or any other flat buffer (read through the
buffer protocol, for memory shared between processes).
"""

from cpython cimport array
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.stdint cimport int32_t


cdef struct Column:
    char* data
    Py_ssize_t size
    char code               # 'd', 'i', 'B' or 'Q'


cdef struct Scope:
    Py_buffer views[12]     # held until the call ends
    int held


cdef inline int borrow(Scope* scope, object source, bytes codes, Column* column) except -1:
    """Reads where a column lies; `codes` are the item types that the caller can use."""
    cdef array.array plain
    cdef Py_buffer* view
    if isinstance(source, array.array):
        plain = <array.array>source
        column.data = plain.data.as_chars
        column.size = len(plain)
        column.code = <char>plain.ob_descr.typecode
    else:
        view = &scope.views[scope.held]
        PyObject_GetBuffer(source, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        scope.held += 1
        if view.ndim > 1:
            raise TypeError("a column must be one-dimensional")
        column.data = <char*>view.buf
        column.size = view.len // view.itemsize
        column.code = view.format[0]
        if column.code == c"L" and view.itemsize == 8:
            column.code = c"Q"
    if column.code not in codes:
        raise TypeError(f"a column of {chr(column.code)!r} items where one of {codes} is needed")
    return 0


cdef inline int borrow_out(Scope* scope, object target, bytes codes, Column* column) except -1:
    """As borrow, for a column that is written."""
    cdef Py_buffer view
    if not isinstance(target, array.array):
        PyObject_GetBuffer(target, &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        PyBuffer_Release(&view)
    return borrow(scope, target, codes, column)


cdef inline int long_enough(Column* column, Py_ssize_t need, str name) except -1:
    if column.size < need:
        raise ValueError(f"{name} has {column.size} slots, {need} are needed")
    return 0


cdef inline void give_back(Scope* scope) noexcept:
    while scope.held > 0:
        scope.held -= 1
        PyBuffer_Release(&scope.views[scope.held])


cdef inline double item(const Column* column, Py_ssize_t at) noexcept nogil:
    if column.code == c"d":
        return (<double*>column.data)[at]
    return (<int32_t*>column.data)[at]

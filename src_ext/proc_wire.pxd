"""Messages of Envoy's external processing on the wire: what is read of them.

Field numbers: envoy/service/ext_proc/v3/external_processor.proto, config/core/v3/base.proto and
google/protobuf/struct.proto. Fields that are not named here are stepped over.
"""
from libc.stdint cimport uint8_t


cdef class Received:
    cdef readonly int kind             # field number of the oneof, 2..7; 0: none of them
    cdef readonly bint end_of_stream
    cdef readonly bint observability
    cdef readonly int request_mode     # BodySendMode of protocol_config; -1: there is none
    cdef readonly int response_mode
    cdef readonly bint early_body      # send_body_without_waiting_for_header_response
    cdef readonly int status           # :status; 0: none
    cdef readonly bytes body           # of the body kinds, else b""
    cdef readonly bytes method         # :method; b"": none
    cdef readonly str path             # :path; "": none
    cdef readonly dict headers         # the few that are read: name -> value, several joined by ","
    cdef readonly list internal        # names of headers that must not reach an engine, or None
    cdef readonly list subset          # endpoints of the subset hint, or None when there is no hint
    cdef readonly str served           # by metadata, else by the attribute upstream.address; or ""
    cdef tuple wanted                  # names of headers that are kept besides, or None

    cdef int read(self, const uint8_t *p, const uint8_t *end) except -1
    cdef int read_part(self, int kind, const uint8_t *data, size_t size) except -1
    cdef int read_headers(self, const uint8_t *p, const uint8_t *end) except -1
    cdef int read_header(self, const uint8_t *p, const uint8_t *end) except -1
    cdef int keep_wanted(
        self, const uint8_t *name, size_t name_size, const uint8_t *value, size_t value_size
    ) except -1
    cdef int keep(self, bytes name, bytes value) except -1
    cdef int read_config(self, const uint8_t *p, const uint8_t *end) except -1
    cdef int read_metadata(self, const uint8_t *p, const uint8_t *end) except -1
    cdef int read_struct(self, const uint8_t *p, const uint8_t *end, int space) except -1


# `receive` without its checks.
cdef Received read_message(bytes message, tuple wanted)

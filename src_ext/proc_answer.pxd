"""Messages of Envoy's external processing on the wire: what is answered.

Field numbers: envoy/service/ext_proc/v3/external_processor.proto, config/core/v3/base.proto and
google/protobuf/struct.proto. `kind` is that of the message that is answered, as in proc_wire.
"""

# `answer` and `pieces` without their checks: the kind is one that they take.
cdef bytes make_answer(
    int kind, bytes endpoint, long long length, bytes mutation, bytes body, bytes tail)
cdef int add_pieces(list out, int kind, bytes body, bint last) except -1

"""The two structures of `lru`, inlined there: a ring of nodes and an index of their keys.

The ring is doubly linked by node number through the sentinel 0. The index is open addressing with
linear probing; an entry counts only while its node is live and carries the key that is asked for,
so that an index which is being replaced need not be edited.
"""

from libc.stdint cimport uint32_t, uint64_t


cdef enum:
    FREE = 0xFFFFFFFF
    HELD = 0xFFFFFFFE


cdef struct Node:
    uint64_t key
    uint32_t newer
    uint32_t older          # FREE: on the free list; HELD: taken out of the ring by a running touch


cdef struct Table:
    uint64_t* entries       # hash << 32 | node; 0 is empty
    uint32_t bits           # 1 << bits entries


cdef inline uint32_t hash_of(uint64_t key) noexcept nogil:
    # Keys are hashes already; the multiplication only protects against callers with small integers.
    return <uint32_t>((key * <uint64_t>0x9E3779B97F4A7C15) >> 32)


cdef inline uint32_t find(Table* table, Node* nodes, uint64_t key, uint32_t mixed) noexcept nogil:
    """Node of `key` in `table`, 0 if absent."""
    cdef uint32_t mask = (<uint32_t>1 << table.bits) - 1
    cdef uint32_t at = mixed >> (32 - table.bits)
    cdef uint32_t node
    cdef uint64_t entry = table.entries[at]
    while entry != 0:
        if <uint32_t>(entry >> 32) == mixed:
            node = <uint32_t>entry
            if nodes[node].key == key and nodes[node].older != FREE:
                return node
        at = (at + 1) & mask
        entry = table.entries[at]
    return 0


cdef inline void add_entry(Table* table, uint32_t mixed, uint32_t node) noexcept nogil:
    cdef uint32_t mask = (<uint32_t>1 << table.bits) - 1
    cdef uint32_t at = mixed >> (32 - table.bits)
    while table.entries[at] != 0:
        at = (at + 1) & mask
    table.entries[at] = <uint64_t>mixed << 32 | node


cdef inline void remove_entry(Table* table, uint32_t mixed, uint32_t node) noexcept nogil:
    """Removes the entry of `node` if it is there; later entries shift back, no tombstones."""
    cdef uint32_t mask = (<uint32_t>1 << table.bits) - 1
    cdef uint32_t at = mixed >> (32 - table.bits)
    cdef uint32_t hole, home
    cdef uint64_t wanted = <uint64_t>mixed << 32 | node
    while table.entries[at] != wanted:
        if table.entries[at] == 0:
            return
        at = (at + 1) & mask
    hole = at
    while True:
        at = (at + 1) & mask
        if table.entries[at] == 0:
            break
        home = <uint32_t>(table.entries[at] >> 32) >> (32 - table.bits)
        # The entry may fill the hole unless its home lies cyclically in (hole, at].
        if ((at - home) & mask) >= ((at - hole) & mask):
            table.entries[hole] = table.entries[at]
            hole = at
    table.entries[hole] = 0


cdef inline void unlink(Node* nodes, uint32_t node) noexcept nogil:
    nodes[nodes[node].newer].older = nodes[node].older
    nodes[nodes[node].older].newer = nodes[node].newer


cdef inline void link_newest(Node* nodes, uint32_t node) noexcept nogil:
    cdef uint32_t second = nodes[0].older
    nodes[node].newer = 0
    nodes[node].older = second
    nodes[second].newer = node
    nodes[0].older = node

/* Arrow: records as columns in the Arrow C data interface.
 *
 *   batch_t {holders, form, map}             one malloc, the columns in it
 *     arrays[0] struct                       n_buffers
 *       arrays[1] lsn      uint64            none, values
 *       arrays[2] data     binary_view       none, views, the mapped segment, its size
 *       arrays[3] list     fixed_size_list   none
 *         arrays[4] price  float64           none, values copied out of the payloads
 *
 * A form says which columns there are: a tree of nodes in pre-order, whose root is the
 * struct.  A batch is made for a capacity, records are added to it, and it is then moved to
 * the consumer.  Payloads of binary_view are not copied: a view of up to twelve bytes holds
 * them, a longer one points into the segment.
 *
 * The structures are those of the Arrow specification ("The Arrow C data interface" and
 * "The Arrow C stream interface"), whose names and order of fields are its ABI.
 *
 * Invariants
 *   D1  Each array, the root or a child that was moved away, holds the batch, and the
 *       batch holds the map: what is left of it stays valid until the last is released.
 *   D2  Releasing needs no lock of Python and no interpreter.
 *
 * This file knows columns and where payloads are in a map.  It may not know frames' order,
 * files or bounds.
 */
#ifndef SHMLOG_ARROW_H
#define SHMLOG_ARROW_H

#include "frame.h"
#include "map.h"

#ifndef ARROW_C_DATA_INTERFACE
#define ARROW_C_DATA_INTERFACE
struct ArrowSchema {
    const char *format, *name, *metadata;
    int64_t flags, n_children;
    struct ArrowSchema **children, *dictionary;
    void (*release)(struct ArrowSchema *);
    void *private_data;
};
struct ArrowArray {
    int64_t length, null_count, offset, n_buffers, n_children;
    const void **buffers;
    struct ArrowArray **children, *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
};
#endif
#ifndef ARROW_C_STREAM_INTERFACE
#define ARROW_C_STREAM_INTERFACE
struct ArrowArrayStream {
    int (*get_schema)(struct ArrowArrayStream *, struct ArrowSchema *);
    int (*get_next)(struct ArrowArrayStream *, struct ArrowArray *);
    const char *(*get_last_error)(struct ArrowArrayStream *);
    void (*release)(struct ArrowArrayStream *);
    void *private_data;
};
#endif

/* What a column is made of. */
#define NODE_KINDS(X)                                                                                   \
    X(NODE_STRUCT, 0)   /* of its children, as is the root */                                           \
    X(NODE_LIST, 1)     /* as many items of its one child for each record */                            \
    X(NODE_LSN, 2)      /* the frame's own ... */                                                       \
    X(NODE_TIME_NS, 3)                                                                                  \
    X(NODE_TAG, 4)                                                                                      \
    X(NODE_WRITER, 5)                                                                                   \
    X(NODE_NBYTES, 6)                                                                                   \
    X(NODE_DATA, 7)     /* the whole payload, as a view */                                              \
    X(NODE_COPY, 8)     /* part of the payload: items as they are ... */                                \
    X(NODE_SWAPPED, 9)  /* ... of the other byte order */                                               \
    X(NODE_BITS, 10)    /* ... bytes that are a bit each */                                             \
    X(NODE_INSTANTS, 11) /* ... int64 of which the least means null */                                  \
    X(NODE_BYTES, 12)   /* ... one string without its trailing zeros, as a view */

#define SHMLOG_NODE(name, number) name = (number),
enum node_kind { NODE_KINDS(SHMLOG_NODE) };
#undef SHMLOG_NODE

typedef struct {
    char *name, *format;
    size_t child_count;
    enum node_kind kind;
    size_t offset, item_bytes; /* in the payload */
    size_t items;              /* for each record */
} node_t;

typedef struct {
    _Atomic size_t holders;
    uint64_t payload_bytes; /* that every record must have, or ANY_BYTES */
    size_t row_bytes;       /* copied for each record */
    size_t count;
    node_t nodes[];
} form_t;

#define ANY_BYTES UINT64_MAX

/* A form of so many nodes, all zero, with one holder; NULL without memory.  The names and
 * formats that it is given are freed with it. */
form_t *form_new(size_t count);
/* Once its nodes are there: whether they are a tree, and their sizes. */
int form_check(form_t *form);
void form_drop(form_t *form);

static inline form_t *form_hold(form_t *form) {
    atomic_fetch_add_explicit(&form->holders, 1, memory_order_relaxed);
    return form;
}

/* Describe the form's columns: 0 or ENOMEM. */
int form_schema(form_t *form, struct ArrowSchema *out);

typedef struct batch batch_t;

/* Room for so many records whose payloads are in the map; NULL without memory. */
batch_t *batch_new(form_t *form, map_t *map, uint64_t capacity);
uint64_t batch_count(const batch_t *batch);
/* Add records whose payloads begin `at` so many bytes into the map, and end inside of it. */
void batch_add(batch_t *batch, const columns_t *records, const uint64_t *at, uint64_t count);
/* Hand the batch to a consumer, or let go of it. */
void batch_move(batch_t *batch, struct ArrowArray *out);
void batch_free(batch_t *batch);

#endif

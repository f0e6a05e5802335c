/* Glue: what the files between Python and the core share.
 *
 *   Python  -->  a method here: parse, hold buffers, let go of the GIL  -->  ../core
 *   Python  <--  Writer._slow, an exception or a result                 <--  an outcome
 *
 * Each type has a file: its struct, its methods, its PyType_Spec and an exec function that
 * creates it; module.c lists those.  Every function takes what it needs from its
 * arguments, from its module's state or from atomics, and none relies on the GIL to keep
 * two threads apart.
 *
 * The files here know Python and the core.  They may not decide anything about a log:
 * what they do with an outcome is to hand it on.
 */
#ifndef SHMLOG_GLUE_H
#define SHMLOG_GLUE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "../core/append.h"
#include "../core/bitmap.h"
#include "../core/fork.h"
#include "../core/guard.h"
#include "../core/map.h"

#define RELEASE_GIL_BYTES 32768u /* below this, letting go costs more than it gives */

/* What an interpreter has of its own. */
typedef struct {
    PyTypeObject *mapping_type, *control_type, *reservation_type, *record_type;
    PyObject *name_slow, *name_tag, *name_durable, *name_timeout, *name_atomic;
} state_t;

extern struct PyModuleDef shmlog_native;

/* Callers take turns on an object: by the GIL, or where there is none by the object's own lock. */
#ifdef Py_BEGIN_CRITICAL_SECTION
#define TURN_BEGIN(object) Py_BEGIN_CRITICAL_SECTION(object)
#define TURN_END() Py_END_CRITICAL_SECTION()
#else
#define TURN_BEGIN(object) {
#define TURN_END() }
#endif

static inline state_t *state_of(PyObject *module) { return PyModule_GetState(module); }

/* Create a type and give it to the module under its own name; a new reference. */
PyTypeObject *add_type(PyObject *module, PyType_Spec *spec);

/* What each file adds to the module (module.c lists them). */
int arguments_exec(PyObject *module);
int mapping_exec(PyObject *module);
int descriptor_exec(PyObject *module);
int control_exec(PyObject *module);
int writer_exec(PyObject *module);
int reservation_exec(PyObject *module);
int record_exec(PyObject *module);
int frames_exec(PyObject *module);
int stream_exec(PyObject *module);
int take_exec(PyObject *module);
int watch_exec(PyObject *module);
int system_exec(PyObject *module);

/* ------------------------------------------------------------------ types */

typedef struct {
    PyObject_HEAD
    map_t *map; /* held; below is what it says */
    uint8_t *base;
    size_t bytes;
    int writable;
    guard_range_t *range;
} MappingObject;

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    uint8_t *base;
    uint64_t bytes;
    uint64_t window_bytes;
    uint64_t slots;
    bitmap_t bitmap;
    guard_range_t *range;
} ControlObject;

/* What a large reservation is written to before it is put into the log. */
typedef struct {
    uint64_t bytes;
    _Alignas(16) uint8_t payload[];
} memory_t;
#define SPARE_BYTES_MAX (8u << 20) /* kept for the next reservation */

typedef struct {
    PyObject_HEAD
    writer_t w;
    state_t *state;              /* of the module that the type keeps alive */
    PyObject *control;           /* keeps w.control alive */
    PyObject **mappings;         /* keeps w.segments[i].frames alive */
    PyObject *_Atomic new_array; /* numpy.empty, imported at the first batch */
    PyObject *_Atomic lsn_type;
    PyObject *_Atomic open[CLAIM_COUNT]; /* borrowed: the open reservation under each claim */
    _Atomic unsigned long open_by[CLAIM_COUNT]; /* and the thread that made it */
    memory_t *_Atomic spare;                    /* of the large reservation that ended last */
} WriterObject;

/* A Mapping that takes over the hold on a map; NULL with an exception, and let go of. */
PyObject *mapping_of(PyTypeObject *type, map_t *map);

/* A Record of a frame whose payload begins at payload_at in `memory`, a memoryview. */
PyObject *record_of(PyTypeObject *type, const frame_t *f, PyObject *memory, uint64_t payload_at);

/* -------------------------------------------------------------- arguments */

/* Which tags: None, an int (all if negative), (low, high, step) or bytes of ascending uint32, which
 * the argument must outlive; -1 with an exception. */
int parse_tags(PyObject *argument, tags_t *tags);

/* [begin, end) must lie inside so many bytes, the first of which is base_lsn. */
int walk_bounds(Py_ssize_t bytes, uint64_t base_lsn, uint64_t begin, uint64_t end);

/* Python's arrays of lsn, time_ns, tag, writer and nbytes, which are to be filled or exported. */
enum { COLUMN_COUNT = 5 };
typedef struct {
    Py_buffer views[COLUMN_COUNT];
    int held;
    columns_t to;
} columns_view_t;

/* -1 with an exception; what is held is to be let go of in any case. */
int columns_open(PyObject *into, columns_view_t *columns);
void columns_close(columns_view_t *columns);

/* What append() and the like were called with. */
typedef struct {
    uint32_t tag;
    int durable, atomic;
    PyObject *timeout;  /* borrowed; NULL: the handle's own */
    PyObject *deadline; /* owned; what _slow last returned */
} options_t;

enum { TAKES_ATOMIC = 1, TAKES_DURABLE = 2 };

/* Parse (what, tag=0, *, atomic, durable, timeout); -1 with an exception. */
int parse_options(const state_t *state, const char *function, PyObject *const *args, Py_ssize_t count,
                  PyObject *names, int takes, options_t *o);

/* A number of seconds as waits take it, or -1.0 with an exception. */
double check_timeout(PyObject *seconds, PyObject *name);

/* View any object but bytes as bytes.  `view->obj` is NULL when there is nothing to
 * release. */
int view_buffer(PyObject *object, Py_buffer *view, piece_t *piece);

static inline int view_bytes(PyObject *object, Py_buffer *view, piece_t *piece) {
    if (!PyBytes_CheckExact(object))
        return view_buffer(object, view, piece);
    view->obj = NULL;
    piece->data = (const uint8_t *)PyBytes_AS_STRING(object);
    piece->bytes = (uint64_t)PyBytes_GET_SIZE(object);
    piece->summed = 1; /* once it has been: nobody can change it (A5) */
    return 0;
}

static inline uint32_t payload_crc(uint32_t seed, const uint8_t *data, uint64_t bytes) {
    if (bytes < RELEASE_GIL_BYTES)
        return crc32c(seed, data, bytes);
    uint32_t crc;
    Py_BEGIN_ALLOW_THREADS
    crc = crc32c(seed, data, bytes);
    Py_END_ALLOW_THREADS
    return crc;
}

/* --------------------------------------------------------------- the door */

/* Reasons for Writer._slow. */
#define SLOW_REASONS(X)                                                                                   \
    X(SLOW_ROOM, 1)       /* lsn: how far room is wanted */                                               \
    X(SLOW_MAP, 2)        /* lsn: whose segment is not mapped */                                          \
    X(SLOW_STALE, 3)      /* forked, closed or faulted */                                                 \
    X(SLOW_CLAIMS, 4)     /* every claim in use */                                                        \
    X(SLOW_BELL, 5)       /* the flusher sleeps and wants to hear of an append */                         \
    X(SLOW_DURABLE, 6)    /* lsn: what must become durable */                                             \
    X(SLOW_LARGE, 7)      /* lsn: the size that is too large */                                           \
    X(SLOW_FAULT, 8)      /* lsn: where a mapping faulted under a copy */                                 \
    X(SLOW_SYNC_BELL, 9)  /* the flusher's sync loop sleeps and a durable wait begins */

#define SHMLOG_REASON(name, number) name = (number),
enum { SLOW_REASONS(SHMLOG_REASON) };
#undef SHMLOG_REASON

/* Call self._slow(reason, lsn, timeout, deadline), the one door out of C; 0 to go on, -1
 * with an exception. */
int slow(WriterObject *self, int reason, uint64_t lsn, options_t *o);

/* Take a claim, through as many refusals as it takes; -1 with an exception. */
int begin(WriterObject *self, ticketed_t *t, options_t *o);

/* Give the claim up, let _slow make room or map, and take one again. */
int again(WriterObject *self, int outcome, ticketed_t *t, options_t *o);

/* After DONE: ring if the flusher sleeps, wait if the caller asked for it. */
int finish(WriterObject *self, uint64_t last_lsn, options_t *o);

/* A mapping faulted: _slow raises, and the claim stays held. */
int faulted(WriterObject *self, const ticketed_t *t, options_t *o);

/* The disk refused a large payload, whose range has been given back: -1 with an OSError. */
int refused(const ticketed_t *t);

/* SystemExit("died"), and NULL: a step of the test build says that the process is dead. */
PyObject *died(void);

/* 0, or -1 with an exception if __init__ has not been called. */
int writer_ready(const WriterObject *self);

PyObject *Writer_append(WriterObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names);
PyObject *Writer_append_many(WriterObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names);
PyObject *Writer_append_rows(WriterObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names);
PyObject *Writer_reserve(WriterObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names);
PyObject *Writer_abandon_own(WriterObject *self, PyObject *unused);

#endif

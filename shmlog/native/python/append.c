/* Append: the append paths, and the door by which anything rare leaves them for Python.
 *
 *   parse, view  -->  begin: take a claim  -->  append_plan (core)  -->  finish: ring, wait
 *                          ^                        | refused
 *                          '---- again: _slow  <----'
 *
 * This file knows outcomes and whom to tell of them.  It may not know how a record is laid
 * out, where there is room or who is alive.
 */
#include "glue.h"

#include "../core/wait.h"

#include <errno.h>

int slow(WriterObject *self, int reason, uint64_t lsn, options_t *o) {
    if (writer_ready(self) != 0)
        return -1;
    PyObject *number = PyLong_FromLong(reason), *where = PyLong_FromUnsignedLongLong(lsn), *result = NULL;
    if (number && where) {
        PyObject *args[5] = {(PyObject *)self, number, where, o->timeout ? o->timeout : Py_None,
                             o->deadline ? o->deadline : Py_None};
        size_t count = 5 | PY_VECTORCALL_ARGUMENTS_OFFSET;
        result = PyObject_VectorcallMethod(self->state->name_slow, args, count, NULL);
    }
    Py_XDECREF(number);
    Py_XDECREF(where);
    if (!result)
        return -1;
    Py_XSETREF(o->deadline, result);
    return 0;
}

int begin(WriterObject *self, ticketed_t *t, options_t *o) {
    for (;;) {
        int outcome = claim_take(&self->w, t);
        if (outcome == OUTCOME_DONE)
            return 0;
        if (slow(self, outcome == OUTCOME_CLAIMS ? SLOW_CLAIMS : SLOW_STALE, 0, o) != 0)
            return -1;
    }
}

int again(WriterObject *self, int outcome, ticketed_t *t, options_t *o) {
    claim_give(&self->w, t); /* A2 */
    if (slow(self, outcome == OUTCOME_MAP ? SLOW_MAP : SLOW_ROOM, t->want, o) != 0)
        return -1;
    return begin(self, t, o);
}

int faulted(WriterObject *self, const ticketed_t *t, options_t *o) {
    claim_lose(&self->w, t);
    slow(self, SLOW_FAULT, t->begin, o);
    return -1;
}

int refused(const ticketed_t *t) {
    errno = (int)t->want;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

PyObject *died(void) { return PyErr_Format(PyExc_SystemExit, "died"); }

/* Wait until the record at lsn is durable.  The common case, a flusher that is awake and
 * a sync that works, needs no Python at all. */
static int wait_durable(WriterObject *self, uint64_t lsn, options_t *o) {
    uint8_t *control = self->w.control;
    if (!o->timeout)
        for (int ring = 1; ring >= 0; ring--) {
            enum wait_end end;
            Py_BEGIN_ALLOW_THREADS
            end = word_wait(control, CB_DURABLE_LSN, CB_WANTED_DURABLE, CB_SYNC_SLEEP, lsn + 1, ring,
                            DURABLE_SPIN_NS, WAIT_SLICE_NS);
            Py_END_ALLOW_THREADS
            if (end == WAIT_REACHED) {
                atomic_fetch_add_explicit(word_at(self->w.slot, PT_WAITS), 1, memory_order_relaxed);
                return 0;
            }
            if (end != WAIT_RING)
                break;
            if (slow(self, SLOW_SYNC_BELL, lsn, o) != 0)
                return -1;
        }
    return slow(self, SLOW_DURABLE, lsn, o);
}

/* Give the exception that is set an attribute `appended`: so many records of the call
 * are in the log all the same. */
static void say_appended(Py_ssize_t count) {
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    PyObject *number = PyLong_FromSsize_t(count);
    if (!number || !error || PyObject_SetAttrString(error, "appended", number) != 0)
        PyErr_Clear();
    Py_XDECREF(number);
    PyErr_Restore(type, error, trace);
}

int finish(WriterObject *self, uint64_t last_lsn, options_t *o) {
    if (flusher_sleeps(&self->w) && slow(self, SLOW_BELL, last_lsn, o) != 0)
        return -1;
    return o->durable ? wait_durable(self, last_lsn, o) : 0;
}

/* The core's part, without the GIL if it takes long. */
static int append_plan_unlocked(WriterObject *self, const plan_t *plan, ticketed_t *t, uint64_t *lsns) {
    int outcome;
    Py_BEGIN_ALLOW_THREADS
    outcome = append_plan(&self->w, plan, t, lsns);
    Py_END_ALLOW_THREADS
    return outcome;
}

/* Append one plan, through as many refusals as it takes.  0, or -1 with an
 * exception and nothing reserved (but for a fault, which latches the log). */
static int append_all(WriterObject *self, const plan_t *plan, uint64_t *lsns, options_t *o) {
    ticketed_t t;
    if (begin(self, &t, o) != 0)
        return -1;
    for (;;) {
        int outcome = plan->frame_bytes >= RELEASE_GIL_BYTES ? append_plan_unlocked(self, plan, &t, lsns)
                                                             : append_plan(&self->w, plan, &t, lsns);
        if (outcome == OUTCOME_DONE)
            return 0;
        if (outcome == OUTCOME_FAULT)
            return faulted(self, &t, o);
        if (outcome == OUTCOME_DISK)
            return refused(&t);
        if (outcome == OUTCOME_DIED) {
            died();
            return -1;
        }
        if (again(self, outcome, &t, o) != 0)
            return -1;
    }
}

/* Sum what nobody can change before it is reserved for (A5). */
static void sum(piece_t *piece, uint32_t seed) {
    if (piece->summed)
        piece->crc = payload_crc(seed, piece->data, piece->bytes);
}

PyObject *Writer_append(WriterObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    options_t o;
    if (parse_options(self->state, "append", args, count, names, TAKES_DURABLE, &o) != 0)
        return NULL;
    Py_buffer view;
    piece_t piece;
    if (view_bytes(args[0], &view, &piece) != 0)
        return NULL;
    uint64_t lsn = 0;
    int failed = piece.bytes > self->w.record_bytes_max && slow(self, SLOW_LARGE, piece.bytes, &o) != 0;
    if (!failed) {
        sum(&piece, self->w.seed);
        plan_t plan = {.pieces = &piece,
                       .count = 1,
                       .frame_bytes = frame_bytes(piece.bytes),
                       .payload_bytes = piece.bytes,
                       .tag = o.tag};
        failed = append_all(self, &plan, &lsn, &o) != 0;
        if (!failed && (failed = finish(self, lsn, &o) != 0))
            say_appended(1);
    }
    if (view.obj)
        PyBuffer_Release(&view);
    Py_XDECREF(o.deadline);
    return failed ? NULL : PyLong_FromUnsignedLongLong(lsn);
}

/* Import once what makes an array of LSNs. */
static int find_numpy(WriterObject *self) {
    PyObject *numpy = PyImport_ImportModule("numpy");
    if (!numpy)
        return -1;
    PyObject *unset = NULL, *type = PyObject_GetAttrString(numpy, "uint64");
    PyObject *empty = type ? PyObject_GetAttrString(numpy, "empty") : NULL;
    Py_DECREF(numpy);
    if (!empty) {
        Py_XDECREF(type);
        return -1;
    }
    if (!atomic_compare_exchange_strong(&self->lsn_type, &unset, type))
        Py_DECREF(type); /* another thread was first */
    unset = NULL;
    if (!atomic_compare_exchange_strong(&self->new_array, &unset, empty))
        Py_DECREF(empty);
    return 0;
}

/* A new uint64 array of `count`, and a view of its memory. */
static PyObject *new_lsns(WriterObject *self, Py_ssize_t count, Py_buffer *view) {
    view->obj = NULL;
    if (!atomic_load(&self->new_array) && find_numpy(self) != 0)
        return NULL;
    PyObject *length = PyLong_FromSsize_t(count);
    if (!length)
        return NULL;
    PyObject *args[2] = {length, atomic_load(&self->lsn_type)};
    PyObject *array = PyObject_Vectorcall(atomic_load(&self->new_array), args, 2, NULL);
    Py_DECREF(length);
    if (array && PyObject_GetBuffer(array, view, PyBUF_WRITABLE) != 0)
        Py_CLEAR(array);
    return array;
}

/* The items of append_many(), and the buffers that are held for them. */
typedef struct {
    PyObject *items;
    piece_t *pieces;
    Py_buffer *views; /* of items that are not bytes */
    Py_ssize_t count, held;
} batch_t;

static void batch_close(batch_t *batch) {
    for (Py_ssize_t i = 0; i < batch->held; i++)
        PyBuffer_Release(&batch->views[i]);
    PyMem_Free(batch->views);
    PyMem_Free(batch->pieces);
    Py_DECREF(batch->items);
}

/* View one item, and hold its buffer if it has one. */
static int batch_view(batch_t *batch, Py_ssize_t i) {
    Py_buffer view;
    if (view_bytes(PyTuple_GET_ITEM(batch->items, i), &view, &batch->pieces[i]) != 0)
        return -1;
    if (!view.obj)
        return 0;
    if (!batch->views && !(batch->views = PyMem_Malloc((size_t)batch->count * sizeof *batch->views))) {
        PyBuffer_Release(&view);
        PyErr_NoMemory();
        return -1;
    }
    batch->views[batch->held++] = view;
    return 0;
}

/* View all of them; refuse what can never fit; sum what cannot change. */
static int batch_open(WriterObject *self, batch_t *batch, options_t *o) {
    batch->pieces = PyMem_Malloc((size_t)(batch->count ? batch->count : 1) * sizeof *batch->pieces);
    if (!batch->pieces) {
        PyErr_NoMemory();
        return -1;
    }
    uint64_t total = 0;
    for (Py_ssize_t i = 0; i < batch->count; i++) {
        if (batch_view(batch, i) != 0)
            return -1;
        uint64_t bytes = batch->pieces[i].bytes;
        total += frame_bytes(bytes);
        if (bytes > self->w.record_bytes_max && slow(self, SLOW_LARGE, bytes, o) != 0)
            return -1;
    }
    if (o->atomic && total > self->w.batch_bytes_max && slow(self, SLOW_LARGE, total, o) != 0)
        return -1;
    for (Py_ssize_t i = 0; i < batch->count; i++)
        sum(&batch->pieces[i], self->w.seed);
    return 0;
}

/* One reservation, unless the batch is larger than one may be. */
static int batch_append(WriterObject *self, const batch_t *batch, uint64_t *lsns, options_t *o) {
    Py_ssize_t n = batch->count, first = 0;
    while (first < n) {
        plan_t plan = plan_pieces(&self->w, batch->pieces + first, (uint64_t)(n - first));
        plan.tag = o->tag;
        plan.batch_flag = o->atomic ? FLAG_BATCH_GOES_ON : 0;
        if (append_all(self, &plan, lsns + first, o) != 0) {
            if (first)
                say_appended(first);
            return -1;
        }
        first += (Py_ssize_t)plan.count;
    }
    if (n && finish(self, lsns[n - 1], o) != 0) {
        say_appended(n);
        return -1;
    }
    return 0;
}

PyObject *Writer_append_many(WriterObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    options_t o;
    int takes = TAKES_ATOMIC | TAKES_DURABLE;
    if (parse_options(self->state, "append_many", args, count, names, takes, &o) != 0)
        return NULL;
    if (PyUnicode_Check(args[0]) || PyBytes_Check(args[0]) || PyByteArray_Check(args[0]))
        return PyErr_Format(PyExc_TypeError, "append_many() takes a sequence of buffers, not one %s",
                            Py_TYPE(args[0])->tp_name);
    batch_t batch = {.items = PySequence_Tuple(args[0])};
    if (!batch.items)
        return NULL;
    batch.count = PyTuple_GET_SIZE(batch.items);
    Py_buffer lsns;
    PyObject *array = new_lsns(self, batch.count, &lsns);
    int failed = !array || batch_open(self, &batch, &o) != 0 || batch_append(self, &batch, lsns.buf, &o) != 0;
    batch_close(&batch);
    if (lsns.obj)
        PyBuffer_Release(&lsns);
    Py_XDECREF(o.deadline);
    if (failed)
        Py_CLEAR(array);
    return array;
}

/* As batch_append, for the rows of an array. */
static int rows_append(WriterObject *self, const Py_buffer *rows, uint64_t *lsns, options_t *o) {
    uint64_t n = (uint64_t)rows->shape[0], first = 0;
    uint64_t row_bytes = n ? (uint64_t)rows->len / n : 0;
    if (row_bytes > self->w.record_bytes_max && slow(self, SLOW_LARGE, row_bytes, o) != 0)
        return -1;
    while (first < n) {
        plan_t plan =
            plan_rows(&self->w, (const uint8_t *)rows->buf + first * row_bytes, row_bytes, n - first);
        plan.tag = o->tag;
        if (append_all(self, &plan, lsns + first, o) != 0) {
            if (first)
                say_appended((Py_ssize_t)first);
            return -1;
        }
        first += plan.count;
    }
    if (n && finish(self, lsns[n - 1], o) != 0) {
        say_appended((Py_ssize_t)n);
        return -1;
    }
    return 0;
}

PyObject *Writer_append_rows(WriterObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    options_t o;
    if (parse_options(self->state, "append_array", args, count, names, TAKES_DURABLE, &o) != 0)
        return NULL;
    Py_buffer rows, lsns;
    if (PyObject_GetBuffer(args[0], &rows, PyBUF_ND) != 0)
        return NULL;
    if (rows.ndim < 1) {
        PyBuffer_Release(&rows);
        return PyErr_Format(PyExc_ValueError, "append_array() takes an array of at least one dimension");
    }
    PyObject *array = new_lsns(self, rows.shape[0], &lsns);
    int failed = !array || rows_append(self, &rows, lsns.buf, &o) != 0;
    PyBuffer_Release(&rows);
    if (lsns.obj)
        PyBuffer_Release(&lsns);
    Py_XDECREF(o.deadline);
    if (failed)
        Py_CLEAR(array);
    return array;
}

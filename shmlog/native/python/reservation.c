/* Reservation: a record whose owner writes it in place.
 *
 * It ends once: published, given up, or, when nobody has it any more, given up by
 * whoever finds it dead.  The finalizer does that before a collector takes apart what the
 * reservation stands on; then the references, set once like a tuple's, need no clearing.
 *
 * This file knows one reservation and who may end it.  It may not know how it is laid out.
 */
#include "glue.h"

typedef struct {
    PyObject_HEAD
    WriterObject *writer;
    PyObject *mapping; /* keeps place.at alive */
    memory_t *memory;  /* of a large payload */
    place_t place;
    uint64_t generation;
    _Atomic int done;
} ReservationObject;

/* Memory for a large payload, all zeros: what an earlier reservation of the writer had, if it will do.
 * To have the kernel make and clear pages for each costs more than the copy into them. */
static memory_t *take_memory(WriterObject *self, uint64_t bytes) {
    memory_t *spare = atomic_exchange(&self->spare, NULL);
    if (spare && spare->bytes >= bytes) {
        memset(spare->payload, 0, bytes);
        return spare;
    }
    PyMem_RawFree(spare);
    memory_t *fresh = PyMem_RawCalloc(1, sizeof *fresh + bytes);
    if (fresh)
        fresh->bytes = bytes;
    return fresh;
}

static void give_memory(WriterObject *self, memory_t *memory) {
    if (memory->bytes <= SPARE_BYTES_MAX)
        memory = atomic_exchange(&self->spare, memory);
    PyMem_RawFree(memory);
}

static int parse_size(WriterObject *self, PyObject *size, options_t *o, uint64_t *out) {
    if (!PyIndex_Check(size)) {
        PyErr_Format(PyExc_TypeError, "nbytes must be an int, not %s", Py_TYPE(size)->tp_name);
        return -1;
    }
    Py_ssize_t bytes = PyNumber_AsSsize_t(size, PyExc_OverflowError);
    if (bytes == -1 && PyErr_Occurred())
        return -1;
    if (bytes < 0) {
        PyErr_Format(PyExc_ValueError, "nbytes must not be negative: %zd", bytes);
        return -1;
    }
    *out = (uint64_t)bytes;
    return *out > self->w.record_bytes_max ? slow(self, SLOW_LARGE, *out, o) : 0;
}

PyObject *Writer_reserve(WriterObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    options_t o;
    uint64_t bytes;
    if (parse_options(self->state, "reserve", args, count, names, 0, &o) != 0)
        return NULL;
    if (parse_size(self, args[0], &o, &bytes) != 0)
        return NULL;
    PyTypeObject *type = self->state->reservation_type;
    ReservationObject *r = (ReservationObject *)type->tp_alloc(type, 0);
    if (!r)
        return NULL;
    atomic_store(&r->done, 1); /* nothing to give back yet */
    if (bytes >= LARGE_BYTES && !(r->memory = take_memory(self, bytes))) {
        Py_DECREF(r);
        return PyErr_NoMemory();
    }
    uint8_t *memory = r->memory ? r->memory->payload : NULL;
    int outcome, failed = begin(self, &r->place.t, &o) != 0;
    while (!failed && (outcome = place_reserve(&self->w, bytes, o.tag, memory, &r->place)) != OUTCOME_DONE)
        failed = again(self, outcome, &r->place.t, &o) != 0;
    Py_XDECREF(o.deadline);
    if (failed) {
        Py_DECREF(r);
        return NULL;
    }
    r->writer = (WriterObject *)Py_NewRef((PyObject *)self);
    r->mapping = Py_NewRef(self->mappings[segment_index(&self->w, r->place.start >> self->w.segment_shift)]);
    r->generation = atomic_load(&fork_generation);
    atomic_store(&r->done, 0);
    atomic_store(&self->open_by[r->place.t.claim_no], PyThread_get_thread_ident());
    atomic_store(&self->open[r->place.t.claim_no], (PyObject *)r);
    return (PyObject *)r;
}

/* 1 if the caller now owns the ending of the reservation.  It is off the writer's list before
 * its claim can be another's. */
static int reservation_end(ReservationObject *r) {
    if (atomic_exchange(&r->done, 1) != 0)
        return 0;
    atomic_store(&r->writer->open[r->place.t.claim_no], NULL);
    return 1;
}

static int reservation_foreign(ReservationObject *r) {
    return r->generation != atomic_load(&fork_generation);
}

static void reservation_abandon(ReservationObject *r) {
    if (!reservation_end(r) || reservation_foreign(r))
        return;
    if (place_abandon(&r->writer->w, &r->place) == OUTCOME_FAULT)
        claim_lose(&r->writer->w, &r->place.t);
}

/* Those of this thread alone: what another thread is about to publish is let be. */
PyObject *Writer_abandon_own(WriterObject *self, PyObject *unused) {
    (void)unused;
    long count = 0;
    for (unsigned i = 0; i < CLAIM_COUNT; i++) {
        if (atomic_load(&self->open_by[i]) != PyThread_get_thread_ident())
            continue;
        PyObject *open = atomic_load(&self->open[i]);
        if (open) {
            reservation_abandon((ReservationObject *)open);
            count++;
        }
    }
    return PyLong_FromLong(count);
}

/* Sum and seal, without the GIL if that takes long. */
static int reservation_seal(ReservationObject *r) {
    if (r->place.payload_bytes < RELEASE_GIL_BYTES)
        return place_seal(&r->writer->w, &r->place);
    int outcome;
    Py_BEGIN_ALLOW_THREADS
    outcome = place_seal(&r->writer->w, &r->place);
    Py_END_ALLOW_THREADS
    return outcome;
}

/* The disk refused the payload: give the place back. */
static int reservation_refused(ReservationObject *r) {
    int outcome = place_abandon(&r->writer->w, &r->place);
    return outcome == OUTCOME_DONE ? OUTCOME_DISK : outcome;
}

static int reservation_publish(ReservationObject *r) {
    if (reservation_foreign(r)) {
        PyErr_SetString(PyExc_ValueError, "the reservation belongs to the parent process");
        return -1;
    }
    if (!reservation_end(r)) {
        PyErr_SetString(PyExc_ValueError, "the reservation has been published or aborted");
        return -1;
    }
    options_t o = {0};
    int failed, outcome = reservation_seal(r);
    if (outcome == OUTCOME_DISK)
        outcome = reservation_refused(r);
    if (outcome == OUTCOME_FAULT) {
        failed = faulted(r->writer, &r->place.t, &o);
    } else if (outcome == OUTCOME_DISK) {
        failed = refused(&r->place.t);
    } else if (publish(&r->writer->w, &r->place.t, 1, r->place.payload_bytes) == OUTCOME_DIED) {
        died();
        failed = -1;
    } else {
        failed = finish(r->writer, r->place.start, &o);
    }
    Py_XDECREF(o.deadline);
    return failed;
}

static PyObject *Reservation_publish(ReservationObject *self, PyObject *unused) {
    (void)unused;
    if (reservation_publish(self) != 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(self->place.start);
}

static PyObject *Reservation_abort(ReservationObject *self, PyObject *unused) {
    (void)unused;
    reservation_abandon(self);
    Py_RETURN_NONE;
}

static PyObject *Reservation_enter(PyObject *self, PyObject *unused) {
    (void)unused;
    return Py_NewRef(self);
}

static PyObject *Reservation_exit(ReservationObject *self, PyObject *args) {
    PyObject *type, *value, *traceback;
    if (!PyArg_ParseTuple(args, "OOO", &type, &value, &traceback))
        return NULL;
    if (type != Py_None)
        reservation_abandon(self);
    else if (!atomic_load(&self->done) && reservation_publish(self) != 0)
        return NULL;
    Py_RETURN_FALSE;
}

static int Reservation_getbuffer(ReservationObject *self, Py_buffer *view, int flags) {
    if (atomic_load(&self->done)) {
        PyErr_SetString(PyExc_BufferError, "the reservation has been published or aborted");
        return -1;
    }
    const place_t *place = &self->place;
    return PyBuffer_FillInfo(view, (PyObject *)self, place->payload, (Py_ssize_t)place->payload_bytes, 0, flags);
}

static PyObject *Reservation_buffer(PyObject *self, void *closure) {
    (void)closure;
    return PyMemoryView_FromObject(self);
}

static PyObject *Reservation_array(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"dtype", "shape", NULL};
    PyObject *dtype, *shape = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O", names, &dtype, &shape))
        return NULL;
    PyObject *numpy = PyImport_ImportModule("numpy");
    if (!numpy)
        return NULL;
    PyObject *flat = PyObject_CallMethod(numpy, "frombuffer", "OO", self, dtype);
    Py_DECREF(numpy);
    if (!flat || shape == Py_None)
        return flat;
    PyObject *array = PyObject_CallMethod(flat, "reshape", "(O)", shape);
    Py_DECREF(flat);
    return array;
}

static PyObject *Reservation_lsn(ReservationObject *self, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLongLong(self->place.start);
}

static void Reservation_finalize(PyObject *self) {
    if (((ReservationObject *)self)->writer)
        reservation_abandon((ReservationObject *)self);
}

static void Reservation_dealloc(ReservationObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Reservation_finalize((PyObject *)self);
    Py_XDECREF(self->mapping);
    if (self->memory && self->writer)
        give_memory(self->writer, self->memory);
    else
        PyMem_RawFree(self->memory);
    Py_XDECREF((PyObject *)self->writer);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static int Reservation_traverse(ReservationObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->writer);
    Py_VISIT(self->mapping);
    return 0;
}

static PyMethodDef Reservation_methods[] = {
    {"publish", (PyCFunction)Reservation_publish, METH_NOARGS,
     "publish()\n--\n\nPublish the record; its LSN."},
    {"abort", (PyCFunction)Reservation_abort, METH_NOARGS,
     "abort()\n--\n\nGive the range up: readers skip it."},
    {"array", (PyCFunction)(void (*)(void))Reservation_array, METH_VARARGS | METH_KEYWORDS,
     "array(dtype, shape=None)\n--\n\n"
     "The payload as a writable array, zero-copy. Do not write to it after publishing."},
    {"__enter__", Reservation_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)Reservation_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL}};
static PyGetSetDef Reservation_getset[] = {
    {"buffer", Reservation_buffer, NULL, "The payload as a writable memoryview.", NULL},
    {"lsn", (getter)Reservation_lsn, NULL, "The LSN that the record will have.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot Reservation_slots[] = {
    {Py_tp_doc, (void *)"A reserved place in the log, to be written in place; published on leaving the "
                        "with block."},
    {Py_tp_dealloc, Reservation_dealloc},
    {Py_tp_finalize, Reservation_finalize},
    {Py_tp_traverse, Reservation_traverse},
    {Py_tp_methods, Reservation_methods},
    {Py_tp_getset, Reservation_getset},
    {Py_bf_getbuffer, Reservation_getbuffer},
    {0, NULL}};
static PyType_Spec Reservation_spec = {
    .name = "shmlog.Reservation",
    .basicsize = sizeof(ReservationObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Reservation_slots};

int reservation_exec(PyObject *module) {
    state_of(module)->reservation_type = add_type(module, &Reservation_spec);
    return state_of(module)->reservation_type ? 0 : -1;
}

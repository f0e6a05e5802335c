/* Writer: the type that handles inherit their append paths from.
 *
 * A subclass defines _slow.  What the paths do is in append.c and reservation.c; here are
 * the handle's life, the participant it is and the segments that it has mapped.
 *
 * This file knows what keeps the writer's addresses alive.  It may not know a record.
 */
#include "glue.h"

static PyObject *Writer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)args;
    (void)kwargs;
    PyObject *module = PyType_GetModuleByDef(type, &shmlog_native);
    WriterObject *self = module ? (WriterObject *)type->tp_alloc(type, 0) : NULL;
    if (self)
        self->state = state_of(module);
    return (PyObject *)self;
}

static int Writer_init(WriterObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"seed", "segment_bytes", "window_bytes", NULL};
    unsigned long long seed, segment_bytes, window_bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KKK", names, &seed, &segment_bytes, &window_bytes))
        return -1;
    if (self->w.segments) {
        PyErr_SetString(PyExc_TypeError, "a Writer is initialised once");
        return -1;
    }
    if (segment_bytes < 4096 || (segment_bytes & (segment_bytes - 1)) || segment_bytes > UINT64_C(1) << 31) {
        PyErr_Format(PyExc_ValueError, "segment_bytes=%llu", segment_bytes);
        return -1;
    }
    uint64_t entries = segment_entries(segment_bytes, window_bytes);
    segment_entry_t *segments = PyMem_RawCalloc(entries, sizeof *segments);
    PyObject **mappings = PyMem_RawCalloc(entries, sizeof *mappings);
    if (!segments || !mappings) {
        PyMem_RawFree(segments);
        PyMem_RawFree(mappings);
        PyErr_NoMemory();
        return -1;
    }
    self->mappings = mappings;
    writer_initialize(&self->w, segments, (uint32_t)seed, segment_bytes, window_bytes);
    return 0;
}

int writer_ready(const WriterObject *self) {
    if (self->w.segments)
        return 0;
    PyErr_SetString(PyExc_RuntimeError, "Writer.__init__() has not been called");
    return -1;
}

/* Drop the mappings of segments that end at or below lsn (A4). */
static void drop_below(WriterObject *self, uint64_t lsn) {
    TURN_BEGIN(self);
    for (uint64_t i = 0; self->w.segments && i <= self->w.segment_mask; i++)
        if (segment_drop_below(&self->w, i, lsn))
            Py_CLEAR(self->mappings[i]);
    TURN_END();
}

static int Writer_traverse(WriterObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->control);
    for (uint64_t i = 0; self->mappings && i <= self->w.segment_mask; i++)
        Py_VISIT(self->mappings[i]);
    PyObject *new_array = atomic_load(&self->new_array), *lsn_type = atomic_load(&self->lsn_type);
    Py_VISIT(new_array);
    Py_VISIT(lsn_type);
    return 0;
}

/* Reservations, which stand on the same memory, have been given up before: theirs is a
 * finalizer.  Sealed, the writer touches nothing of it any more. */
static int Writer_clear(WriterObject *self) {
    writer_seal(&self->w);
    drop_below(self, NO_LSN);
    Py_CLEAR(self->control);
    Py_XDECREF(atomic_exchange(&self->new_array, NULL));
    Py_XDECREF(atomic_exchange(&self->lsn_type, NULL));
    return 0;
}

static void Writer_dealloc(WriterObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Writer_clear(self);
    PyMem_RawFree(self->mappings);
    PyMem_RawFree(self->w.segments);
    PyMem_RawFree(atomic_load(&self->spare));
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyObject *Writer_attach(WriterObject *self, PyObject *args) {
    ControlObject *control;
    unsigned long long number;
    if (!PyArg_ParseTuple(args, "O!K", self->state->control_type, &control, &number) ||
        writer_ready(self) != 0)
        return NULL;
    if (number >= control->slots)
        return PyErr_Format(PyExc_ValueError, "participant %llu of %llu", number,
                            (unsigned long long)control->slots);
    drop_below(self, NO_LSN);
    Py_XSETREF(self->control, Py_NewRef((PyObject *)control));
    writer_attach(&self->w, control->base, control->range, control->bitmap, (uint16_t)number);
    Py_RETURN_NONE;
}

static PyObject *Writer_seal(WriterObject *self, PyObject *unused) {
    (void)unused;
    return writer_ready(self) != 0 ? NULL : PyLong_FromUnsignedLong(writer_seal(&self->w));
}

static PyObject *Writer_renew(WriterObject *self, PyObject *unused) {
    (void)unused;
    if (writer_ready(self) != 0)
        return NULL;
    writer_renew(&self->w);
    Py_RETURN_NONE;
}

static PyObject *Writer_unmap(WriterObject *self, PyObject *unused) {
    (void)unused;
    if (writer_ready(self) != 0)
        return NULL;
    drop_below(self, NO_LSN);
    Py_RETURN_NONE;
}

static PyObject *Writer_drop_below(WriterObject *self, PyObject *arg) {
    uint64_t lsn = PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred() || writer_ready(self) != 0)
        return NULL;
    drop_below(self, lsn);
    Py_RETURN_NONE;
}

static PyObject *Writer_map(WriterObject *self, PyObject *args) {
    unsigned long long number;
    MappingObject *mapping;
    if (!PyArg_ParseTuple(args, "KO!", &number, self->state->mapping_type, &mapping) ||
        writer_ready(self) != 0)
        return NULL;
    if (mapping->bytes < SEGMENT_HEADER_BYTES + self->w.segment_bytes || !mapping->writable)
        return PyErr_Format(PyExc_ValueError, "the mapping is read-only or too small for a segment");
    TURN_BEGIN(self);
    if (segment_make_way(&self->w, number)) {
        Py_XSETREF(self->mappings[segment_index(&self->w, number)], Py_NewRef((PyObject *)mapping));
        segment_map(&self->w, number, mapping->base + SEGMENT_HEADER_BYTES, mapping->range, &mapping->map->file);
    }
    TURN_END();
    Py_RETURN_NONE;
}

static PyObject *Writer_slow(PyObject *self, PyObject *args) {
    (void)self;
    (void)args;
    return PyErr_Format(PyExc_NotImplementedError, "a subclass must define _slow");
}

#define FAST(name) (PyCFunction)(void (*)(void))(name), METH_FASTCALL | METH_KEYWORDS
static PyMethodDef Writer_methods[] = {
    {"append", FAST(Writer_append),
     "append($self, data, /, tag=0, *, durable=False, timeout=None)\n--\n\n"
     "Append one record and return its LSN.\n\n"
     "data is any C-contiguous buffer (bytes, bytearray, memoryview, array); it may be\n"
     "empty. The record survives the death of any or all processes once this returns,\n"
     "and power loss once it is durable: durable=True waits for that.\n\n"
     "Blocks only while the log has no room (at most timeout seconds, default the\n"
     "handle's; then LogFullError and nothing was appended) and, with durable=True, for\n"
     "the sync (TimeoutError: appended, not known to be durable).\n\n"
     "Raises RecordTooLargeError, TypeError, ValueError (tag), LogFailedError, ClosedError, and\n"
     "OSError if the disk refuses a large record.\n"
     "An error that came after records of the call were appended, from the durable wait or\n"
     "between the reservations of a large batch, has an attribute `appended`: how many."},
    {"append_many", FAST(Writer_append_many),
     "append_many($self, buffers, /, tag=0, *, atomic=False, durable=False, timeout=None)\n--\n\n"
     "Append several records with one reservation; their LSNs as a uint64 array (n,).\n\n"
     "With atomic=True recovery keeps all of them or none. A batch larger than half the\n"
     "window takes several reservations, or, if atomic, is refused (RecordTooLargeError).\n"
     "Blocking and errors as append()."},
    {"_append_rows", FAST(Writer_append_rows),
     "_append_rows($self, rows, /, tag=0, *, durable=False, timeout=None)\n--\n\n"
     "append_array() for arrays that export a buffer."},
    {"reserve", FAST(Writer_reserve),
     "reserve($self, nbytes, /, tag=0, *, timeout=None)\n--\n\n"
     "Reserve a record of nbytes to be written in place; returns a Reservation.\n\n"
     "    with log.reserve(8 * n) as r:\n"
     "        r.array('f8')[:] = values\n\n"
     "Published on leaving the block; on an exception the range is given up. Nothing\n"
     "after it is committed while it is open. A large record is written in memory of its\n"
     "own and copied on publishing. Blocking and errors as append()."},
    {"_attach", (PyCFunction)Writer_attach, METH_VARARGS,
     "_attach(control, number)\n--\n\nBecome a participant."},
    {"_seal", (PyCFunction)Writer_seal, METH_NOARGS,
     "_seal()\n--\n\nRefuse new appends; how many claims are in use."},
    {"_renew", (PyCFunction)Writer_renew, METH_NOARGS, "_renew()\n--\n\nTake the process's current ticket."},
    {"_map", (PyCFunction)Writer_map, METH_VARARGS,
     "_map(number, mapping)\n--\n\nUse a mapping for a segment."},
    {"_drop_below", (PyCFunction)Writer_drop_below, METH_O,
     "_drop_below(lsn)\n--\n\nDrop mappings that end at or below lsn."},
    {"_abandon_own", (PyCFunction)Writer_abandon_own, METH_NOARGS,
     "_abandon_own()\n--\n\nGive up the open reservations of this thread; how many there were."},
    {"_unmap", (PyCFunction)Writer_unmap, METH_NOARGS,
     "_unmap()\n--\n\nDrop every mapping; only when sealed and idle."},
    {"_slow", Writer_slow, METH_VARARGS, "_slow(reason, lsn, timeout, deadline)\n--\n\nWhatever is rare."},
    {NULL, NULL, 0, NULL}};

static PyObject *Writer_record_max(WriterObject *self, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLongLong(self->w.record_bytes_max);
}

static PyObject *Writer_number(WriterObject *self, void *closure) {
    (void)closure;
    return PyLong_FromLong(self->w.number);
}

static PyGetSetDef Writer_getset[] = {
    {"record_bytes_max", (getter)Writer_record_max, NULL,
     "The largest record this log takes, in bytes.", NULL},
    {"writer_number", (getter)Writer_number, NULL,
     "This handle's participant number, as in Record.writer.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot Writer_slots[] = {
    {Py_tp_doc, (void *)"The append paths; a subclass defines _slow."},
    {Py_tp_new, Writer_new},
    {Py_tp_init, Writer_init},
    {Py_tp_dealloc, Writer_dealloc},
    {Py_tp_traverse, Writer_traverse},
    {Py_tp_clear, Writer_clear},
    {Py_tp_methods, Writer_methods},
    {Py_tp_getset, Writer_getset},
    {0, NULL}};
static PyType_Spec Writer_spec = {
    .name = "shmlog._native.Writer",
    .basicsize = sizeof(WriterObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_BASETYPE,
    .slots = Writer_slots};

int writer_exec(PyObject *module) {
    PyTypeObject *type = add_type(module, &Writer_spec);
    Py_XDECREF(type);
    return type ? 0 : -1;
}

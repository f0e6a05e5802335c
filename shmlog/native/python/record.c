/* Record: one record as Python sees it.
 *
 *   Record  -->  the fields of its header, by value
 *           -->  memory (a memoryview of the segment), from which data is cut when it is asked for
 *
 * Most of who reads wants two of five fields: a tuple of seven objects, one of them a view,
 * would be made for nothing.  Otherwise it is what a named tuple is, and compares as one.
 *
 * Invariants
 *   Q8  data is made once, and keeps the memory by itself.
 *
 * This file knows one record's fields.  It may not know how it was found.
 */
#include "glue.h"

enum { FIELDS = 5 };

typedef struct {
    PyObject_HEAD
    PyObject *memory; /* NULL: data was given */
    PyObject *_Atomic data; /* NULL: not asked for yet */
    uint64_t at, lsn;
    int64_t time_ns;
    uint32_t bytes, tag;
    uint16_t writer;
} RecordObject;

PyObject *record_of(PyTypeObject *type, const frame_t *f, PyObject *memory, uint64_t payload_at) {
    RecordObject *self = PyObject_New(RecordObject, type);
    if (!self)
        return NULL;
    self->memory = Py_NewRef(memory);
    atomic_init(&self->data, NULL);
    self->at = payload_at;
    self->lsn = f->lsn;
    self->time_ns = f->time_ns;
    self->bytes = f->payload_bytes;
    self->tag = f->tag;
    self->writer = f->writer;
    return (PyObject *)self;
}

static int number_of(PyObject *object, uint64_t most, uint64_t *number) {
    *number = PyLong_AsUnsignedLongLong(object);
    if (PyErr_Occurred())
        return -1;
    if (*number <= most)
        return 0;
    PyErr_Format(PyExc_OverflowError, "%llu is more than %llu", *number, most);
    return -1;
}

static PyObject *Record_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"lsn", "time_ns", "tag", "writer", "data", NULL};
    PyObject *numbers[3], *data;
    uint64_t lsn, tag, writer;
    long long time_ns;
    Py_buffer view;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OLOOO", names, &numbers[0], &time_ns, &numbers[1],
                                     &numbers[2], &data) ||
        number_of(numbers[0], UINT64_MAX, &lsn) != 0 || number_of(numbers[1], UINT32_MAX, &tag) != 0 ||
        number_of(numbers[2], UINT16_MAX, &writer) != 0 || PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) != 0)
        return NULL;
    uint64_t bytes = (uint64_t)view.len;
    PyBuffer_Release(&view);
    if (bytes > UINT32_MAX)
        return PyErr_Format(PyExc_ValueError, "no record has a payload of %llu bytes", bytes);
    RecordObject *self = PyObject_New(RecordObject, type);
    if (!self)
        return NULL;
    self->memory = NULL;
    atomic_init(&self->data, Py_NewRef(data));
    self->at = 0;
    self->lsn = lsn;
    self->time_ns = time_ns;
    self->bytes = (uint32_t)bytes;
    self->tag = (uint32_t)tag;
    self->writer = (uint16_t)writer;
    return (PyObject *)self;
}

static void Record_dealloc(RecordObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->memory);
    Py_XDECREF(atomic_load_explicit(&self->data, memory_order_relaxed));
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyObject *cut(PyObject *memory, uint64_t begin, uint64_t end) {
    PyObject *low = PyLong_FromUnsignedLongLong(begin), *high = PyLong_FromUnsignedLongLong(end);
    PyObject *slice = low && high ? PySlice_New(low, high, NULL) : NULL;
    PyObject *data = slice ? PyObject_GetItem(memory, slice) : NULL;
    Py_XDECREF(low);
    Py_XDECREF(high);
    Py_XDECREF(slice);
    return data;
}

static PyObject *Record_data(RecordObject *self, void *closure) {
    (void)closure;
    PyObject *data = atomic_load_explicit(&self->data, memory_order_acquire), *unset = NULL;
    if (data)
        return Py_NewRef(data);
    data = cut(self->memory, self->at, self->at + self->bytes);
    if (!data || !atomic_compare_exchange_strong(&self->data, &unset, data)) { /* another thread was first */
        Py_XDECREF(data);
        return Py_XNewRef(unset);
    }
    return Py_NewRef(data);
}

static PyObject *Record_lsn(RecordObject *self, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLongLong(self->lsn);
}

static PyObject *Record_time_ns(RecordObject *self, void *closure) {
    (void)closure;
    return PyLong_FromLongLong(self->time_ns);
}

static PyObject *Record_tag(RecordObject *self, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLong(self->tag);
}

static PyObject *Record_writer(RecordObject *self, void *closure) {
    (void)closure;
    return PyLong_FromLong(self->writer);
}

static PyObject *Record_next_lsn(RecordObject *self, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLongLong(self->lsn + frame_bytes(self->bytes));
}

/* In the order of a tuple. */
static PyGetSetDef Record_getset[] = {
    {"lsn", (getter)Record_lsn, NULL, "Where its frame begins.", NULL},
    {"time_ns", (getter)Record_time_ns, NULL, "When it was appended, since 1970.", NULL},
    {"tag", (getter)Record_tag, NULL, "The tag it was appended with.", NULL},
    {"writer", (getter)Record_writer, NULL, "The number of the participant that appended it.", NULL},
    {"data", (getter)Record_data, NULL, "The payload, a read-only memoryview of the mapped segment.", NULL},
    {"next_lsn", (getter)Record_next_lsn, NULL,
     "Where reading goes on after this record: a start= that leaves it out.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static Py_ssize_t Record_length(PyObject *self) {
    (void)self;
    return FIELDS;
}

static PyObject *Record_item(PyObject *self, Py_ssize_t i) {
    if (i < 0 || i >= FIELDS)
        return PyErr_Format(PyExc_IndexError, "a record has %d fields", FIELDS);
    return Record_getset[i].get(self, NULL);
}

static PyObject *tuple_of(PyObject *self) {
    PyObject *tuple = PyTuple_New(FIELDS);
    for (Py_ssize_t i = 0; tuple && i < FIELDS; i++) {
        PyObject *field = Record_item(self, i);
        if (!field)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, i, field);
    }
    return tuple;
}

static PyObject *Record_subscript(PyObject *self, PyObject *index) {
    PyObject *tuple = tuple_of(self);
    PyObject *item = tuple ? PyObject_GetItem(tuple, index) : NULL;
    Py_XDECREF(tuple);
    return item;
}

static PyObject *Record_iter(PyObject *self) {
    PyObject *tuple = tuple_of(self);
    PyObject *iterator = tuple ? PyObject_GetIter(tuple) : NULL;
    Py_XDECREF(tuple);
    return iterator;
}

static PyObject *Record_compare(PyObject *self, PyObject *other, int how) {
    PyObject *mine = tuple_of(self);
    PyObject *theirs = Py_IS_TYPE(other, Py_TYPE(self)) ? tuple_of(other) : Py_NewRef(other);
    PyObject *result = NULL;
    if (mine && theirs)
        result = PyTuple_Check(theirs) ? PyObject_RichCompare(mine, theirs, how) : Py_NewRef(Py_NotImplemented);
    Py_XDECREF(mine);
    Py_XDECREF(theirs);
    return result;
}

static Py_hash_t Record_hash(PyObject *self) {
    PyObject *tuple = tuple_of(self);
    Py_hash_t hash = tuple ? PyObject_Hash(tuple) : -1;
    Py_XDECREF(tuple);
    return hash;
}

static PyObject *Record_repr(RecordObject *self) {
    PyObject *data = Record_data(self, NULL);
    PyObject *text = !data ? NULL
                           : PyUnicode_FromFormat("Record(lsn=%llu, time_ns=%lld, tag=%u, writer=%u, data=%R)",
                                                  (unsigned long long)self->lsn, (long long)self->time_ns,
                                                  self->tag, (unsigned)self->writer, data);
    Py_XDECREF(data);
    return text;
}

static PyObject *Record_copy(PyObject *self, PyObject *unused) {
    (void)unused;
    return Py_NewRef(self);
}

static PyObject *Record_reduce(PyObject *self, PyObject *unused) {
    (void)unused;
    PyObject *tuple = tuple_of(self);
    if (tuple && PyMemoryView_Check(PyTuple_GET_ITEM(tuple, FIELDS - 1))) {
        Py_DECREF(tuple);
        return PyErr_Format(
            PyExc_TypeError,
            "a Record cannot be pickled, for its data is a view of the log's file: send"
            " bytes(record.data), or record._replace(data=bytes(record.data)), or the LSN for take()");
    }
    return tuple ? Py_BuildValue("ON", Py_TYPE(self), tuple) : NULL;
}

static PyObject *Record_asdict(PyObject *self, PyObject *unused) {
    (void)unused;
    PyObject *fields = PyDict_New();
    for (Py_ssize_t i = 0; fields && i < FIELDS; i++) {
        PyObject *field = Record_item(self, i);
        if (!field || PyDict_SetItemString(fields, Record_getset[i].name, field) != 0)
            Py_CLEAR(fields);
        Py_XDECREF(field);
    }
    return fields;
}

static PyObject *Record_replace(PyObject *self, PyObject *args, PyObject *kwargs) {
    PyObject *fields = PyTuple_GET_SIZE(args) ? NULL : Record_asdict(self, NULL), *record = NULL;
    if (PyTuple_GET_SIZE(args))
        PyErr_SetString(PyExc_TypeError, "_replace() takes keyword arguments only");
    if (fields && (!kwargs || PyDict_Update(fields, kwargs) == 0)) {
        PyObject *none = PyTuple_New(0);
        record = none ? Record_new(Py_TYPE(self), none, fields) : NULL;
        Py_XDECREF(none);
    }
    Py_XDECREF(fields);
    return record;
}

static PyMethodDef Record_methods[] = {
    {"_asdict", Record_asdict, METH_NOARGS, "_asdict()\n--\n\nThe fields by their names."},
    {"_replace", (PyCFunction)(void (*)(void))Record_replace, METH_VARARGS | METH_KEYWORDS,
     "_replace(**fields)\n--\n\nAnother record, with these fields instead."},
    {"__copy__", Record_copy, METH_NOARGS, NULL},
    {"__reduce__", Record_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL}};
static PyType_Slot Record_slots[] = {
    {Py_tp_doc, (void *)"Record(lsn, time_ns, tag, writer, data)\n--\n\n"
                        "One record.  data is a read-only memoryview of the mapped segment."},
    {Py_tp_new, Record_new},
    {Py_tp_dealloc, Record_dealloc},
    {Py_tp_getset, Record_getset},
    {Py_tp_methods, Record_methods},
    {Py_tp_iter, Record_iter},
    {Py_tp_hash, Record_hash},
    {Py_tp_repr, Record_repr},
    {Py_tp_richcompare, Record_compare},
    {Py_sq_length, Record_length},
    {Py_sq_item, Record_item},
    {Py_mp_length, Record_length},
    {Py_mp_subscript, Record_subscript},
    {0, NULL}};
static PyType_Spec Record_spec = {.name = "shmlog.Record",
                                  .basicsize = sizeof(RecordObject),
                                  .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_SEQUENCE,
                                  .slots = Record_slots};

int record_exec(PyObject *module) {
    PyTypeObject *type = state_of(module)->record_type = add_type(module, &Record_spec);
    PyObject *names = type ? PyTuple_New(FIELDS) : NULL;
    for (Py_ssize_t i = 0; names && i < FIELDS; i++) {
        PyObject *name = PyUnicode_InternFromString(Record_getset[i].name);
        if (!name)
            Py_CLEAR(names);
        else
            PyTuple_SET_ITEM(names, i, name);
    }
    int failed = !names || PyDict_SetItemString(type->tp_dict, "_fields", names) != 0 ||
                 PyDict_SetItemString(type->tp_dict, "__match_args__", names) != 0;
    Py_XDECREF(names);
    if (!failed)
        PyType_Modified(type);
    return failed ? -1 : 0;
}

/* Watch: the Python object of a watch over a control block, or over none.
 *
 * This file knows who keeps the memory alive.  It may not know what is waited for.
 */
#include "glue.h"

#include "../core/watch.h"

#include <errno.h>

typedef struct {
    PyObject_HEAD
    watch_t watch;
    PyObject *memory; /* the Control or Mapping that is looked at, or None */
} WatchObject;

/* Where the words of a Control, a Mapping or None are; -1 with an exception. */
static int words_of(PyTypeObject *type, PyObject *memory, uint8_t **base, int *writable) {
    PyObject *module = PyType_GetModuleByDef(type, &shmlog_native);
    if (!module)
        return -1;
    uint64_t bytes = CB_HEADER_BYTES;
    *base = NULL;
    *writable = 0;
    if (Py_IS_TYPE(memory, state_of(module)->control_type)) {
        *base = ((ControlObject *)memory)->base;
        *writable = 1;
    } else if (Py_IS_TYPE(memory, state_of(module)->mapping_type)) {
        *base = ((MappingObject *)memory)->base;
        bytes = ((MappingObject *)memory)->bytes;
    } else if (memory != Py_None) {
        PyErr_Format(PyExc_TypeError, "a Watch is of a Control, a Mapping or None, not %s",
                     Py_TYPE(memory)->tp_name);
        return -1;
    }
    if (bytes >= CB_HEADER_BYTES)
        return 0;
    PyErr_Format(PyExc_ValueError, "a control block of %llu bytes is too small", (unsigned long long)bytes);
    return -1;
}

static PyObject *Watch_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"memory", NULL};
    PyObject *memory;
    uint8_t *base;
    int writable;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O", names, &memory) ||
        words_of(type, memory, &base, &writable) != 0)
        return NULL;
    WatchObject *self = (WatchObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->watch.reads = -1;
    if ((errno = watch_open(&self->watch, base, writable)) != 0) {
        self->watch.reads = -1;
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(self);
        return NULL;
    }
    self->memory = Py_NewRef(memory);
    return (PyObject *)self;
}

static PyObject *Watch_look_at(WatchObject *self, PyObject *memory) {
    uint8_t *base;
    int writable;
    if (words_of(Py_TYPE(self), memory, &base, &writable) != 0)
        return NULL;
    TURN_BEGIN(self);
    watch_look_at(&self->watch, base, writable);
    Py_XSETREF(self->memory, Py_NewRef(memory)); /* the old one only now */
    TURN_END();
    Py_RETURN_NONE;
}

static void Watch_dealloc(WatchObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    watch_remove(&self->watch);
    Py_CLEAR(self->memory);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static int Watch_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static PyObject *closed(void) { return PyErr_Format(PyExc_ValueError, "the watch is closed"); }

static PyObject *Watch_arm(WatchObject *self, PyObject *args) {
    int kind, end = 0, is_closed;
    unsigned long long target, within_ns;
    if (!PyArg_ParseTuple(args, "iKK", &kind, &target, &within_ns))
        return NULL;
    if (kind < 0 || kind >= WATCH_KINDS)
        return PyErr_Format(PyExc_ValueError, "no kind %d", kind);
    TURN_BEGIN(self);
    is_closed = self->watch.reads < 0;
    if (!is_closed)
        end = watch_arm(&self->watch, kind, target, within_ns);
    TURN_END();
    if (is_closed)
        return closed();
    return end < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(end);
}

static PyObject *Watch_clear(WatchObject *self, PyObject *unused) {
    (void)unused;
    TURN_BEGIN(self);
    if (self->watch.reads >= 0)
        watch_clear(&self->watch);
    TURN_END();
    Py_RETURN_NONE;
}

static PyObject *Watch_fileno(WatchObject *self, PyObject *unused) {
    (void)unused;
    return self->watch.reads < 0 ? closed() : PyLong_FromLong(self->watch.reads);
}

static PyObject *Watch_close(WatchObject *self, PyObject *unused) {
    (void)unused;
    TURN_BEGIN(self);
    watch_remove(&self->watch);
    TURN_END();
    Py_RETURN_NONE;
}

static PyMethodDef Watch_methods[] = {
    {"arm", (PyCFunction)Watch_arm, METH_VARARGS,
     "arm(kind, target, within_ns)\n--\n\n"
     "Wait for WATCH_COMMITTED or WATCH_DURABLE to reach target, or within_ns if not 0: WATCH_*."},
    {"look_at", (PyCFunction)Watch_look_at, METH_O,
     "look_at(memory)\n--\n\nFrom now on watch this one; nothing is armed."},
    {"clear", (PyCFunction)Watch_clear, METH_NOARGS, "clear()\n--\n\nMake the descriptor unreadable."},
    {"fileno", (PyCFunction)Watch_fileno, METH_NOARGS, "fileno()\n--\n\nThe descriptor to poll."},
    {"close", (PyCFunction)Watch_close, METH_NOARGS, "close()\n--\n\nWatch no more; idempotent."},
    {NULL, NULL, 0, NULL}};
static PyType_Slot Watch_slots[] = {
    {Py_tp_doc, (void *)"Watch(memory)\n--\n\nA descriptor that becomes readable with a watermark."},
    {Py_tp_new, Watch_new},
    {Py_tp_dealloc, Watch_dealloc},
    {Py_tp_traverse, Watch_traverse},
    {Py_tp_methods, Watch_methods},
    {0, NULL}};
static PyType_Spec Watch_spec = {
    .name = "shmlog._native.Watch",
    .basicsize = sizeof(WatchObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Watch_slots};

int watch_exec(PyObject *module) {
    PyTypeObject *type = add_type(module, &Watch_spec);
    Py_XDECREF(type);
    return type ? 0 : -1;
}

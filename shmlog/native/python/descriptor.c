/* Descriptor: Fd, a file that forked children close at birth.
 *
 * This file knows who owns a descriptor.  It may not know what is open on it.
 */
#include "glue.h"

#include <errno.h>

typedef struct {
    PyObject_HEAD
    fork_fd_t opened;
} FdObject;

static PyObject *Fd_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"path", "flags", NULL};
    PyObject *named, *path;
    int flags;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Oi", names, &named, &flags) ||
        !PyUnicode_FSConverter(named, &path))
        return NULL;
    FdObject *self = (FdObject *)type->tp_alloc(type, 0);
    if (self) {
        int error;
        Py_BEGIN_ALLOW_THREADS
        error = fork_open(PyBytes_AS_STRING(path), flags, &self->opened);
        Py_END_ALLOW_THREADS
        if (error) {
            errno = error;
            PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, named);
            Py_CLEAR(self);
        }
    }
    Py_DECREF(path);
    return (PyObject *)self;
}

static PyObject *Fd_close(FdObject *self, PyObject *unused) {
    (void)unused;
    fork_close(&self->opened);
    Py_RETURN_NONE;
}

static PyObject *Fd_fileno(FdObject *self, PyObject *unused) {
    (void)unused;
    if (!fork_is_open(&self->opened))
        return PyErr_Format(PyExc_ValueError, "the descriptor is closed");
    return PyLong_FromLong(self->opened.fd);
}

static void Fd_dealloc(FdObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    fork_close(&self->opened);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static int Fd_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static PyMethodDef Fd_methods[] = {
    {"close", (PyCFunction)Fd_close, METH_NOARGS, "close()\n--\n\nClose it, if this process opened it."},
    {"fileno", (PyCFunction)Fd_fileno, METH_NOARGS,
     "fileno()\n--\n\nThe number; ValueError once closed or in a forked child."},
    {NULL, NULL, 0, NULL}};
static PyType_Slot Fd_slots[] = {
    {Py_tp_doc, (void *)"Fd(path, flags)\n--\n\n"
                        "Opens a file; owns a descriptor that forked children close at birth."},
    {Py_tp_new, Fd_new},
    {Py_tp_dealloc, Fd_dealloc},
    {Py_tp_traverse, Fd_traverse},
    {Py_tp_methods, Fd_methods},
    {0, NULL}};
static PyType_Spec Fd_spec = {
    .name = "shmlog._native.Fd",
    .basicsize = sizeof(FdObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Fd_slots};

int descriptor_exec(PyObject *module) {
    PyTypeObject *type = add_type(module, &Fd_spec);
    Py_XDECREF(type);
    return type ? 0 : -1;
}

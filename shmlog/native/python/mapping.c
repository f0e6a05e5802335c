/* Mapping: a file in memory, guarded against SIGBUS.
 *
 * It lives as long as any view of it, so nobody can be left with an address of nothing.
 *
 * This file knows pages.  It may not know what is in them.
 */
#include "glue.h"

#include <errno.h>
#include <sys/mman.h>

static PyObject *Mapping_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"fd", "bytes", "writable", "keep", NULL};
    int fd, writable, keep = 0;
    Py_ssize_t bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "inp|p", names, &fd, &bytes, &writable, &keep))
        return NULL;
    if (bytes <= 0)
        return PyErr_Format(PyExc_ValueError, "cannot map %zd bytes", bytes);
    map_t *map;
    if ((errno = map_file(fd, (size_t)bytes, writable, &map)) != 0)
        return errno == ENOMEM ? PyErr_Format(PyExc_MemoryError, "too many mappings in this process")
                               : PyErr_SetFromErrno(PyExc_OSError);
    if (keep)
        map_keep_file(map, fd);
    return mapping_of(type, map);
}

PyObject *mapping_of(PyTypeObject *type, map_t *map) {
    MappingObject *self = (MappingObject *)type->tp_alloc(type, 0);
    if (!self) {
        map_drop(map);
        return NULL;
    }
    self->map = map;
    self->base = map->base;
    self->bytes = map->bytes;
    self->writable = map->writable;
    self->range = map->range;
    return (PyObject *)self;
}

static void Mapping_dealloc(MappingObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    map_drop(self->map);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static int Mapping_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int Mapping_getbuffer(MappingObject *self, Py_buffer *view, int flags) {
    return PyBuffer_FillInfo(view, (PyObject *)self, self->base, (Py_ssize_t)self->bytes, !self->writable,
                             flags);
}

static int mapping_range(MappingObject *self, Py_ssize_t offset, Py_ssize_t bytes) {
    if (offset >= 0 && bytes >= 0 && (size_t)offset <= self->bytes &&
        (size_t)bytes <= self->bytes - (size_t)offset)
        return 0;
    PyErr_Format(PyExc_ValueError, "[%zd, +%zd) is outside of a mapping of %zu bytes", offset, bytes,
                 self->bytes);
    return -1;
}

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* Store one byte of each page over itself. */
static void touch_pages(uint8_t *begin, uint8_t *end) {
    for (uint8_t *at = begin; at < end; at += guard_page_bytes) {
        volatile uint8_t *byte = at;
        *byte = *byte;
    }
}

static PyObject *Mapping_populate(MappingObject *self, PyObject *args) {
    Py_ssize_t offset, bytes;
    if (!PyArg_ParseTuple(args, "nn", &offset, &bytes) || mapping_range(self, offset, bytes) != 0)
        return NULL;
    int error = 0;
    Py_BEGIN_ALLOW_THREADS
#ifdef __linux__
    if (madvise(self->base + offset, (size_t)bytes, MADV_POPULATE_WRITE) != 0)
        error = errno;
    if (error == EINVAL) { /* before Linux 5.14 */
        touch_pages(self->base + offset, self->base + offset + bytes);
        error = 0;
    }
#else
    touch_pages(self->base + offset, self->base + offset + bytes);
#endif
    if (!error && guard_faulted(self->range))
        error = EFAULT;
    Py_END_ALLOW_THREADS
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *Mapping_touch(MappingObject *self, PyObject *args) {
    Py_ssize_t offset, bytes;
    if (!PyArg_ParseTuple(args, "nn", &offset, &bytes) || mapping_range(self, offset, bytes) != 0)
        return NULL;
    if (!self->writable)
        return PyErr_Format(PyExc_ValueError, "the mapping is read-only");
    Py_BEGIN_ALLOW_THREADS
    touch_pages(self->base + offset, self->base + offset + bytes);
    Py_END_ALLOW_THREADS
    if (guard_faulted(self->range)) {
        errno = EFAULT;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *Mapping_forget(MappingObject *self, PyObject *args) {
    Py_ssize_t offset, bytes;
    if (!PyArg_ParseTuple(args, "nn", &offset, &bytes) || mapping_range(self, offset, bytes) != 0)
        return NULL;
    if (madvise(self->base + offset, (size_t)bytes, MADV_DONTNEED) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *Mapping_load(MappingObject *self, PyObject *arg) {
    Py_ssize_t offset = PyNumber_AsSsize_t(arg, PyExc_OverflowError);
    if ((offset == -1 && PyErr_Occurred()) || mapping_range(self, offset, 8) != 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(
        atomic_load_explicit((shared_u64 *)(void *)(self->base + offset), memory_order_acquire));
}

static PyObject *Mapping_faulted(MappingObject *self, void *closure) {
    (void)closure;
    return PyBool_FromLong(guard_faulted(self->range));
}

static PyMethodDef Mapping_methods[] = {
    {"populate", (PyCFunction)Mapping_populate, METH_VARARGS,
     "populate(offset, bytes)\n--\n\n"
     "Fault the range in for writing. OSError(EFAULT) when there is no room behind it."},
    {"forget", (PyCFunction)Mapping_forget, METH_VARARGS,
     "forget(offset, bytes)\n--\n\n"
     "Drop the range from this process's page tables; the file keeps its bytes."},
    {"touch", (PyCFunction)Mapping_touch, METH_VARARGS,
     "touch(offset, bytes)\n--\n\nMake every page of the range dirty without changing it."},
    {"load", (PyCFunction)Mapping_load, METH_O,
     "load(offset)\n--\n\nThe u64 at an aligned offset (acquire)."},
    {NULL, NULL, 0, NULL}};
static PyGetSetDef Mapping_getset[] = {
    {"faulted", (getter)Mapping_faulted, NULL, "Whether an access to the mapping ever failed.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot Mapping_slots[] = {
    {Py_tp_doc, (void *)"Mapping(fd, bytes, writable, keep=False)\n--\n\n"
                        "A shared mapping of a file, guarded against SIGBUS; lives as long as any view.\n"
                        "keep: with a descriptor of its own, which large payloads are written through."},
    {Py_tp_new, Mapping_new},
    {Py_tp_dealloc, Mapping_dealloc},
    {Py_tp_traverse, Mapping_traverse},
    {Py_tp_methods, Mapping_methods},
    {Py_tp_getset, Mapping_getset},
    {Py_bf_getbuffer, Mapping_getbuffer},
    {0, NULL}};
static PyType_Spec Mapping_spec = {
    .name = "shmlog._native.Mapping",
    .basicsize = sizeof(MappingObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Mapping_slots};

int mapping_exec(PyObject *module) {
    state_of(module)->mapping_type = add_type(module, &Mapping_spec);
    return state_of(module)->mapping_type ? 0 : -1;
}

/* Control: atomic access to the words and bits of a control block.
 *
 * The references that a Control holds are set once, when it is made, so no cycle can be
 * of Controls alone: as with a tuple, whatever else is in it breaks it, and the block
 * stays mapped for whoever still has its address.
 *
 * This file knows offsets and ranges of granules.  It may not know what they mean.
 */
#include "glue.h"

#include "../core/commit.h"
#include "../core/sync.h"
#include "../core/wait.h"

#include <errno.h>
#include <sys/mman.h>

static PyObject *Control_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"buffer", "window_bytes", "slots", NULL};
    PyObject *buffer;
    unsigned long long window_bytes, slots;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OKK", names, &buffer, &window_bytes, &slots))
        return NULL;
    uint64_t granules = window_bytes / GRANULE_BYTES;
    if (granules < 64 || (granules & (granules - 1)) || granules > UINT64_C(1) << 40 || slots == 0 ||
        slots > 65535)
        return PyErr_Format(PyExc_ValueError, "window_bytes=%llu, slots=%llu", window_bytes, slots);
    ControlObject *self = (ControlObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    if (PyObject_GetBuffer(buffer, &self->view, PyBUF_WRITABLE) != 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->base = self->view.buf;
    self->bytes = (uint64_t)self->view.len;
    self->window_bytes = window_bytes;
    self->slots = slots;
    uint64_t bitmap_at = CB_HEADER_BYTES + slots * PT_BYTES;
    if (self->bytes < bitmap_at + granules / 8 || ((uintptr_t)self->base & 63)) {
        Py_DECREF(self);
        return PyErr_Format(PyExc_ValueError, "a control block of %zd bytes is too small or not aligned",
                            (Py_ssize_t)self->bytes);
    }
    self->bitmap = (bitmap_t){.words = word_at(self->base, bitmap_at), .granules = granules};
    if (guard_install() != 0 || !(self->range = guard_add(self->base, self->bytes, PROT_READ | PROT_WRITE))) {
        Py_DECREF(self);
        return PyErr_Format(PyExc_MemoryError, "too many mappings in this process");
    }
    return (PyObject *)self;
}

static void Control_dealloc(ControlObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->range)
        guard_remove(self->range);
    if (self->view.obj)
        PyBuffer_Release(&self->view);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* Not the view's owner: clearing a memoryview that still has exports leaves it broken, and
 * nothing that a block of memory refers to leads back here. */
static int Control_traverse(ControlObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static shared_u64 *control_word(ControlObject *self, uint64_t offset) {
    if (offset % 8 == 0 && offset <= self->bytes - 8)
        return word_at(self->base, offset);
    PyErr_Format(PyExc_IndexError, "no word at offset %llu", (unsigned long long)offset);
    return NULL;
}

static PyObject *Control_load(ControlObject *self, PyObject *arg) {
    uint64_t offset = PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred())
        return NULL;
    shared_u64 *word = control_word(self, offset);
    return word ? PyLong_FromUnsignedLongLong(atomic_load(word)) : NULL;
}

static PyObject *Control_store(ControlObject *self, PyObject *args) {
    unsigned long long offset, value;
    if (!PyArg_ParseTuple(args, "KK", &offset, &value))
        return NULL;
    shared_u64 *word = control_word(self, offset);
    if (!word)
        return NULL;
    atomic_store(word, value);
    Py_RETURN_NONE;
}

static PyObject *Control_add(ControlObject *self, PyObject *args) {
    unsigned long long offset, value;
    if (!PyArg_ParseTuple(args, "KK", &offset, &value))
        return NULL;
    shared_u64 *word = control_word(self, offset);
    return word ? PyLong_FromUnsignedLongLong(atomic_fetch_add(word, value)) : NULL;
}

static PyObject *Control_compare_exchange(ControlObject *self, PyObject *args) {
    unsigned long long offset, expected, value;
    if (!PyArg_ParseTuple(args, "KKK", &offset, &expected, &value))
        return NULL;
    shared_u64 *word = control_word(self, offset);
    if (!word)
        return NULL;
    uint64_t old = expected;
    return PyBool_FromLong(atomic_compare_exchange_strong(word, &old, value));
}

static PyObject *Control_raise(ControlObject *self, PyObject *args) {
    unsigned long long offset, value;
    if (!PyArg_ParseTuple(args, "KK", &offset, &value))
        return NULL;
    shared_u64 *word = control_word(self, offset);
    if (!word)
        return NULL;
    raise_to(word, value);
    Py_RETURN_NONE;
}

static PyObject *Control_commit_step(ControlObject *self, PyObject *unused) {
    (void)unused;
    commit_t c;
    int outcome;
    PyThreadState *released = NULL;
#ifndef SHMLOG_STEPS
    released = PyEval_SaveThread();
#endif
    outcome = commit_step(self->base, &self->bitmap, self->window_bytes, &c);
    if (released)
        PyEval_RestoreThread(released);
    if (outcome == OUTCOME_DIED)
        return died();
    return Py_BuildValue("KKKK", (unsigned long long)c.committed, (unsigned long long)c.reserved,
                         (unsigned long long)c.cleared, (unsigned long long)c.limit);
}

static int lsn_range(uint64_t begin, uint64_t end, uint64_t most) {
    if (begin <= end && end - begin <= most && !(begin % GRANULE_BYTES) && !(end % GRANULE_BYTES))
        return 0;
    PyErr_Format(PyExc_ValueError, "[%llu, %llu) is no range of granules", (unsigned long long)begin,
                 (unsigned long long)end);
    return -1;
}

static PyObject *Control_scan(ControlObject *self, PyObject *args) {
    unsigned long long begin, end;
    int set;
    if (!PyArg_ParseTuple(args, "KKp", &begin, &end, &set) || lsn_range(begin, end, self->window_bytes) != 0)
        return NULL;
    /* SLEEP: after the store of the sleep word; the scan's loads alone would be acquire. */
    atomic_thread_fence(memory_order_seq_cst);
    return PyLong_FromUnsignedLongLong(
        bitmap_scan(&self->bitmap, begin >> GRANULE_SHIFT, end >> GRANULE_SHIFT, set) << GRANULE_SHIFT);
}

static PyObject *Control_publish(ControlObject *self, PyObject *args) {
    unsigned long long begin, end;
    if (!PyArg_ParseTuple(args, "KK", &begin, &end) || lsn_range(begin, end, self->window_bytes) != 0)
        return NULL;
    uint64_t first = begin >> GRANULE_SHIFT, last = end >> GRANULE_SHIFT;
    if (first < last && bitmap_publish(&self->bitmap, first, last) != OUTCOME_DONE)
        return died();
    Py_RETURN_NONE;
}

static PyObject *Control_spin(ControlObject *self, PyObject *args) {
    unsigned long long offset, target, ns;
    if (!PyArg_ParseTuple(args, "KKK", &offset, &target, &ns))
        return NULL;
    shared_u64 *word = control_word(self, offset);
    if (!word)
        return NULL;
    int reached;
    Py_BEGIN_ALLOW_THREADS
    reached = word_spin(word, target, ns);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(reached);
}

static PyObject *Control_settle(ControlObject *self, PyObject *args) {
    unsigned long long offset, quiet_ns, most_ns;
    if (!PyArg_ParseTuple(args, "KKK", &offset, &quiet_ns, &most_ns))
        return NULL;
    shared_u64 *word = control_word(self, offset);
    if (!word)
        return NULL;
    int changed;
    Py_BEGIN_ALLOW_THREADS
    changed = word_settle(word, quiet_ns, most_ns);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(changed);
}

static PyObject *Control_watch(ControlObject *self, PyObject *args) {
    unsigned long long lsn, ns;
    if (!PyArg_ParseTuple(args, "KK", &lsn, &ns))
        return NULL;
    int set;
    Py_BEGIN_ALLOW_THREADS
    set = bit_spin(&self->bitmap, lsn >> GRANULE_SHIFT, ns);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(set);
}

static PyObject *Control_wait(ControlObject *self, PyObject *args) {
    unsigned long long watermark, wanted, sleep_word, target, spin_ns, slice_ns;
    int ring;
    if (!PyArg_ParseTuple(args, "KKKKpKK", &watermark, &wanted, &sleep_word, &target, &ring, &spin_ns,
                          &slice_ns))
        return NULL;
    if (!control_word(self, watermark) || !control_word(self, wanted) || !control_word(self, sleep_word))
        return NULL;
    enum wait_end end;
    Py_BEGIN_ALLOW_THREADS
    end = word_wait(self->base, watermark, wanted, sleep_word, target, ring, spin_ns, slice_ns);
    Py_END_ALLOW_THREADS
    return PyLong_FromLong(end);
}

static PyObject *Control_wake(ControlObject *self, PyObject *arg) {
    uint64_t offset = PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred())
        return NULL;
    shared_u64 *word = control_word(self, offset);
    if (!word)
        return NULL;
    word_wake(word);
    Py_RETURN_NONE;
}

#define SYNC_FDS_MAX 64

static PyObject *Control_sync(ControlObject *self, PyObject *args) {
    PyObject *list;
    Py_buffer mark;
    long long offset;
    unsigned long long target;
    if (!PyArg_ParseTuple(args, "O!y*LK", &PyTuple_Type, &list, &mark, &offset, &target))
        return NULL;
    int fds[SYNC_FDS_MAX], error = -1;
    Py_ssize_t count = PyTuple_GET_SIZE(list);
    if (count > SYNC_FDS_MAX)
        PyErr_Format(PyExc_ValueError, "at most %d descriptors in one sync", SYNC_FDS_MAX);
    for (Py_ssize_t i = 0; i < count && !PyErr_Occurred(); i++)
        fds[i] = (int)PyLong_AsLong(PyTuple_GET_ITEM(list, i));
    if (!PyErr_Occurred()) {
        Py_BEGIN_ALLOW_THREADS
        error = sync_cycle(self->base, fds, (size_t)count, mark.buf, (size_t)mark.len, (off_t)offset,
                           target);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&mark);
    return PyErr_Occurred() ? NULL : PyLong_FromLong(error);
}

static PyObject *Control_faulted(ControlObject *self, void *closure) {
    (void)closure;
    return PyBool_FromLong(guard_faulted(self->range));
}

static PyMethodDef Control_methods[] = {
    {"load", (PyCFunction)Control_load, METH_O, "load(offset)\n--\n\nThe word at offset (seq_cst)."},
    {"store", (PyCFunction)Control_store, METH_VARARGS,
     "store(offset, value)\n--\n\nStore a word (seq_cst)."},
    {"add", (PyCFunction)Control_add, METH_VARARGS, "add(offset, n)\n--\n\nAdd to a word; its old value."},
    {"compare_exchange", (PyCFunction)Control_compare_exchange, METH_VARARGS,
     "compare_exchange(offset, expected, value)\n--\n\nWhether the word was `expected` and is now `value`."},
    {"raise_to", (PyCFunction)Control_raise, METH_VARARGS,
     "raise_to(offset, value)\n--\n\nMake a word at least value."},
    {"commit_step", (PyCFunction)Control_commit_step, METH_NOARGS,
     "commit_step()\n--\n\nScan, commit, clear, raise the limit: (committed, reserved, cleared, limit)."},
    {"scan", (PyCFunction)Control_scan, METH_VARARGS,
     "scan(begin_lsn, end_lsn, set)\n--\n\n"
     "The first LSN whose bit is clear (set=False) or set (True), or end_lsn."},
    {"publish", (PyCFunction)Control_publish, METH_VARARGS,
     "publish(begin_lsn, end_lsn)\n--\n\nSet the bits, downward."},
    {"watch", (PyCFunction)Control_watch, METH_VARARGS,
     "watch(lsn, ns)\n--\n\nWatch a granule's bit until it is set or ns have passed; whether it is."},
    {"wait", (PyCFunction)Control_wait, METH_VARARGS,
     "wait(watermark, wanted, sleep_word, target, ring, spin_ns, slice_ns)\n--\n\n"
     "One slice of waiting for a word to reach target: WAIT_*."},
    {"sync", (PyCFunction)Control_sync, METH_VARARGS,
     "sync(fds, mark, mark_offset, target)\n--\n\n"
     "One sync cycle over the segments' descriptors; 0 or an errno."},
    {"wake", (PyCFunction)Control_wake, METH_O,
     "wake(offset)\n--\n\nWake every process that waits on the word."},
    {"spin", (PyCFunction)Control_spin, METH_VARARGS,
     "spin(offset, target, ns)\n--\n\n"
     "Watch a word until it is at least target or ns have passed; whether it is."},
    {"settle", (PyCFunction)Control_settle, METH_VARARGS,
     "settle(offset, quiet_ns, most_ns)\n--\n\n"
     "Watch a word until it has not changed for quiet_ns, at most for most_ns; whether it changed."},
    {NULL, NULL, 0, NULL}};
static PyGetSetDef Control_getset[] = {
    {"faulted", (getter)Control_faulted, NULL, "Whether an access to the block ever failed.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot Control_slots[] = {
    {Py_tp_doc, (void *)"Control(buffer, window_bytes, slots)\n--\n\nAtomic access to a control block."},
    {Py_tp_new, Control_new},
    {Py_tp_dealloc, Control_dealloc},
    {Py_tp_traverse, Control_traverse},
    {Py_tp_methods, Control_methods},
    {Py_tp_getset, Control_getset},
    {0, NULL}};
static PyType_Spec Control_spec = {
    .name = "shmlog._native.Control",
    .basicsize = sizeof(ControlObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Control_slots};

int control_exec(PyObject *module) {
    state_of(module)->control_type = add_type(module, &Control_spec);
    return state_of(module)->control_type ? 0 : -1;
}

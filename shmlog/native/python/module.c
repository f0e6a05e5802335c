/* Module: the glue between Python and the core.
 *
 * Nothing here decides anything: it parses arguments, holds buffers, lets go of
 * the GIL around long copies and turns outcomes into calls of Writer._slow, the
 * one door by which anything rare leaves for Python.
 *
 * Every function takes what it needs from its arguments or from atomics, and none
 * relies on the GIL to keep two threads apart.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#ifdef __linux__
#include <linux/falloc.h>
#endif

#include "../core/append.h"
#include "../core/fork.h"
#include "../core/spawn.h"
#include "../core/sync.h"
#include "../core/wait.h"

#define RELEASE_GIL_BYTES 32768u /* below this, letting go costs more than it gives */

/* Reasons for Writer._slow. */
enum {
    SLOW_ROOM = 1,    /* lsn: how far room is wanted */
    SLOW_MAP = 2,     /* lsn: whose segment is not mapped */
    SLOW_STALE = 3,   /* forked, closed or faulted */
    SLOW_CLAIMS = 4,  /* every claim in use */
    SLOW_BELL = 5,    /* the flusher sleeps and wants to hear of an append */
    SLOW_DURABLE = 6, /* lsn: what must become durable */
    SLOW_LARGE = 7,   /* lsn: the size that is too large */
    SLOW_FAULT = 8,   /* lsn: where a mapping faulted under a copy */
    SLOW_SYNC_BELL = 9 /* the flusher's sync loop sleeps and a durable wait begins */
};

/* A durable wait stays in the core for one slice; after it Python looks at the lease,
 * the deadline and the signals.  The spin is about one sync of a fast disk. */
#define DURABLE_SLICE_NS 50000000u
#define DURABLE_SPIN_NS 100000u

static PyObject *name_slow, *name_tag, *name_durable, *name_timeout, *name_atomic;

#ifdef SHMLOG_STEPS
static PyObject *step_hook;

int shmlog_step(const char *label) {
    if (!step_hook || step_hook == Py_None)
        return 0;
    PyObject *result = PyObject_CallFunction(step_hook, "s", label);
    if (!result) {
        PyErr_Clear();
        return 1;
    }
    int died = PyObject_IsTrue(result);
    Py_DECREF(result);
    return died;
}

static PyObject *set_step_hook(PyObject *module, PyObject *hook) {
    (void)module;
    Py_XSETREF(step_hook, Py_NewRef(hook));
    Py_RETURN_NONE;
}
#endif

/* ---------------------------------------------------------------- Mapping */

typedef struct {
    PyObject_HEAD
    uint8_t *base;
    size_t bytes;
    int writable;
    guard_range_t *range;
} MappingObject;

static PyTypeObject Mapping_Type;

static PyObject *Mapping_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"fd", "bytes", "writable", NULL};
    int fd, writable;
    Py_ssize_t bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "inp", names, &fd, &bytes, &writable))
        return NULL;
    if (bytes <= 0)
        return PyErr_Format(PyExc_ValueError, "cannot map %zd bytes", bytes);
    if (guard_install() != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    void *base = mmap(NULL, (size_t)bytes, protection, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED)
        return PyErr_SetFromErrno(PyExc_OSError);
    guard_range_t *range = guard_add(base, (size_t)bytes, protection);
    MappingObject *self = range ? (MappingObject *)type->tp_alloc(type, 0) : NULL;
    if (!self) {
        if (range)
            guard_remove(range);
        else
            PyErr_SetString(PyExc_MemoryError, "too many mappings in this process");
        munmap(base, (size_t)bytes);
        return NULL;
    }
    self->base = base;
    self->bytes = (size_t)bytes;
    self->writable = writable;
    self->range = range;
    return (PyObject *)self;
}

static void Mapping_dealloc(MappingObject *self) {
    guard_remove(self->range);
    munmap(self->base, self->bytes);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static int Mapping_getbuffer(MappingObject *self, Py_buffer *view, int flags) {
    return PyBuffer_FillInfo(view, (PyObject *)self, self->base, (Py_ssize_t)self->bytes, !self->writable, flags);
}

static int mapping_range(MappingObject *self, Py_ssize_t offset, Py_ssize_t bytes) {
    if (offset >= 0 && bytes >= 0 && (size_t)offset <= self->bytes && (size_t)bytes <= self->bytes - (size_t)offset)
        return 0;
    PyErr_Format(PyExc_ValueError, "[%zd, +%zd) is outside of a mapping of %zu bytes", offset, bytes, self->bytes);
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
     "populate(offset, bytes)\n--\n\nFault the range in for writing. OSError(EFAULT) when there is no room behind it."},
    {"forget", (PyCFunction)Mapping_forget, METH_VARARGS,
     "forget(offset, bytes)\n--\n\nDrop the range from this process's page tables; the file keeps its bytes."},
    {"touch", (PyCFunction)Mapping_touch, METH_VARARGS,
     "touch(offset, bytes)\n--\n\nMake every page of the range dirty without changing it."},
    {"load", (PyCFunction)Mapping_load, METH_O, "load(offset)\n--\n\nThe u64 at an aligned offset (acquire)."},
    {NULL, NULL, 0, NULL}};
static PyGetSetDef Mapping_getset[] = {
    {"faulted", (getter)Mapping_faulted, NULL, "Whether an access to the mapping ever failed.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};
static PyBufferProcs Mapping_buffer = {(getbufferproc)Mapping_getbuffer, NULL};
static PyTypeObject Mapping_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "shmlog._native.Mapping",
    .tp_basicsize = sizeof(MappingObject),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Mapping(fd, bytes, writable)\n--\n\nA shared mapping of a file, guarded against SIGBUS; lives as long as any view.",
    .tp_new = Mapping_new,
    .tp_dealloc = (destructor)Mapping_dealloc,
    .tp_methods = Mapping_methods,
    .tp_getset = Mapping_getset,
    .tp_as_buffer = &Mapping_buffer};

/* --------------------------------------------------------------------- Fd */

typedef struct {
    PyObject_HEAD
    int fd, index;
    uint64_t generation;
} FdObject;

static PyObject *Fd_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"path", "flags", NULL};
    PyObject *named, *path;
    int flags;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Oi", names, &named, &flags) || !PyUnicode_FSConverter(named, &path))
        return NULL;
    FdObject *self = (FdObject *)type->tp_alloc(type, 0);
    if (self) {
        int fd = -1, index = -1, error;
        Py_BEGIN_ALLOW_THREADS
        error = fork_open(PyBytes_AS_STRING(path), flags, &fd, &index);
        Py_END_ALLOW_THREADS
        self->fd = error ? -1 : fd;
        self->index = index;
        self->generation = atomic_load(&fork_generation);
        if (error) {
            errno = error;
            PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, named);
            Py_CLEAR(self);
        }
    }
    Py_DECREF(path);
    return (PyObject *)self;
}

/* K1 */
static void fd_close(FdObject *self) {
    int fd = self->fd;
    self->fd = -1;
    if (fd < 0 || self->generation != atomic_load(&fork_generation))
        return;
    if (atomic_exchange(&fork_fds[self->index], 0) == fd + 1)
        close(fd);
}

static PyObject *Fd_close(FdObject *self, PyObject *unused) {
    (void)unused;
    fd_close(self);
    Py_RETURN_NONE;
}

static PyObject *Fd_fileno(FdObject *self, PyObject *unused) {
    (void)unused;
    if (self->fd < 0 || self->generation != atomic_load(&fork_generation))
        return PyErr_Format(PyExc_ValueError, "the descriptor is closed");
    return PyLong_FromLong(self->fd);
}

static void Fd_dealloc(FdObject *self) {
    fd_close(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef Fd_methods[] = {
    {"close", (PyCFunction)Fd_close, METH_NOARGS, "close()\n--\n\nClose it, if this process opened it."},
    {"fileno", (PyCFunction)Fd_fileno, METH_NOARGS, "fileno()\n--\n\nThe number; ValueError once closed or in a forked child."},
    {NULL, NULL, 0, NULL}};
static PyTypeObject Fd_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "shmlog._native.Fd",
    .tp_basicsize = sizeof(FdObject),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Fd(path, flags)\n--\n\nOpens a file; owns a descriptor that forked children close at birth.",
    .tp_new = Fd_new,
    .tp_dealloc = (destructor)Fd_dealloc,
    .tp_methods = Fd_methods};

/* ---------------------------------------------------------------- Control */

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

static PyTypeObject Control_Type;

static PyObject *Control_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"buffer", "window_bytes", "slots", NULL};
    PyObject *buffer;
    unsigned long long window_bytes, slots;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OKK", names, &buffer, &window_bytes, &slots))
        return NULL;
    uint64_t granules = window_bytes / GRANULE_BYTES;
    if (granules < 64 || (granules & (granules - 1)) || granules > UINT64_C(1) << 40 || slots == 0 || slots > 65535)
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
    if (self->range)
        guard_remove(self->range);
    if (self->view.obj)
        PyBuffer_Release(&self->view);
    Py_TYPE(self)->tp_free((PyObject *)self);
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
        return PyErr_Format(PyExc_SystemExit, "died");
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
    return PyLong_FromUnsignedLongLong(
        bitmap_scan(&self->bitmap, begin >> GRANULE_SHIFT, end >> GRANULE_SHIFT, set) << GRANULE_SHIFT);
}

static PyObject *Control_publish(ControlObject *self, PyObject *args) {
    unsigned long long begin, end;
    if (!PyArg_ParseTuple(args, "KK", &begin, &end) || lsn_range(begin, end, self->window_bytes) != 0)
        return NULL;
    if (begin < end && bitmap_publish(&self->bitmap, begin >> GRANULE_SHIFT, end >> GRANULE_SHIFT) != OUTCOME_DONE)
        return PyErr_Format(PyExc_SystemExit, "died");
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

static PyObject *Control_watch(ControlObject *self, PyObject *args) {
    unsigned long long lsn, ns;
    if (!PyArg_ParseTuple(args, "KK", &lsn, &ns))
        return NULL;
    int set = 0;
    Py_BEGIN_ALLOW_THREADS
    uint64_t until = monotonic_ns() + ns, granule = lsn >> GRANULE_SHIFT;
    do {
        for (int i = 0; i < 32 && !set; i++) {
            set = bitmap_scan(&self->bitmap, granule, granule + 1, 1) == granule;
            cpu_relax();
        }
        if (!set)
            sched_yield();
    } while (!set && monotonic_ns() < until);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(set);
}

static PyObject *Control_wait(ControlObject *self, PyObject *args) {
    unsigned long long watermark, wanted, sleep_word, target, spin_ns, slice_ns;
    int ring;
    if (!PyArg_ParseTuple(args, "KKKKpKK", &watermark, &wanted, &sleep_word, &target, &ring, &spin_ns, &slice_ns))
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
        error = sync_cycle(self->base, fds, (size_t)count, mark.buf, (size_t)mark.len, (off_t)offset, target);
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
    {"store", (PyCFunction)Control_store, METH_VARARGS, "store(offset, value)\n--\n\nStore a word (seq_cst)."},
    {"add", (PyCFunction)Control_add, METH_VARARGS, "add(offset, n)\n--\n\nAdd to a word; its old value."},
    {"compare_exchange", (PyCFunction)Control_compare_exchange, METH_VARARGS,
     "compare_exchange(offset, expected, value)\n--\n\nWhether the word was `expected` and is now `value`."},
    {"raise_to", (PyCFunction)Control_raise, METH_VARARGS, "raise_to(offset, value)\n--\n\nMake a word at least value."},
    {"commit_step", (PyCFunction)Control_commit_step, METH_NOARGS,
     "commit_step()\n--\n\nScan, commit, clear, raise the limit: (committed, reserved, cleared, limit)."},
    {"scan", (PyCFunction)Control_scan, METH_VARARGS,
     "scan(begin_lsn, end_lsn, set)\n--\n\nThe first LSN whose bit is clear (set=False) or set (True), or end_lsn."},
    {"publish", (PyCFunction)Control_publish, METH_VARARGS, "publish(begin_lsn, end_lsn)\n--\n\nSet the bits, downward."},
    {"watch", (PyCFunction)Control_watch, METH_VARARGS,
     "watch(lsn, ns)\n--\n\nWatch a granule's bit until it is set or ns have passed; whether it is."},
    {"wait", (PyCFunction)Control_wait, METH_VARARGS,
     "wait(watermark, wanted, sleep_word, target, ring, spin_ns, slice_ns)\n--\n\n"
     "One slice of waiting for a word to reach target: WAIT_*."},
    {"sync", (PyCFunction)Control_sync, METH_VARARGS,
     "sync(fds, mark, mark_offset, target)\n--\n\n"
     "One sync cycle over the segments' descriptors; 0 or an errno."},
    {"wake", (PyCFunction)Control_wake, METH_O, "wake(offset)\n--\n\nWake every process that waits on the word."},
    {"spin", (PyCFunction)Control_spin, METH_VARARGS,
     "spin(offset, target, ns)\n--\n\nWatch a word until it is at least target or ns have passed; whether it is."},
    {NULL, NULL, 0, NULL}};
static PyGetSetDef Control_getset[] = {
    {"faulted", (getter)Control_faulted, NULL, "Whether an access to the block ever failed.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};
static PyTypeObject Control_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "shmlog._native.Control",
    .tp_basicsize = sizeof(ControlObject),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Control(buffer, window_bytes, slots)\n--\n\nAtomic access to a control block.",
    .tp_new = Control_new,
    .tp_dealloc = (destructor)Control_dealloc,
    .tp_methods = Control_methods,
    .tp_getset = Control_getset};

/* ----------------------------------------------------------------- Writer */

typedef struct {
    PyObject_HEAD
    writer_t w;
    PyObject *control;   /* keeps w.control alive */
    PyObject **mappings; /* keeps w.segments[i].frames alive */
    PyObject *new_array; /* numpy.empty, imported at the first batch */
    PyObject *lsn_type;
} WriterObject;

static PyTypeObject Writer_Type, Reservation_Type;

static PyObject *Writer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)args;
    (void)kwargs;
    return type->tp_alloc(type, 0);
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
    uint64_t entries = 4;
    while (entries < window_bytes / segment_bytes + 3)
        entries *= 2;
    self->w.segments = PyMem_RawCalloc(entries, sizeof *self->w.segments);
    self->mappings = PyMem_RawCalloc(entries, sizeof *self->mappings);
    if (!self->w.segments || !self->mappings) {
        PyErr_NoMemory();
        return -1;
    }
    self->w.segment_mask = entries - 1;
    self->w.segment_bytes = segment_bytes;
    self->w.segment_shift = (unsigned)__builtin_ctzll(segment_bytes);
    self->w.seed = (uint32_t)seed;
    /* A straddling reservation is the record and less than as much PAD: both must
     * fit the window, or the wait for room would never end. */
    uint64_t most = window_bytes / 2 < segment_bytes ? window_bytes / 2 : segment_bytes;
    self->w.record_bytes_max = most - FRAME_HEADER_BYTES;
    self->w.batch_bytes_max = most;
    return 0;
}

static void Writer_dealloc(WriterObject *self) {
    PyObject_GC_UnTrack(self);
    for (uint64_t i = 0; self->mappings && i <= self->w.segment_mask; i++)
        Py_XDECREF(self->mappings[i]);
    PyMem_RawFree(self->mappings);
    PyMem_RawFree(self->w.segments);
    Py_XDECREF(self->control);
    Py_XDECREF(self->new_array);
    Py_XDECREF(self->lsn_type);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static int Writer_traverse(WriterObject *self, visitproc visit, void *arg) {
    Py_VISIT(self->control);
    Py_VISIT(self->new_array);
    return 0;
}

static void writer_unmap_all(WriterObject *self) {
    for (uint64_t i = 0; i <= self->w.segment_mask; i++) {
        atomic_store(&self->w.segments[i].key, 0);
        Py_CLEAR(self->mappings[i]);
    }
}

/* Become participant `number`.  Only while no thread is inside: before the first
 * use, or in a forked child, which has one thread. */
static PyObject *Writer_attach(WriterObject *self, PyObject *args) {
    ControlObject *control;
    unsigned long long number;
    if (!PyArg_ParseTuple(args, "O!K", &Control_Type, &control, &number))
        return NULL;
    if (!self->w.segments || number >= control->slots)
        return PyErr_Format(PyExc_ValueError, "participant %llu of %llu", number, (unsigned long long)control->slots);
    writer_unmap_all(self);
    uint8_t *slot = control->base + CB_HEADER_BYTES + number * PT_BYTES;
    Py_XSETREF(self->control, Py_NewRef((PyObject *)control));
    self->w.control = control->base;
    self->w.control_range = control->range;
    self->w.bitmap = control->bitmap;
    self->w.claims = slot + PT_CLAIMS;
    self->w.number = (uint16_t)number;
    atomic_store(&self->w.free_claims, (1u << CLAIM_COUNT) - 1);
    atomic_store(&self->w.lost_claims, 0);
    atomic_store(&self->w.ticket, atomic_load(&process_ticket));
    Py_RETURN_NONE;
}

static PyObject *Writer_seal(WriterObject *self, PyObject *unused) {
    (void)unused;
    atomic_store(&self->w.ticket, 0);
    uint32_t idle = atomic_load(&self->w.free_claims) | atomic_load(&self->w.lost_claims);
    return PyLong_FromLong((long)CLAIM_COUNT - __builtin_popcount(idle));
}

static PyObject *Writer_renew(WriterObject *self, PyObject *unused) {
    (void)unused;
    atomic_store(&self->w.ticket, atomic_load(&process_ticket));
    Py_RETURN_NONE;
}

static PyObject *Writer_unmap(WriterObject *self, PyObject *unused) {
    (void)unused;
    writer_unmap_all(self);
    Py_RETURN_NONE;
}

/* A4: the entry that is replaced belongs to a segment a whole table lower, hence
 * below committed_lsn.  A caller that comes so late that its entry already belongs to
 * a higher segment replaces nothing.  Callers take turns (Writer._map_lock). */
static PyObject *Writer_map(WriterObject *self, PyObject *args) {
    unsigned long long number;
    MappingObject *mapping;
    if (!PyArg_ParseTuple(args, "KO!", &number, &Mapping_Type, &mapping))
        return NULL;
    if (mapping->bytes < SEGMENT_HEADER_BYTES + self->w.segment_bytes || !mapping->writable)
        return PyErr_Format(PyExc_ValueError, "the mapping is read-only or too small for a segment");
    uint64_t index = number & self->w.segment_mask;
    segment_entry_t *entry = &self->w.segments[index];
    if (atomic_load(&entry->key) > number)
        Py_RETURN_NONE; /* another thread was first, or is ahead, and may be copying through it by now */
    atomic_store(&entry->key, 0);
    atomic_store(&entry->frames, mapping->base + SEGMENT_HEADER_BYTES);
    atomic_store(&entry->range, mapping->range);
    Py_XSETREF(self->mappings[index], Py_NewRef((PyObject *)mapping));
    atomic_store_explicit(&entry->key, number + 1, memory_order_release);
    Py_RETURN_NONE;
}

/* The segment numbers now mapped, and a way to drop one that is done (A4). */
static PyObject *Writer_drop_below(WriterObject *self, PyObject *arg) {
    uint64_t lsn = PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred())
        return NULL;
    for (uint64_t i = 0; i <= self->w.segment_mask; i++) {
        uint64_t key = atomic_load(&self->w.segments[i].key);
        if (key && key << self->w.segment_shift <= lsn) {
            atomic_store(&self->w.segments[i].key, 0);
            Py_CLEAR(self->mappings[i]);
        }
    }
    Py_RETURN_NONE;
}

typedef struct {
    uint32_t tag;
    int durable, atomic;
    PyObject *timeout;  /* borrowed; NULL: the handle's own */
    PyObject *deadline; /* owned; what _slow last returned */
} options_t;

/* As waiting.check_timeout: before anything is reserved. */
static int check_timeout(PyObject *timeout) {
    PyNumberMethods *number = Py_TYPE(timeout)->tp_as_number;
    if (PyBool_Check(timeout) || !number || !(number->nb_float || number->nb_index)) {
        PyErr_Format(PyExc_TypeError, "timeout must be a number of seconds, not %s", Py_TYPE(timeout)->tp_name);
        return -1;
    }
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            return -1;
        PyErr_Clear(); /* longer than anybody waits, or below zero */
        PyObject *zero = PyLong_FromLong(0);
        int negative = zero ? PyObject_RichCompareBool(timeout, zero, Py_LT) : -1;
        Py_XDECREF(zero);
        if (negative < 0)
            return -1;
        seconds = negative ? -1.0 : 0.0;
    }
    if (!(seconds >= 0)) {
        PyErr_Format(PyExc_ValueError, "timeout must not be negative: %S", timeout);
        return -1;
    }
    return 0;
}

static int parse_options(const char *function, PyObject *const *args, Py_ssize_t count, PyObject *names,
                         options_t *o, int takes_atomic, int takes_durable) {
    *o = (options_t){0};
    Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    PyObject *tag = NULL;
    if (count < 1 || count > 2) {
        PyErr_Format(PyExc_TypeError, "%s() takes what to append and, optionally, a tag; %zd positional arguments given",
                     function, count);
        return -1;
    }
    if (count == 2)
        tag = args[1];
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i), *value = args[count + i];
        int truth = 0;
        if (PyUnicode_Compare(name, name_tag) == 0) {
            if (tag) {
                PyErr_Format(PyExc_TypeError, "%s() got two tags", function);
                return -1;
            }
            tag = value;
        } else if (takes_durable && PyUnicode_Compare(name, name_durable) == 0) {
            if ((truth = PyObject_IsTrue(value)) < 0)
                return -1;
            o->durable = truth;
        } else if (takes_atomic && PyUnicode_Compare(name, name_atomic) == 0) {
            if ((truth = PyObject_IsTrue(value)) < 0)
                return -1;
            o->atomic = truth;
        } else if (PyUnicode_Compare(name, name_timeout) == 0) {
            o->timeout = value == Py_None ? NULL : value;
            if (o->timeout && check_timeout(value) != 0)
                return -1;
        } else {
            PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", function, name);
            return -1;
        }
    }
    if (tag) {
        if (!PyIndex_Check(tag)) {
            PyErr_Format(PyExc_TypeError, "tag must be an int, not %s", Py_TYPE(tag)->tp_name);
            return -1;
        }
        PyObject *index = PyNumber_Index(tag);
        if (!index)
            return -1;
        int overflow;
        long long value = PyLong_AsLongLongAndOverflow(index, &overflow);
        Py_DECREF(index);
        if (overflow || value < 0 || value > UINT32_MAX) {
            PyErr_Format(PyExc_ValueError, "tag must be in [0, 2**32), not %R", tag);
            return -1;
        }
        o->tag = (uint32_t)value;
    }
    return 0;
}

/* Call self._slow(reason, lsn, timeout, deadline); 0 to go on, -1 with an exception. */
static int slow(WriterObject *self, int reason, uint64_t lsn, options_t *o) {
    PyObject *number = PyLong_FromLong(reason), *where = PyLong_FromUnsignedLongLong(lsn), *result = NULL;
    if (number && where) {
        PyObject *args[5] = {(PyObject *)self, number, where, o->timeout ? o->timeout : Py_None,
                             o->deadline ? o->deadline : Py_None};
        result = PyObject_VectorcallMethod(name_slow, args, 5 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    }
    Py_XDECREF(number);
    Py_XDECREF(where);
    if (!result)
        return -1;
    Py_XSETREF(o->deadline, result);
    return 0;
}

/* Take a claim, or find out why not. */
static int begin(WriterObject *self, ticketed_t *t, options_t *o) {
    for (;;) {
        int outcome = claim_take(&self->w, t);
        if (outcome == OUTCOME_DONE)
            return 0;
        if (slow(self, outcome == OUTCOME_CLAIMS ? SLOW_CLAIMS : SLOW_STALE, 0, o) != 0)
            return -1;
    }
}

/* Wait until the record at lsn is durable.  The common case, a flusher that is awake and
 * a sync that works, needs no Python at all. */
static int wait_durable(WriterObject *self, uint64_t lsn, options_t *o) {
    uint8_t *control = self->w.control;
    if (!o->timeout)
        for (int ring = 1; ring >= 0; ring--) {
            enum wait_end end;
            Py_BEGIN_ALLOW_THREADS
            end = word_wait(control, CB_DURABLE_LSN, CB_WANTED_DURABLE, CB_SYNC_SLEEP, lsn + 1, ring,
                            DURABLE_SPIN_NS, DURABLE_SLICE_NS);
            Py_END_ALLOW_THREADS
            if (end == WAIT_REACHED) {
                atomic_fetch_add_explicit(word_at(self->w.claims - PT_CLAIMS, PT_WAITS), 1, memory_order_relaxed);
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

/* After DONE: ring if the flusher sleeps, wait if the caller asked for it. */
static int finish(WriterObject *self, uint64_t last_lsn, options_t *o) {
    if (flusher_sleeps(&self->w) && slow(self, SLOW_BELL, last_lsn, o) != 0)
        return -1;
    return o->durable ? wait_durable(self, last_lsn, o) : 0;
}

/* Append one plan, through as many refusals as it takes.  0, or -1 with an
 * exception and nothing reserved (but for a fault, which latches the log). */
static int append_all(WriterObject *self, const plan_t *plan, uint64_t *lsns, options_t *o) {
    ticketed_t t;
    if (begin(self, &t, o) != 0)
        return -1;
    for (;;) {
        int outcome;
        if (plan->frame_bytes >= RELEASE_GIL_BYTES) {
            Py_BEGIN_ALLOW_THREADS
            outcome = append_plan(&self->w, plan, &t, lsns);
            Py_END_ALLOW_THREADS
        } else {
            outcome = append_plan(&self->w, plan, &t, lsns);
        }
        if (outcome == OUTCOME_DONE)
            return 0;
        if (outcome == OUTCOME_FAULT) {
            atomic_fetch_or(&self->w.lost_claims, 1u << t.claim_no);
            slow(self, SLOW_FAULT, t.begin, o); /* raises; the claim stays held */
            return -1;
        }
        if (outcome == OUTCOME_DIED) {
            PyErr_SetString(PyExc_SystemExit, "died");
            return -1;
        }
        claim_give(&self->w, &t); /* A2 */
        if (slow(self, outcome == OUTCOME_MAP ? SLOW_MAP : SLOW_ROOM, t.want, o) != 0)
            return -1;
        if (begin(self, &t, o) != 0)
            return -1;
    }
}

static uint32_t payload_crc(uint32_t seed, const uint8_t *data, uint64_t bytes) {
    if (bytes < RELEASE_GIL_BYTES)
        return crc32c(seed, data, bytes);
    uint32_t crc;
    Py_BEGIN_ALLOW_THREADS
    crc = crc32c(seed, data, bytes);
    Py_END_ALLOW_THREADS
    return crc;
}

/* Sum what nobody can change before it is reserved for (A5). */
static void sum(piece_t *piece, uint32_t seed) {
    if (piece->summed)
        piece->crc = payload_crc(seed, piece->data, piece->bytes);
}

/* Whether a buffer's items may be Python objects: NumPy knows of its own arrays, of
 * others the format tells.  -1 with an exception. */
static int has_objects(PyObject *object, const char *format) {
    PyObject *dtype = PyObject_GetAttrString(object, "dtype");
    PyObject *answer = dtype ? PyObject_GetAttrString(dtype, "hasobject") : NULL;
    Py_XDECREF(dtype);
    int truth = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    if (truth >= 0)
        return truth;
    if (!PyErr_ExceptionMatches(PyExc_AttributeError))
        return -1;
    PyErr_Clear();
    return format && strchr(format, 'O');
}

/* View `object` as bytes.  `view->obj` is NULL when there is nothing to release. */
static int view_bytes(PyObject *object, Py_buffer *view, piece_t *piece) {
    view->obj = NULL;
    piece->summed = 0;
    if (PyBytes_CheckExact(object)) {
        piece->data = (const uint8_t *)PyBytes_AS_STRING(object);
        piece->bytes = (uint64_t)PyBytes_GET_SIZE(object);
        piece->summed = 1; /* once sum() has run */
        return 0;
    }
    if (PyUnicode_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "a record is bytes or another contiguous buffer, not str: encode it first");
        return -1;
    }
    int objects = 0;
    if (PyObject_GetBuffer(object, view, PyBUF_ND | PyBUF_FORMAT) == 0) {
        if (view->format && strchr(view->format, 'O'))
            objects = has_objects(object, view->format);
    } else if (PyErr_ExceptionMatches(PyExc_BufferError) || PyErr_ExceptionMatches(PyExc_ValueError)) {
        PyErr_Clear(); /* not every type has a format (NumPy's datetime64) */
        view->obj = NULL;
        objects = has_objects(object, NULL);
        if (!objects && PyObject_GetBuffer(object, view, PyBUF_SIMPLE) != 0)
            objects = -1;
    } else {
        view->obj = NULL;
        if (!PyObject_CheckBuffer(object))
            PyErr_Format(PyExc_TypeError, "a record is bytes or another contiguous buffer, not %s",
                         Py_TYPE(object)->tp_name);
        return -1;
    }
    if (objects) {
        if (view->obj)
            PyBuffer_Release(view);
        if (objects > 0)
            PyErr_SetString(PyExc_TypeError, "an array of Python objects cannot be appended");
        return -1;
    }
    piece->data = view->buf;
    piece->bytes = (uint64_t)view->len;
    return 0;
}

static PyObject *Writer_append(WriterObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    options_t o;
    if (parse_options("append", args, count, names, &o, 0, 1) != 0)
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

/* A new uint64 array of `count`, and a view of its memory. */
static PyObject *new_lsns(WriterObject *self, Py_ssize_t count, Py_buffer *view) {
    view->obj = NULL;
    if (!self->new_array) {
        PyObject *numpy = PyImport_ImportModule("numpy");
        if (!numpy)
            return NULL;
        PyObject *type = PyObject_GetAttrString(numpy, "uint64");
        PyObject *empty = type ? PyObject_GetAttrString(numpy, "empty") : NULL;
        Py_DECREF(numpy);
        if (!empty) {
            Py_XDECREF(type);
            return NULL;
        }
        Py_XSETREF(self->lsn_type, type);
        Py_XSETREF(self->new_array, empty);
    }
    PyObject *length = PyLong_FromSsize_t(count);
    if (!length)
        return NULL;
    PyObject *args[2] = {length, self->lsn_type};
    PyObject *array = PyObject_Vectorcall(self->new_array, args, 2, NULL);
    Py_DECREF(length);
    if (array && PyObject_GetBuffer(array, view, PyBUF_WRITABLE) != 0)
        Py_CLEAR(array);
    return array;
}

static PyObject *Writer_append_many(WriterObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    options_t o;
    if (parse_options("append_many", args, count, names, &o, 1, 1) != 0)
        return NULL;
    if (PyUnicode_Check(args[0]) || PyBytes_Check(args[0]) || PyByteArray_Check(args[0]))
        return PyErr_Format(PyExc_TypeError, "append_many() takes a sequence of buffers, not one %s",
                            Py_TYPE(args[0])->tp_name);
    PyObject *items = PySequence_Tuple(args[0]);
    if (!items)
        return NULL;
    Py_ssize_t n = PyTuple_GET_SIZE(items), held = 0;
    Py_buffer lsn_view = {0};
    PyObject *array = new_lsns(self, n, &lsn_view);
    piece_t *pieces = PyMem_Malloc((size_t)(n ? n : 1) * sizeof *pieces);
    Py_buffer *views = NULL;
    int failed = !array || !pieces;
    if (array && !pieces)
        PyErr_NoMemory();
    uint64_t total = 0, *lsns = lsn_view.buf;
    for (Py_ssize_t i = 0; i < n && !failed; i++) {
        PyObject *item = PyTuple_GET_ITEM(items, i);
        Py_buffer view;
        failed = view_bytes(item, &view, &pieces[i]) != 0;
        if (failed)
            break;
        if (view.obj) {
            if (!views && !(views = PyMem_Malloc((size_t)n * sizeof *views))) {
                PyBuffer_Release(&view);
                PyErr_NoMemory();
                failed = 1;
                break;
            }
            views[held++] = view;
        }
        total += frame_bytes(pieces[i].bytes);
        failed = pieces[i].bytes > self->w.record_bytes_max && slow(self, SLOW_LARGE, pieces[i].bytes, &o) != 0;
    }
    if (!failed && o.atomic && total > self->w.batch_bytes_max)
        failed = slow(self, SLOW_LARGE, total, &o) != 0;
    if (!failed) {
        for (Py_ssize_t i = 0; i < n; i++)
            sum(&pieces[i], self->w.seed);
    }
    /* One reservation, unless the batch is larger than one may be. */
    for (Py_ssize_t first = 0; first < n && !failed;) {
        plan_t plan = {.pieces = pieces + first, .tag = o.tag, .batch_flag = o.atomic ? FLAG_BATCH_GOES_ON : 0};
        Py_ssize_t end = first;
        for (; end < n; end++) {
            uint64_t bytes = frame_bytes(pieces[end].bytes);
            if (plan.count && plan.frame_bytes + bytes > self->w.batch_bytes_max)
                break;
            plan.frame_bytes += bytes;
            plan.payload_bytes += pieces[end].bytes;
            plan.count++;
        }
        failed = append_all(self, &plan, lsns + first, &o) != 0;
        if (!failed)
            first = end;
        else if (first)
            say_appended(first);
    }
    if (!failed && n && (failed = finish(self, lsns[n - 1], &o) != 0))
        say_appended(n);
    for (Py_ssize_t i = 0; i < held; i++)
        PyBuffer_Release(&views[i]);
    PyMem_Free(views);
    PyMem_Free(pieces);
    if (lsn_view.obj)
        PyBuffer_Release(&lsn_view);
    Py_DECREF(items);
    Py_XDECREF(o.deadline);
    if (failed)
        Py_CLEAR(array);
    return array;
}

static PyObject *Writer_append_rows(WriterObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    options_t o;
    if (parse_options("append_array", args, count, names, &o, 0, 1) != 0)
        return NULL;
    Py_buffer rows;
    if (PyObject_GetBuffer(args[0], &rows, PyBUF_ND) != 0)
        return NULL;
    if (rows.ndim < 1) {
        PyBuffer_Release(&rows);
        return PyErr_Format(PyExc_ValueError, "append_array() takes an array of at least one dimension");
    }
    Py_ssize_t n = rows.shape[0];
    uint64_t row_bytes = n ? (uint64_t)(rows.len / n) : 0;
    uint64_t row_frame = frame_bytes(row_bytes);
    Py_buffer lsn_view = {0};
    PyObject *array = new_lsns(self, n, &lsn_view);
    int failed = !array;
    if (!failed && row_bytes > self->w.record_bytes_max)
        failed = slow(self, SLOW_LARGE, row_bytes, &o) != 0;
    uint64_t *lsns = lsn_view.buf;
    if (!failed && n) {
        const uint8_t *data = rows.buf;
        uint64_t most = self->w.batch_bytes_max / row_frame, left = (uint64_t)n, first = 0;
        while (left && !failed) {
            uint64_t now = left < most ? left : most;
            plan_t plan = {.rows = data + first * row_bytes,
                           .row_bytes = row_bytes,
                           .count = now,
                           .frame_bytes = now * row_frame,
                           .payload_bytes = now * row_bytes,
                           .tag = o.tag};
            failed = append_all(self, &plan, lsns + first, &o) != 0;
            if (failed && first)
                say_appended((Py_ssize_t)first);
            first += now;
            left -= now;
        }
        if (!failed && (failed = finish(self, lsns[n - 1], &o) != 0))
            say_appended(n);
    }
    PyBuffer_Release(&rows);
    if (lsn_view.obj)
        PyBuffer_Release(&lsn_view);
    Py_XDECREF(o.deadline);
    if (failed)
        Py_CLEAR(array);
    return array;
}

/* ------------------------------------------------------------ Reservation */

typedef struct {
    PyObject_HEAD
    WriterObject *writer;
    PyObject *mapping;
    ticketed_t t;
    uint64_t start; /* the frame's LSN; t.begin is lower when a PAD goes first */
    uint64_t payload_bytes;
    uint8_t *payload;
    uint32_t tag;
    uint64_t generation;
    _Atomic int done;
} ReservationObject;

static PyObject *Writer_reserve(WriterObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names) {
    options_t o;
    if (parse_options("reserve", args, count, names, &o, 0, 0) != 0)
        return NULL;
    if (!PyIndex_Check(args[0]))
        return PyErr_Format(PyExc_TypeError, "nbytes must be an int, not %s", Py_TYPE(args[0])->tp_name);
    Py_ssize_t bytes = PyNumber_AsSsize_t(args[0], PyExc_OverflowError);
    if (bytes == -1 && PyErr_Occurred())
        return NULL;
    if (bytes < 0)
        return PyErr_Format(PyExc_ValueError, "nbytes must not be negative: %zd", bytes);
    if ((uint64_t)bytes > self->w.record_bytes_max) {
        slow(self, SLOW_LARGE, (uint64_t)bytes, &o);
        return NULL;
    }
    ReservationObject *r = (ReservationObject *)Reservation_Type.tp_alloc(&Reservation_Type, 0);
    if (!r)
        return NULL;
    atomic_store(&r->done, 1); /* nothing to give back yet */
    piece_t piece = {.bytes = (uint64_t)bytes};
    plan_t plan = {.pieces = &piece, .count = 1, .frame_bytes = frame_bytes(piece.bytes)};
    int failed = begin(self, &r->t, &o) != 0;
    while (!failed) {
        int outcome = reserve(&self->w, &plan, &r->t);
        if (outcome == OUTCOME_DONE)
            break;
        claim_give(&self->w, &r->t);
        failed = slow(self, outcome == OUTCOME_MAP ? SLOW_MAP : SLOW_ROOM, r->t.want, &o) != 0 ||
                 begin(self, &r->t, &o) != 0;
    }
    Py_XDECREF(o.deadline);
    if (failed) {
        Py_DECREF(r);
        return NULL;
    }
    r->writer = (WriterObject *)Py_NewRef((PyObject *)self);
    r->start = r->t.end - plan.frame_bytes;
    r->payload_bytes = piece.bytes;
    r->payload = segment_frames(&self->w, r->start, NULL) + (r->start & (self->w.segment_bytes - 1)) + FRAME_HEADER_BYTES;
    r->mapping = Py_NewRef(self->mappings[r->start >> self->w.segment_shift & self->w.segment_mask]);
    r->tag = o.tag;
    r->generation = atomic_load(&fork_generation);
    atomic_store(&r->done, 0);
    return (PyObject *)r;
}

/* 1 if the caller now owns the ending of the reservation. */
static int reservation_end(ReservationObject *r) { return atomic_exchange(&r->done, 1) == 0; }

static int reservation_foreign(ReservationObject *r) { return r->generation != atomic_load(&fork_generation); }

static int reservation_abandon(ReservationObject *r) {
    if (!reservation_end(r) || reservation_foreign(r))
        return OUTCOME_DONE;
    int outcome = abandon(&r->writer->w, &r->t, r->start);
    if (outcome == OUTCOME_FAULT)
        atomic_fetch_or(&r->writer->w.lost_claims, 1u << r->t.claim_no);
    return outcome;
}

static int reservation_publish(ReservationObject *r) {
    writer_t *w = &r->writer->w;
    if (reservation_foreign(r)) {
        PyErr_SetString(PyExc_ValueError, "the reservation belongs to the parent process");
        return -1;
    }
    if (!reservation_end(r)) {
        PyErr_SetString(PyExc_ValueError, "the reservation has been published or aborted");
        return -1;
    }
    guard_range_t *range = ((MappingObject *)r->mapping)->range, *pad_range = range;
    uint64_t mask = w->segment_bytes - 1;
    int64_t now = wall_clock_ns();
    if (r->start > r->t.begin)
        frame_seal_filler(segment_frames(w, r->t.begin, &pad_range) + (r->t.begin & mask), KIND_PAD, r->t.begin,
                          r->start - r->t.begin, now, w->number, 0, w->seed);
    frame_t f = {.payload_bytes = (uint32_t)r->payload_bytes,
                 .lsn = r->start,
                 .time_ns = now,
                 .tag = r->tag,
                 .writer = w->number,
                 .kind = KIND_DATA};
    frame_seal(r->payload - FRAME_HEADER_BYTES, f, payload_crc(w->seed, r->payload, r->payload_bytes));
    options_t o = {0};
    if (guard_faulted(range) || guard_faulted(pad_range)) {
        atomic_fetch_or(&w->lost_claims, 1u << r->t.claim_no);
        slow(r->writer, SLOW_FAULT, r->t.begin, &o);
        Py_XDECREF(o.deadline);
        return -1;
    }
    if (publish(w, &r->t, 1, r->payload_bytes) == OUTCOME_DIED) {
        PyErr_SetString(PyExc_SystemExit, "died");
        return -1;
    }
    int failed = finish(r->writer, r->start, &o);
    Py_XDECREF(o.deadline);
    return failed;
}

static PyObject *Reservation_publish(ReservationObject *self, PyObject *unused) {
    (void)unused;
    if (reservation_publish(self) != 0)
        return NULL;
    return PyLong_FromUnsignedLongLong(self->start);
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
    return PyBuffer_FillInfo(view, (PyObject *)self, self->payload, (Py_ssize_t)self->payload_bytes, 0, flags);
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
    return PyLong_FromUnsignedLongLong(self->start);
}

static void Reservation_dealloc(ReservationObject *self) {
    if (self->writer)
        reservation_abandon(self);
    Py_XDECREF(self->mapping);
    Py_XDECREF((PyObject *)self->writer);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef Reservation_methods[] = {
    {"publish", (PyCFunction)Reservation_publish, METH_NOARGS, "publish()\n--\n\nPublish the record; its LSN."},
    {"abort", (PyCFunction)Reservation_abort, METH_NOARGS, "abort()\n--\n\nGive the range up: readers skip it."},
    {"array", (PyCFunction)(void (*)(void))Reservation_array, METH_VARARGS | METH_KEYWORDS,
     "array(dtype, shape=None)\n--\n\nThe payload as a writable array, zero-copy. Do not write to it after publishing."},
    {"__enter__", Reservation_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)Reservation_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL}};
static PyGetSetDef Reservation_getset[] = {
    {"buffer", Reservation_buffer, NULL, "The payload as a writable memoryview.", NULL},
    {"lsn", (getter)Reservation_lsn, NULL, "The LSN that the record will have.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};
static PyBufferProcs Reservation_procs = {(getbufferproc)Reservation_getbuffer, NULL};
static PyTypeObject Reservation_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "shmlog.Reservation",
    .tp_basicsize = sizeof(ReservationObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "A reserved place in the log, to be written in place; published on leaving the with block.",
    .tp_dealloc = (destructor)Reservation_dealloc,
    .tp_methods = Reservation_methods,
    .tp_getset = Reservation_getset,
    .tp_as_buffer = &Reservation_procs};

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
     "Raises RecordTooLargeError, TypeError, ValueError (tag), LogFailedError, ClosedError.\n"
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
     "after it is committed while it is open. Blocking and errors as append()."},
    {"_attach", (PyCFunction)Writer_attach, METH_VARARGS, "_attach(control, number)\n--\n\nBecome a participant."},
    {"_seal", (PyCFunction)Writer_seal, METH_NOARGS, "_seal()\n--\n\nRefuse new appends; how many claims are in use."},
    {"_renew", (PyCFunction)Writer_renew, METH_NOARGS, "_renew()\n--\n\nTake the process's current ticket."},
    {"_map", (PyCFunction)Writer_map, METH_VARARGS, "_map(number, mapping)\n--\n\nUse a mapping for a segment."},
    {"_drop_below", (PyCFunction)Writer_drop_below, METH_O, "_drop_below(lsn)\n--\n\nDrop mappings that end at or below lsn."},
    {"_unmap", (PyCFunction)Writer_unmap, METH_NOARGS, "_unmap()\n--\n\nDrop every mapping; only when sealed and idle."},
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
    {"record_bytes_max", (getter)Writer_record_max, NULL, "The largest record this log takes, in bytes.", NULL},
    {"writer_number", (getter)Writer_number, NULL, "This handle's participant number, as in Record.writer.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};
static PyTypeObject Writer_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "shmlog._native.Writer",
    .tp_basicsize = sizeof(WriterObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "The append paths; a subclass defines _slow.",
    .tp_new = Writer_new,
    .tp_init = (initproc)Writer_init,
    .tp_dealloc = (destructor)Writer_dealloc,
    .tp_traverse = (traverseproc)Writer_traverse,
    .tp_methods = Writer_methods,
    .tp_getset = Writer_getset};

/* -------------------------------------------------------------- functions */

static PyObject *py_crc32c(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer view;
    unsigned int seed = 0;
    if (!PyArg_ParseTuple(args, "y*|I", &view, &seed))
        return NULL;
    uint32_t crc = payload_crc(seed, view.buf, (uint64_t)view.len);
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLong(crc);
}

static PyObject *py_crc32c_table(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer view;
    unsigned int seed = 0;
    if (!PyArg_ParseTuple(args, "y*|I", &view, &seed))
        return NULL;
    uint32_t crc = ~crc_raw_table(~seed, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLong(crc);
}

/* [begin, end) must lie inside the buffer whose first byte is base_lsn. */
static int walk_bounds(const Py_buffer *view, uint64_t base_lsn, uint64_t begin, uint64_t end) {
    if (base_lsn <= begin && begin <= end && end - base_lsn <= (uint64_t)view->len && begin % GRANULE_BYTES == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "[%llu, %llu) is not inside %zd bytes from %llu", (unsigned long long)begin,
                 (unsigned long long)end, view->len, (unsigned long long)base_lsn);
    return -1;
}

static PyObject *py_walk(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer view, columns[5] = {0};
    unsigned long long base_lsn, begin_lsn, end_lsn;
    unsigned int seed;
    int verify, stop_at_gap, count = 0;
    long long tag;
    PyObject *into;
    if (!PyArg_ParseTuple(args, "y*KKKIpLpO", &view, &base_lsn, &begin_lsn, &end_lsn, &seed, &verify, &tag,
                          &stop_at_gap, &into))
        return NULL;
    PyObject *result = NULL;
    columns_t to = {.capacity = UINT64_MAX};
    static const Py_ssize_t item[5] = {8, 8, 4, 2, 4};
    if (walk_bounds(&view, base_lsn, begin_lsn, end_lsn) != 0)
        goto out;
    if (into != Py_None) {
        if (!PyTuple_Check(into) || PyTuple_GET_SIZE(into) != 5) {
            PyErr_SetString(PyExc_TypeError, "columns are (lsn, time_ns, tag, writer, nbytes) or None");
            goto out;
        }
        for (; count < 5; count++) {
            if (PyObject_GetBuffer(PyTuple_GET_ITEM(into, count), &columns[count], PyBUF_WRITABLE) != 0)
                goto out;
            uint64_t room = (uint64_t)(columns[count].len / item[count]);
            if (room < to.capacity)
                to.capacity = room;
        }
        to.lsn = columns[0].buf;
        to.time_ns = columns[1].buf;
        to.tag = columns[2].buf;
        to.writer = columns[3].buf;
        to.payload_bytes = columns[4].buf;
    }
    walk_t w;
    Py_BEGIN_ALLOW_THREADS
    w = frame_walk(view.buf, base_lsn, begin_lsn, end_lsn, seed, verify, tag, stop_at_gap, &to);
    Py_END_ALLOW_THREADS
    result = Py_BuildValue("KKKi", (unsigned long long)w.count, (unsigned long long)w.next_lsn,
                           (unsigned long long)w.whole_lsn, (int)w.problem);
out:
    for (int i = 0; i < count; i++)
        PyBuffer_Release(&columns[i]);
    PyBuffer_Release(&view);
    return result;
}

/* One instance of `type`, a tuple of (lsn, time_ns, tag, writer, data). */
static PyObject *make_record(PyTypeObject *type, const frame_t *f, PyObject *memory, uint64_t payload_at) {
    PyObject *record = type->tp_alloc(type, 5);
    PyObject *begin = PyLong_FromUnsignedLongLong(payload_at);
    PyObject *end = PyLong_FromUnsignedLongLong(payload_at + f->payload_bytes);
    PyObject *slice = begin && end ? PySlice_New(begin, end, NULL) : NULL;
    Py_XDECREF(begin);
    Py_XDECREF(end);
    if (record && slice) {
        PyTuple_SET_ITEM(record, 0, PyLong_FromUnsignedLongLong(f->lsn));
        PyTuple_SET_ITEM(record, 1, PyLong_FromLongLong(f->time_ns));
        PyTuple_SET_ITEM(record, 2, PyLong_FromUnsignedLong(f->tag));
        PyTuple_SET_ITEM(record, 3, PyLong_FromUnsignedLong(f->writer));
        PyTuple_SET_ITEM(record, 4, PyObject_GetItem(memory, slice));
    }
    Py_XDECREF(slice);
    for (Py_ssize_t i = 0; record && i < 5; i++)
        if (!PyTuple_GET_ITEM(record, i))
            Py_CLEAR(record);
    return record;
}

/* The segment's first frame, at base_lsn, follows its header in the mapping. */
static PyObject *py_records(PyObject *module, PyObject *args) {
    (void)module;
    MappingObject *mapping;
    PyTypeObject *type;
    unsigned long long base_lsn, lsn, stop_lsn, end_lsn;
    unsigned int seed;
    int verify;
    Py_ssize_t most;
    if (!PyArg_ParseTuple(args, "O!KKKKIpnO!", &Mapping_Type, &mapping, &base_lsn, &lsn, &stop_lsn, &end_lsn, &seed,
                          &verify, &most, &PyType_Type, &type))
        return NULL;
    Py_buffer whole = {.len = (Py_ssize_t)mapping->bytes - SEGMENT_HEADER_BYTES};
    if (!PyType_IsSubtype(type, &PyTuple_Type) || type->tp_itemsize != sizeof(PyObject *))
        return PyErr_Format(PyExc_TypeError, "%s is no kind of tuple", type->tp_name);
    if (whole.len < 0 || walk_bounds(&whole, base_lsn, lsn, end_lsn) != 0)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "the mapping is too small for a segment");
    PyObject *memory = PyMemoryView_FromObject((PyObject *)mapping), *records = PyList_New(0);
    enum frame_problem problem = FRAME_VALID;
    int failed = !memory || !records;
    while (!failed && lsn < stop_lsn && lsn < end_lsn && PyList_GET_SIZE(records) < most) {
        frame_t f;
        uint64_t offset = SEGMENT_HEADER_BYTES + (lsn - base_lsn);
        const uint8_t *at = mapping->base + offset;
        problem = frame_header_check(at, lsn, end_lsn - lsn, &f);
        if (problem == FRAME_VALID && verify) {
            PyThreadState *released = f.payload_bytes >= RELEASE_GIL_BYTES ? PyEval_SaveThread() : NULL;
            problem = frame_sum_check(at, &f, seed);
            if (released)
                PyEval_RestoreThread(released);
        }
        if (problem != FRAME_VALID)
            break;
        if (f.kind == KIND_DATA) {
            PyObject *record = make_record(type, &f, memory, offset + FRAME_HEADER_BYTES);
            failed = !record || PyList_Append(records, record) != 0;
            Py_XDECREF(record);
        }
        lsn += frame_bytes(f.payload_bytes);
    }
    Py_XDECREF(memory);
    if (failed) {
        Py_XDECREF(records);
        return NULL;
    }
    return Py_BuildValue("NKi", records, (unsigned long long)lsn, (int)problem);
}

static PyObject *py_find_frame(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer view;
    unsigned long long base_lsn, begin_lsn, end_lsn;
    unsigned int seed;
    if (!PyArg_ParseTuple(args, "y*KKKI", &view, &base_lsn, &begin_lsn, &end_lsn, &seed))
        return NULL;
    uint64_t found = NO_LSN;
    int bad = walk_bounds(&view, base_lsn, begin_lsn, end_lsn);
    if (!bad) {
        Py_BEGIN_ALLOW_THREADS
        frame_t f;
        for (uint64_t lsn = begin_lsn; lsn < end_lsn && found == NO_LSN; lsn += GRANULE_BYTES) {
            enum frame_problem problem =
                frame_check((uint8_t *)view.buf + (lsn - base_lsn), lsn, end_lsn - lsn, seed, 1, &f);
            if (problem == FRAME_VALID || problem == FRAME_BAD_LENGTH)
                found = lsn;
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&view);
    if (bad)
        return NULL;
    if (found == NO_LSN)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(found);
}

static PyObject *py_filler(PyObject *module, PyObject *args) {
    (void)module;
    int kind;
    unsigned long long lsn, bytes;
    long long time_ns;
    unsigned int writer, seed;
    if (!PyArg_ParseTuple(args, "iKKLII", &kind, &lsn, &bytes, &time_ns, &writer, &seed))
        return NULL;
    if ((kind != KIND_PAD && kind != KIND_FILL) || bytes < FRAME_HEADER_BYTES || bytes % GRANULE_BYTES ||
        bytes - FRAME_HEADER_BYTES > UINT32_MAX || writer > UINT16_MAX)
        return PyErr_Format(PyExc_ValueError, "filler(kind=%d, bytes=%llu, writer=%u)", kind, bytes, writer);
    uint8_t header[FRAME_HEADER_BYTES];
    frame_seal_filler(header, (uint8_t)kind, lsn, bytes, time_ns, (uint16_t)writer, 0, seed);
    return PyBytes_FromStringAndSize((char *)header, sizeof header);
}

#if defined(F_OFD_SETLK)
static int lock_call(int fd, int command, short type, long long byte, long long count, short *found) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)byte, .l_len = (off_t)count};
    int result;
    do
        result = fcntl(fd, command, &lock);
    while (result != 0 && errno == EINTR);
    if (found)
        *found = lock.l_type;
    return result;
}
#else
#error "open-file-description locks (F_OFD_SETLK) are needed to know who is alive"
#endif

static PyObject *py_lock_byte(PyObject *module, PyObject *args) {
    (void)module;
    int fd;
    long long byte;
    if (!PyArg_ParseTuple(args, "iL", &fd, &byte))
        return NULL;
    if (lock_call(fd, F_OFD_SETLK, F_WRLCK, byte, 1, NULL) == 0)
        Py_RETURN_TRUE;
    if (errno == EAGAIN || errno == EACCES)
        Py_RETURN_FALSE;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *py_unlock_byte(PyObject *module, PyObject *args) {
    (void)module;
    int fd;
    long long byte;
    if (!PyArg_ParseTuple(args, "iL", &fd, &byte))
        return NULL;
    if (lock_call(fd, F_OFD_SETLK, F_UNLCK, byte, 1, NULL) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *py_byte_locked(PyObject *module, PyObject *args) {
    (void)module;
    int fd;
    long long byte, count = 1;
    if (!PyArg_ParseTuple(args, "iL|L", &fd, &byte, &count))
        return NULL;
    short found;
    if (lock_call(fd, F_OFD_GETLK, F_WRLCK, byte, count, &found) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyBool_FromLong(found != F_UNLCK);
}

static PyObject *py_punch_hole(PyObject *module, PyObject *args) {
    (void)module;
    int fd;
    long long offset, bytes;
    if (!PyArg_ParseTuple(args, "iLL", &fd, &offset, &bytes))
        return NULL;
#ifdef FALLOC_FL_PUNCH_HOLE
    int result;
    do {
        Py_BEGIN_ALLOW_THREADS
        result = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes);
        Py_END_ALLOW_THREADS
    } while (result != 0 && errno == EINTR && PyErr_CheckSignals() == 0);
    if (PyErr_Occurred())
        return NULL;
    if (result == 0)
        Py_RETURN_TRUE;
    if (errno != EOPNOTSUPP && errno != ENOSYS)
        return PyErr_SetFromErrno(PyExc_OSError);
#endif
    Py_RETURN_FALSE;
}

/* A NULL-terminated array of the bytes objects' contents; valid as long as they are. */
static char **string_array(PyObject *tuple) {
    Py_ssize_t count = PyTuple_GET_SIZE(tuple);
    char **array = PyMem_Calloc((size_t)count + 1, sizeof *array);
    if (!array) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        array[i] = PyBytes_AsString(PyTuple_GET_ITEM(tuple, i));
        if (!array[i]) {
            PyMem_Free(array);
            return NULL;
        }
    }
    return array;
}

static PyObject *py_spawn_detached(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *arguments, *environment;
    if (!PyArg_ParseTuple(args, "O!O!", &PyTuple_Type, &arguments, &PyTuple_Type, &environment))
        return NULL;
    if (PyTuple_GET_SIZE(arguments) == 0)
        return PyErr_Format(PyExc_ValueError, "no program");
    char **argv = string_array(arguments), **envp = argv ? string_array(environment) : NULL;
    int error = 0;
    if (envp) {
        Py_BEGIN_ALLOW_THREADS
        error = spawn_detached(argv, envp);
        Py_END_ALLOW_THREADS
    }
    int failed = !envp;
    PyMem_Free(argv);
    PyMem_Free(envp);
    if (failed)
        return NULL;
    if (error) {
        errno = error;
        return PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, PyTuple_GET_ITEM(arguments, 0));
    }
    Py_RETURN_NONE;
}

static PyObject *py_fork_generation(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromUnsignedLongLong(atomic_load(&fork_generation));
}

static PyMethodDef functions[] = {
    {"crc32c", py_crc32c, METH_VARARGS, "crc32c(data, seed=0)\n--\n\nCRC-32C by the fastest path of this machine."},
    {"crc32c_table", py_crc32c_table, METH_VARARGS, "crc32c_table(data, seed=0)\n--\n\nCRC-32C by the portable path."},
    {"records", py_records, METH_VARARGS,
     "records(mapping, base_lsn, begin_lsn, stop_lsn, end_lsn, seed, verify, most, type)\n--\n\n"
     "The DATA frames of a mapped segment that begin in [begin_lsn, stop_lsn) and end by end_lsn, at most\n"
     "so many, as instances of a tuple type: ([(lsn, time_ns, tag, writer, data)], next_lsn, problem)."},
    {"walk", py_walk, METH_VARARGS,
     "walk(buffer, base_lsn, begin_lsn, end_lsn, seed, verify, tag, stop_at_gap, columns)\n--\n\n"
     "Index the DATA frames of a range: (count, next_lsn, whole_lsn, problem)."},
    {"find_frame", py_find_frame, METH_VARARGS,
     "find_frame(buffer, base_lsn, begin_lsn, end_lsn, seed)\n--\n\n"
     "The LSN of the next frame that is valid, or would be but for reaching past end_lsn; or None."},
    {"filler", py_filler, METH_VARARGS,
     "filler(kind, lsn, bytes, time_ns, writer, seed)\n--\n\nThe header of a PAD or FILL frame."},
    {"lock_byte", py_lock_byte, METH_VARARGS, "lock_byte(fd, byte)\n--\n\nTry to lock; whether it worked. Does not block."},
    {"unlock_byte", py_unlock_byte, METH_VARARGS, "unlock_byte(fd, byte)\n--\n\nGive a lock back."},
    {"byte_locked", py_byte_locked, METH_VARARGS,
     "byte_locked(fd, byte, count=1)\n--\n\nWhether another open file description holds a lock on any of the bytes."},
    {"punch_hole", py_punch_hole, METH_VARARGS,
     "punch_hole(fd, offset, bytes)\n--\n\nGive a range's blocks back, leaving zeros; False where the file system cannot."},
    {"spawn_detached", py_spawn_detached, METH_VARARGS,
     "spawn_detached(arguments, environment)\n--\n\nStart a program that is nobody's child, from tuples of bytes."},
    {"fork_generation", py_fork_generation, METH_NOARGS, "fork_generation()\n--\n\nChanges in every forked child."},
#ifdef SHMLOG_STEPS
    {"set_step_hook", set_step_hook, METH_O, "set_step_hook(hook)\n--\n\nTest build: called before every shared store."},
#endif
    {NULL, NULL, 0, NULL}};

static int add_layout(PyObject *module) {
    PyObject *layout = PyDict_New();
    if (!layout)
        return -1;
    int failed = 0;
#define X(name)                                                                        \
    do {                                                                               \
        PyObject *value = PyLong_FromUnsignedLongLong((unsigned long long)(name));     \
        failed |= !value || PyDict_SetItemString(layout, #name, value) != 0;           \
        Py_XDECREF(value);                                                             \
    } while (0);
    LAYOUT_NAMES(X)
#undef X
    failed |= PyModule_AddObjectRef(module, "LAYOUT", layout) != 0;
    Py_DECREF(layout);
    return failed ? -1 : 0;
}

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "shmlog._native",
                                        .m_doc = "The native core.", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit__native(void) {
    crc_initialize();
    guard_initialize();
    fork_initialize();
    name_slow = PyUnicode_InternFromString("_slow");
    name_tag = PyUnicode_InternFromString("tag");
    name_durable = PyUnicode_InternFromString("durable");
    name_timeout = PyUnicode_InternFromString("timeout");
    name_atomic = PyUnicode_InternFromString("atomic");
    PyObject *module = PyModule_Create(&definition);
    if (!module || add_layout(module) != 0 || PyModule_AddType(module, &Mapping_Type) != 0 ||
        PyModule_AddType(module, &Fd_Type) != 0 || PyModule_AddType(module, &Control_Type) != 0 ||
        PyModule_AddType(module, &Writer_Type) != 0 || PyModule_AddType(module, &Reservation_Type) != 0) {
        Py_XDECREF(module);
        return NULL;
    }
#ifdef Py_GIL_DISABLED
    PyUnstable_Module_SetGIL(module, Py_MOD_GIL_NOT_USED);
#endif
#define REASON(name) PyModule_AddIntConstant(module, #name, name)
    if (REASON(SLOW_ROOM) || REASON(SLOW_MAP) || REASON(SLOW_STALE) || REASON(SLOW_CLAIMS) || REASON(SLOW_BELL) ||
        REASON(SLOW_DURABLE) || REASON(SLOW_LARGE) || REASON(SLOW_FAULT) || REASON(SLOW_SYNC_BELL) || REASON(WAIT_REACHED) ||
        REASON(WAIT_TIMEOUT) || REASON(WAIT_RING) || REASON(WAIT_FAILED)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}

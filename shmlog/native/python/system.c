/* System: calls of the operating system that Python has not.
 *
 * This file knows system calls.  It may not know a log.
 */
#include "glue.h"

#include "../core/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#ifdef __linux__
#include <linux/falloc.h>
#endif

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

static PyObject *py_born_ns(PyObject *module, PyObject *args) {
    (void)module;
    int fd;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
#ifdef STATX_BTIME
    struct statx found;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &found) == 0) {
        if (found.stx_mask & STATX_BTIME)
            return PyLong_FromUnsignedLongLong((uint64_t)found.stx_btime.tv_sec * 1000000000u +
                                               found.stx_btime.tv_nsec);
    } else if (errno != ENOSYS && errno != EPERM) /* EPERM: a container's filter of system calls */
        return PyErr_SetFromErrno(PyExc_OSError);
#endif
    return PyLong_FromLong(0);
}

/* Not fstat, which asks for the times too: a kernel that keeps fine-grained times only for those who
 * look at them (Linux 6.13) then gives the next change a time of its own, and has the inode to write. */
static PyObject *py_has_name(PyObject *module, PyObject *args) {
    (void)module;
    int fd;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
#ifdef STATX_NLINK
    struct statx found;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_NLINK, &found) == 0)
        return PyBool_FromLong(found.stx_nlink != 0);
    if (errno != ENOSYS && errno != EPERM) /* EPERM: a container's filter of system calls */
        return PyErr_SetFromErrno(PyExc_OSError);
#endif
    struct stat about;
    if (fstat(fd, &about) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyBool_FromLong(about.st_nlink != 0);
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

static PyMethodDef system_functions[] = {
    {"lock_byte", py_lock_byte, METH_VARARGS,
     "lock_byte(fd, byte)\n--\n\nTry to lock; whether it worked. Does not block."},
    {"unlock_byte", py_unlock_byte, METH_VARARGS, "unlock_byte(fd, byte)\n--\n\nGive a lock back."},
    {"byte_locked", py_byte_locked, METH_VARARGS,
     "byte_locked(fd, byte, count=1)\n--\n\n"
     "Whether another open file description holds a lock on any of the bytes."},
    {"punch_hole", py_punch_hole, METH_VARARGS,
     "punch_hole(fd, offset, bytes)\n--\n\n"
     "Give a range's blocks back, leaving zeros; False where the file system cannot."},
    {"born_ns", py_born_ns, METH_VARARGS,
     "born_ns(fd)\n--\n\nWhen an inode was made, ns since 1970; 0 where the file system does not tell."},
    {"has_name", py_has_name, METH_VARARGS,
     "has_name(fd)\n--\n\nWhether an open file still has a name, not looking at its times."},
    {"spawn_detached", py_spawn_detached, METH_VARARGS,
     "spawn_detached(arguments, environment)\n--\n\n"
     "Start a program that is nobody's child, from tuples of bytes."},
    {"fork_generation", py_fork_generation, METH_NOARGS,
     "fork_generation()\n--\n\nChanges in every forked child."},
    {NULL, NULL, 0, NULL}};

int system_exec(PyObject *module) { return PyModule_AddFunctions(module, system_functions); }

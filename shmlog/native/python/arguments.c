/* Arguments: what the append paths were called with, checked before anything is reserved.
 *
 * This file knows Python's numbers and buffers.  It may not know what becomes of them.
 */
#include "glue.h"

#include <math.h>

#define TIMEOUT_S_MAX 1e9 /* longer than anybody waits; a deadline stays a finite number */

static int has_number(PyTypeObject *type) {
    PyNumberMethods *number = type->tp_as_number;
    return type != &PyBool_Type && number && (number->nb_float || number->nb_index);
}

/* What a number that does not fit a double is as one: infinity with its sign. */
static double overflowed(PyObject *number) {
    PyErr_Clear();
    PyObject *zero = PyLong_FromLong(0);
    int positive = zero ? PyObject_RichCompareBool(number, zero, Py_GT) : -1;
    Py_XDECREF(zero);
    if (positive < 0)
        return -1.0;
    return positive ? HUGE_VAL : -HUGE_VAL;
}

double check_timeout(PyObject *seconds, PyObject *name) {
    if (!has_number(Py_TYPE(seconds))) {
        PyObject *kind = PyType_GetName(Py_TYPE(seconds));
        if (kind)
            PyErr_Format(PyExc_TypeError, "%U must be a number of seconds, not %U", name, kind);
        Py_XDECREF(kind);
        return -1.0;
    }
    double value = PyFloat_AsDouble(seconds);
    if (value == -1.0 && PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            return -1.0;
        value = overflowed(seconds);
        if (PyErr_Occurred())
            return -1.0;
    }
    if (!(value >= 0)) {
        PyErr_Format(PyExc_ValueError, "%U must not be negative: %S", name, seconds);
        return -1.0;
    }
    return value < TIMEOUT_S_MAX ? value : TIMEOUT_S_MAX;
}

static PyObject *py_check_timeout(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"seconds", "name", NULL};
    PyObject *seconds, *name = state_of(module)->name_timeout;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|U", names, &seconds, &name))
        return NULL;
    double value = check_timeout(seconds, name);
    return value < 0 ? NULL : PyFloat_FromDouble(value);
}

static int parse_tag(PyObject *tag, uint32_t *out) {
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
    *out = (uint32_t)value;
    return 0;
}

/* One keyword but `tag`: 1 if it is known, 0 if not, -1 with an exception. */
static int parse_keyword(const state_t *state, PyObject *name, PyObject *value, int takes, options_t *o) {
    if (takes & TAKES_DURABLE && PyUnicode_Compare(name, state->name_durable) == 0)
        return (o->durable = PyObject_IsTrue(value)) < 0 ? -1 : 1;
    if (takes & TAKES_ATOMIC && PyUnicode_Compare(name, state->name_atomic) == 0)
        return (o->atomic = PyObject_IsTrue(value)) < 0 ? -1 : 1;
    if (PyUnicode_Compare(name, state->name_timeout) != 0)
        return 0;
    o->timeout = value == Py_None ? NULL : value;
    return o->timeout && check_timeout(value, name) < 0 ? -1 : 1;
}

int parse_options(const state_t *state, const char *function, PyObject *const *args, Py_ssize_t count,
                  PyObject *names, int takes, options_t *o) {
    *o = (options_t){0};
    if (count < 1 || count > 2) {
        PyErr_Format(PyExc_TypeError,
                     "%s() takes what to append and, optionally, a tag; %zd positional arguments given",
                     function, count);
        return -1;
    }
    PyObject *tag = count == 2 ? args[1] : NULL;
    Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i), *value = args[count + i];
        if (PyUnicode_Compare(name, state->name_tag) == 0) {
            if (tag) {
                PyErr_Format(PyExc_TypeError, "%s() got two tags", function);
                return -1;
            }
            tag = value;
            continue;
        }
        int known = parse_keyword(state, name, value, takes, o);
        if (known == 0)
            PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", function, name);
        if (known <= 0)
            return -1;
    }
    return tag ? parse_tag(tag, &o->tag) : 0;
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

/* Get the buffer of `object`; whether its items may be Python objects.  -1 with an exception. */
static int get_buffer(PyObject *object, Py_buffer *view) {
    if (PyObject_GetBuffer(object, view, PyBUF_ND | PyBUF_FORMAT) == 0)
        return view->format && strchr(view->format, 'O') ? has_objects(object, view->format) : 0;
    view->obj = NULL;
    if (PyErr_ExceptionMatches(PyExc_BufferError) || PyErr_ExceptionMatches(PyExc_ValueError)) {
        PyErr_Clear(); /* not every type has a format (NumPy's datetime64) */
        int objects = has_objects(object, NULL);
        return !objects && PyObject_GetBuffer(object, view, PyBUF_SIMPLE) != 0 ? -1 : objects;
    }
    if (!PyObject_CheckBuffer(object))
        PyErr_Format(PyExc_TypeError, "a record is bytes or another contiguous buffer, not %s",
                     Py_TYPE(object)->tp_name);
    return -1;
}

int view_buffer(PyObject *object, Py_buffer *view, piece_t *piece) {
    view->obj = NULL;
    piece->summed = 0;
    if (PyUnicode_Check(object)) {
        PyErr_SetString(PyExc_TypeError,
                        "a record is bytes or another contiguous buffer, not str: encode it first");
        return -1;
    }
    int objects = get_buffer(object, view);
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

static PyMethodDef arguments_functions[] = {
    {"check_timeout", (PyCFunction)(void (*)(void))py_check_timeout, METH_VARARGS | METH_KEYWORDS,
     "check_timeout($module, seconds, name='timeout')\n--\n\n"
     "A time in seconds as waits take it, at most 1e9; or TypeError / ValueError."},
    {NULL, NULL, 0, NULL}};

int arguments_exec(PyObject *module) { return PyModule_AddFunctions(module, arguments_functions); }

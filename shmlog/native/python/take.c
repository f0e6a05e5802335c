/* Take: records by their LSNs, out of mappings that Python has found.
 *
 * This file knows Python's arrays.  It may not know which records may be read.
 */
#include "glue.h"

#include "../core/take.h"

/* What is taken from, and the LSNs. */
typedef struct {
    Py_buffer numbers, lsns;
    take_source_t from;
    map_t **maps;
    uint64_t count;
} taking_t;

static void taking_close(taking_t *t) {
    free(t->maps);
    PyBuffer_Release(&t->numbers);
    PyBuffer_Release(&t->lsns);
}

/* Parse ((numbers, mappings, segment_bytes, end_lsn, seed), lsns); the tuple keeps the maps. */
static int taking_open(state_t *state, PyObject *source, PyObject *lsns, taking_t *t) {
    PyObject *mappings;
    unsigned long long segment_bytes, end_lsn;
    *t = (taking_t){.maps = NULL};
    if (!PyArg_ParseTuple(source, "y*O!KKI", &t->numbers, &PyTuple_Type, &mappings, &segment_bytes, &end_lsn,
                          &t->from.seed))
        return -1;
    size_t count = (size_t)PyTuple_GET_SIZE(mappings);
    int failed = PyObject_GetBuffer(lsns, &t->lsns, PyBUF_SIMPLE) != 0;
    if (!failed && (!segment_bytes || end_lsn > NO_LSN - segment_bytes ||
                    (size_t)t->numbers.len != count * sizeof(uint64_t))) {
        PyErr_SetString(PyExc_ValueError, "a number for each mapping, and LSNs that are some");
        failed = 1;
    }
    t->maps = failed ? NULL : malloc(count * sizeof *t->maps + 1);
    if (!failed && !t->maps) {
        PyErr_NoMemory();
        failed = 1;
    }
    for (size_t i = 0; i < count && !failed; i++) {
        MappingObject *mapping = (MappingObject *)PyTuple_GET_ITEM(mappings, (Py_ssize_t)i);
        failed = !Py_IS_TYPE(mapping, state->mapping_type) ||
                 mapping->bytes < SEGMENT_HEADER_BYTES + segment_bytes;
        if (failed)
            PyErr_SetString(PyExc_ValueError, "a mapping is no whole segment");
        else
            t->maps[i] = mapping->map;
    }
    if (failed) {
        taking_close(t);
        return -1;
    }
    t->from.numbers = t->numbers.buf;
    t->from.maps = t->maps;
    t->from.count = count;
    t->from.segment_bytes = segment_bytes;
    t->from.end_lsn = end_lsn;
    t->count = (uint64_t)t->lsns.len / sizeof(uint64_t);
    return 0;
}

static PyObject *py_take_rows(PyObject *module, PyObject *args) {
    PyObject *source, *lsns, *result = NULL;
    Py_ssize_t row_bytes;
    Py_buffer rows;
    if (!PyArg_ParseTuple(args, "O!Onw*", &PyTuple_Type, &source, &lsns, &row_bytes, &rows))
        return NULL;
    taking_t t;
    if (taking_open(state_of(module), source, lsns, &t) == 0) {
        if (row_bytes < 0 || (row_bytes && (uint64_t)(rows.len / row_bytes) < t.count)) {
            PyErr_Format(PyExc_ValueError, "%zd bytes are no room for %llu rows of %zd", rows.len,
                         (unsigned long long)t.count, row_bytes);
        } else {
            uint64_t taken;
            int problem;
            Py_BEGIN_ALLOW_THREADS
            problem = take_rows(&t.from, t.lsns.buf, t.count, (uint64_t)row_bytes, rows.buf, &taken);
            Py_END_ALLOW_THREADS
            result = Py_BuildValue("Ki", (unsigned long long)taken, problem);
        }
        taking_close(&t);
    }
    PyBuffer_Release(&rows);
    return result;
}

/* Where each payload goes, a granule's beginning; the bytes in all. */
static uint64_t place_payloads(const frame_t *headers, uint64_t count, const columns_t *to, uint64_t *at) {
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < count; i++) {
        to->lsn[i] = headers[i].lsn;
        to->time_ns[i] = headers[i].time_ns;
        to->tag[i] = headers[i].tag;
        to->writer[i] = headers[i].writer;
        to->payload_bytes[i] = headers[i].payload_bytes;
        at[i] = bytes;
        bytes += frame_bytes(headers[i].payload_bytes) - FRAME_HEADER_BYTES;
    }
    return bytes;
}

/* Without the GIL: find, place, copy and check; *out is the memory of the payloads, or NULL. */
static int take_records(const taking_t *t, const columns_t *to, uint64_t *at, map_t **out, uint64_t *taken) {
    *out = NULL;
    *taken = 0;
    frame_t *headers = malloc((size_t)(t->count + 1) * sizeof *headers);
    if (!headers)
        return 0;
    int problem = take_headers(&t->from, t->lsns.buf, t->count, headers, taken);
    if (!problem && map_memory((size_t)place_payloads(headers, t->count, to, at), out) == 0)
        for (*taken = 0; *taken < t->count && !problem; *taken += !problem)
            problem = take_payload(&t->from, &headers[*taken], (*out)->base + at[*taken]);
    free(headers);
    return problem;
}

static PyObject *py_take_records(PyObject *module, PyObject *args) {
    PyObject *source, *lsns, *into, *result = NULL;
    Py_buffer at;
    if (!PyArg_ParseTuple(args, "O!OOw*", &PyTuple_Type, &source, &lsns, &into, &at))
        return NULL;
    taking_t t;
    columns_view_t columns = {.held = 0};
    if (taking_open(state_of(module), source, lsns, &t) == 0) {
        if (into == Py_None || columns_open(into, &columns) != 0 || columns.to.capacity < t.count ||
            (uint64_t)at.len / sizeof(uint64_t) < t.count) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_ValueError, "the columns are shorter than the LSNs");
        } else {
            map_t *memory;
            uint64_t taken;
            int problem;
            Py_BEGIN_ALLOW_THREADS
            problem = take_records(&t, &columns.to, at.buf, &memory, &taken);
            Py_END_ALLOW_THREADS
            PyObject *mapping = memory ? mapping_of(state_of(module)->mapping_type, memory) : NULL;
            if (mapping || problem)
                result = Py_BuildValue("NKi", mapping ? mapping : Py_NewRef(Py_None),
                                       (unsigned long long)taken, problem);
            else if (!PyErr_Occurred())
                PyErr_NoMemory();
        }
        taking_close(&t);
    }
    columns_close(&columns);
    PyBuffer_Release(&at);
    return result;
}

/* Frames that came from elsewhere: copied first, so that nobody changes them after the check, and
 * aligned as in a segment. */
static PyObject *py_take_frames(PyObject *module, PyObject *args) {
    Py_buffer frames, at;
    unsigned long long begin, end;
    unsigned int seed;
    PyObject *into, *result = NULL;
    if (!PyArg_ParseTuple(args, "y*KKIOw*", &frames, &begin, &end, &seed, &into, &at))
        return NULL;
    columns_view_t columns = {.held = 0};
    map_t *memory = NULL;
    if (into == Py_None || columns_open(into, &columns) != 0 ||
        columns.to.capacity > (uint64_t)at.len / sizeof(uint64_t) || end > NO_LSN - (GRANULE_BYTES - 1)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "columns without places, or an end that is no LSN");
    } else if (map_memory((size_t)frames.len, &memory) != 0) {
        PyErr_NoMemory();
    } else {
        walk_t w;
        Py_BEGIN_ALLOW_THREADS
        memcpy(memory->base, frames.buf, (size_t)frames.len);
        w = frame_index(memory->base, (uint64_t)frames.len, begin, end, seed, &columns.to, at.buf);
        Py_END_ALLOW_THREADS
        PyObject *mapping = mapping_of(state_of(module)->mapping_type, memory);
        if (mapping)
            result = Py_BuildValue("NKKi", mapping, (unsigned long long)w.count,
                                   (unsigned long long)w.next_lsn, (int)w.problem);
    }
    columns_close(&columns);
    PyBuffer_Release(&frames);
    PyBuffer_Release(&at);
    return result;
}

static PyMethodDef take_functions[] = {
    {"take_rows", py_take_rows, METH_VARARGS,
     "take_rows(source, lsns, row_bytes, rows)\n--\n\n"
     "Copy records of one size into rows, checked: (how many, problem).  source: (segment numbers, their\n"
     "mappings, segment_bytes, end_lsn, seed)."},
    {"take_records", py_take_records, METH_VARARGS,
     "take_records(source, lsns, columns, places)\n--\n\n"
     "Copy records of any size, checked: (a Mapping of the payloads or None, how many, problem)."},
    {"take_frames", py_take_frames, METH_VARARGS,
     "take_frames(frames, begin_lsn, end_lsn, seed, columns, places)\n--\n\n"
     "Copy DATA frames that ascend in [begin_lsn, end_lsn), as many as the columns hold, checked: (a Mapping\n"
     "of them, how many, next_lsn, problem)."},
    {NULL, NULL, 0, NULL}};

int take_exec(PyObject *module) {
    return PyModule_AddIntConstant(module, "TAKE_NO_RECORD", TAKE_NO_RECORD) != 0 ||
                   PyModule_AddIntConstant(module, "TAKE_OTHER_SIZE", TAKE_OTHER_SIZE) != 0 ||
                   PyModule_AddIntConstant(module, "TAKE_NO_SEGMENT", TAKE_NO_SEGMENT) != 0
               ? -1
               : PyModule_AddFunctions(module, take_functions);
}

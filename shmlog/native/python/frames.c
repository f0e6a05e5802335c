/* Frames: checksums and frames, to and from Python's objects.
 *
 * This file knows bytes between given LSNs.  It may not know which of them are a log's.
 */
#include "glue.h"

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

/* Not up to the last LSN there is: a step of a granule from below `end` would begin again at 0. */
int walk_bounds(Py_ssize_t bytes, uint64_t base_lsn, uint64_t begin, uint64_t end) {
    if (base_lsn <= begin && begin <= end && end - base_lsn <= (uint64_t)bytes &&
        end <= NO_LSN - (GRANULE_BYTES - 1) && begin % GRANULE_BYTES == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "[%llu, %llu) is not inside %zd bytes from %llu",
                 (unsigned long long)begin, (unsigned long long)end, bytes, (unsigned long long)base_lsn);
    return -1;
}

static int parse_tag_range(PyObject *range, tags_t *tags) {
    tags->kind = TAGS_RANGE;
    if (!PyArg_ParseTuple(range, "III", &tags->low, &tags->high, &tags->step))
        return -1;
    if (tags->step)
        return 0;
    PyErr_SetString(PyExc_ValueError, "a range of tags with step 0");
    return -1;
}

int parse_tags(PyObject *argument, tags_t *tags) {
    *tags = (tags_t){.kind = TAGS_ALL};
    if (!argument || argument == Py_None)
        return 0;
    if (PyTuple_Check(argument))
        return parse_tag_range(argument, tags);
    if (PyBytes_Check(argument)) {
        tags->kind = TAGS_SET;
        tags->set = (const uint32_t *)(const void *)PyBytes_AS_STRING(argument);
        tags->set_count = (size_t)PyBytes_GET_SIZE(argument) / sizeof(uint32_t);
        return 0;
    }
    long long tag = PyLong_AsLongLong(argument);
    if (tag == -1 && PyErr_Occurred())
        return -1;
    if (tag >= 0)
        *tags = (tags_t){.kind = TAGS_RANGE, .low = (uint32_t)tag, .high = (uint32_t)tag, .step = 1};
    return 0;
}

void columns_close(columns_view_t *columns) {
    while (columns->held)
        PyBuffer_Release(&columns->views[--columns->held]);
}

int columns_open(PyObject *into, columns_view_t *columns) {
    static const Py_ssize_t item_bytes[COLUMN_COUNT] = {8, 8, 4, 2, 4};
    Py_buffer *views = columns->views;
    columns->to = (columns_t){.capacity = UINT64_MAX};
    if (into == Py_None)
        return 0;
    if (!PyTuple_Check(into) || PyTuple_GET_SIZE(into) != COLUMN_COUNT) {
        PyErr_SetString(PyExc_TypeError, "columns are (lsn, time_ns, tag, writer, nbytes) or None");
        return -1;
    }
    for (int i = 0; i < COLUMN_COUNT; i++) {
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(into, i), &views[i], PyBUF_WRITABLE) != 0)
            return -1;
        columns->held++;
        uint64_t room = (uint64_t)(views[i].len / item_bytes[i]);
        if (room < columns->to.capacity)
            columns->to.capacity = room;
    }
    columns->to.lsn = views[0].buf;
    columns->to.time_ns = views[1].buf;
    columns->to.tag = views[2].buf;
    columns->to.writer = views[3].buf;
    columns->to.payload_bytes = views[4].buf;
    return 0;
}

static PyObject *py_walk(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer view;
    unsigned long long base_lsn, begin_lsn, end_lsn, stop_lsn = UINT64_MAX;
    unsigned int seed;
    int verify, stop_at_gap;
    PyObject *wanted, *into, *result = NULL;
    if (!PyArg_ParseTuple(args, "y*KKKIpOpO|K", &view, &base_lsn, &begin_lsn, &end_lsn, &seed, &verify,
                          &wanted, &stop_at_gap, &into, &stop_lsn))
        return NULL;
    if (stop_lsn > end_lsn)
        stop_lsn = end_lsn;
    tags_t tags;
    columns_view_t columns = {.held = 0};
    if (walk_bounds(view.len, base_lsn, begin_lsn, end_lsn) == 0 && parse_tags(wanted, &tags) == 0 &&
        columns_open(into, &columns) == 0) {
        walk_t w;
        Py_BEGIN_ALLOW_THREADS
        w = frame_walk(view.buf, base_lsn, begin_lsn, stop_lsn, end_lsn, seed, verify, &tags, stop_at_gap,
                       &columns.to);
        Py_END_ALLOW_THREADS
        result = Py_BuildValue("KKKi", (unsigned long long)w.count, (unsigned long long)w.next_lsn,
                               (unsigned long long)w.whole_lsn, (int)w.problem);
    }
    columns_close(&columns);
    PyBuffer_Release(&view);
    return result;
}

/* What records() was asked for, and how far it is. */
typedef struct {
    MappingObject *mapping;
    PyTypeObject *type;
    unsigned long long base_lsn, lsn, stop_lsn, end_lsn;
    unsigned int seed;
    int verify;
    Py_ssize_t most;
    tags_t tags;
    enum frame_problem problem;
} records_t;

/* So many frames are looked at for each record that is wanted before the GIL may go round. */
enum { LOOKED_AT = 64 };

/* Check the frame at `at`, without the GIL if that takes long. */
static enum frame_problem records_check(const records_t *r, const uint8_t *at, frame_t *f) {
    enum frame_problem problem = frame_header_check(at, r->lsn, r->end_lsn - r->lsn, f);
    if (problem != FRAME_VALID || !r->verify)
        return problem;
    PyThreadState *released = f->payload_bytes >= RELEASE_GIL_BYTES ? PyEval_SaveThread() : NULL;
    problem = frame_sum_check(at, f, r->seed);
    if (released)
        PyEval_RestoreThread(released);
    return problem;
}

/* Append to `records` until one of the bounds or a problem; -1 with an exception. */
static int records_make(records_t *r, PyObject *memory, PyObject *records) {
    Py_ssize_t looked = 0;
    while (r->lsn < r->stop_lsn && r->lsn < r->end_lsn && PyList_GET_SIZE(records) < r->most &&
           looked++ / LOOKED_AT < r->most) {
        frame_t f;
        uint64_t offset = SEGMENT_HEADER_BYTES + (r->lsn - r->base_lsn);
        r->problem = records_check(r, r->mapping->base + offset, &f);
        if (r->problem != FRAME_VALID)
            return 0;
        if (f.kind == KIND_DATA && tags_have(&r->tags, f.tag)) {
            PyObject *record = record_of(r->type, &f, memory, offset + FRAME_HEADER_BYTES);
            int failed = !record || PyList_Append(records, record) != 0;
            Py_XDECREF(record);
            if (failed)
                return -1;
        }
        r->lsn += frame_bytes(f.payload_bytes);
    }
    return 0;
}

/* The segment's first frame, at base_lsn, follows its header in the mapping. */
static PyObject *py_records(PyObject *module, PyObject *args) {
    records_t r = {.problem = FRAME_VALID, .type = state_of(module)->record_type};
    PyObject *wanted = NULL;
    if (!PyArg_ParseTuple(args, "O!KKKKIpn|O", state_of(module)->mapping_type, &r.mapping, &r.base_lsn,
                          &r.lsn, &r.stop_lsn, &r.end_lsn, &r.seed, &r.verify, &r.most, &wanted) ||
        parse_tags(wanted, &r.tags) != 0)
        return NULL;
    Py_ssize_t frames = (Py_ssize_t)r.mapping->bytes - SEGMENT_HEADER_BYTES;
    if (frames < 0)
        return PyErr_Format(PyExc_ValueError, "the mapping is too small for a segment");
    if (walk_bounds(frames, r.base_lsn, r.lsn, r.end_lsn) != 0)
        return NULL;
    PyObject *memory = PyMemoryView_FromObject((PyObject *)r.mapping), *records = PyList_New(0);
    int failed = !memory || !records || records_make(&r, memory, records) != 0;
    Py_XDECREF(memory);
    if (!failed)
        return Py_BuildValue("NKi", records, r.lsn, (int)r.problem);
    Py_XDECREF(records);
    return NULL;
}

static PyObject *py_find_frame(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer view;
    unsigned long long base_lsn, begin_lsn, end_lsn;
    unsigned int seed;
    if (!PyArg_ParseTuple(args, "y*KKKI", &view, &base_lsn, &begin_lsn, &end_lsn, &seed))
        return NULL;
    uint64_t found = NO_LSN;
    int bad = walk_bounds(view.len, base_lsn, begin_lsn, end_lsn);
    if (!bad) {
        Py_BEGIN_ALLOW_THREADS
        found = frame_find(view.buf, base_lsn, begin_lsn, end_lsn, seed);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&view);
    if (bad)
        return NULL;
    if (found == NO_LSN)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(found);
}

static PyObject *py_reseal(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer view;
    unsigned long long base_lsn, begin_lsn, end_lsn;
    unsigned int seed, new_seed;
    if (!PyArg_ParseTuple(args, "w*KKKII", &view, &base_lsn, &begin_lsn, &end_lsn, &seed, &new_seed))
        return NULL;
    walk_t w = {.problem = FRAME_VALID};
    int bad = walk_bounds(view.len, base_lsn, begin_lsn, end_lsn);
    if (!bad) {
        Py_BEGIN_ALLOW_THREADS
        w = frame_reseal(view.buf, base_lsn, begin_lsn, end_lsn, seed, new_seed);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&view);
    if (bad)
        return NULL;
    return Py_BuildValue("KKi", (unsigned long long)w.count, (unsigned long long)w.next_lsn, (int)w.problem);
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

static PyMethodDef frames_functions[] = {
    {"crc32c", py_crc32c, METH_VARARGS,
     "crc32c(data, seed=0)\n--\n\nCRC-32C by the fastest path of this machine."},
    {"crc32c_table", py_crc32c_table, METH_VARARGS,
     "crc32c_table(data, seed=0)\n--\n\nCRC-32C by the portable path."},
    {"records", py_records, METH_VARARGS,
     "records(mapping, base_lsn, begin_lsn, stop_lsn, end_lsn, seed, verify, most, tags=None)\n--\n\n"
     "The DATA frames of a mapped segment that begin in [begin_lsn, stop_lsn) and end by end_lsn, at most\n"
     "so many: ([Record], next_lsn, problem)."},
    {"walk", py_walk, METH_VARARGS,
     "walk(buffer, base_lsn, begin_lsn, end_lsn, seed, verify, tags, stop_at_gap, columns, stop_lsn=end_lsn)"
     "\n--\n\nIndex the DATA frames of a range: (count, next_lsn, whole_lsn, problem)."},
    {"find_frame", py_find_frame, METH_VARARGS,
     "find_frame(buffer, base_lsn, begin_lsn, end_lsn, seed)\n--\n\n"
     "The LSN of the next frame that is valid, or would be but for reaching past end_lsn; or None."},
    {"reseal", py_reseal, METH_VARARGS,
     "reseal(buffer, base_lsn, begin_lsn, end_lsn, seed, new_seed)\n--\n\n"
     "Check the frames of a range and seal them for another log: (count, next_lsn, problem)."},
    {"filler", py_filler, METH_VARARGS,
     "filler(kind, lsn, bytes, time_ns, writer, seed)\n--\n\nThe header of a PAD or FILL frame."},
    {NULL, NULL, 0, NULL}};

int frames_exec(PyObject *module) { return PyModule_AddFunctions(module, frames_functions); }

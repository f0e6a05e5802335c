/* Stream: batches and scans as capsules of the Arrow PyCapsule interface.
 *
 * A capsule that nobody consumed releases what it holds; one that was consumed holds
 * nothing any more, for its consumer has taken the structure out of it.
 *
 * This file knows capsules.  It may not know where records are.
 */
#include "glue.h"

#include "../core/scan.h"

static const char schema_name[] = "arrow_schema", array_name[] = "arrow_array",
                  stream_name[] = "arrow_array_stream";

#define DESTRUCTOR(function, type, capsule_name)                                                        \
    static void function(PyObject *capsule) {                                                           \
        struct type *held = PyCapsule_GetPointer(capsule, capsule_name);                                \
        if (held && held->release)                                                                      \
            held->release(held);                                                                        \
        free(held);                                                                                     \
    }
DESTRUCTOR(schema_destroy, ArrowSchema, schema_name)
DESTRUCTOR(array_destroy, ArrowArray, array_name)
DESTRUCTOR(stream_destroy, ArrowArrayStream, stream_name)
#undef DESTRUCTOR

/* A capsule of a structure that is not made yet: there is nothing to release if making it fails. */
static PyObject *capsule_new(const char *name, size_t bytes, PyCapsule_Destructor destroy) {
    void *empty = calloc(1, bytes);
    PyObject *capsule = empty ? PyCapsule_New(empty, name, destroy) : PyErr_NoMemory();
    if (!capsule)
        free(empty);
    return capsule;
}

/* ------------------------------------------------------------------ forms */

static char *copy_text(const char *text) {
    char *copy = strdup(text);
    if (!copy)
        PyErr_NoMemory();
    return copy;
}

static int parse_node(PyObject *described, node_t *n) {
    const char *name, *format;
    Py_ssize_t children, offset, item_bytes, items;
    int kind;
    if (!PyTuple_Check(described)) {
        PyErr_SetString(PyExc_TypeError, "a column is described by a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(described, "ssninnn", &name, &format, &children, &kind, &offset, &item_bytes, &items))
        return -1;
    if (children < 0 || offset < 0 || item_bytes < 0 || items < 0 || kind < 0) {
        PyErr_Format(PyExc_ValueError, "the column %s has a negative number", name);
        return -1;
    }
    n->child_count = (size_t)children;
    n->kind = (enum node_kind)kind;
    n->offset = (size_t)offset;
    n->item_bytes = (size_t)item_bytes;
    n->items = (size_t)items;
    return (n->name = copy_text(name)) && (n->format = copy_text(format)) ? 0 : -1;
}

/* The form of a tuple of columns (name, format, children, kind, offset, item_bytes, items), for
 * payloads of so many bytes, or any if negative; NULL with an exception. */
static form_t *parse_form(PyObject *columns, long long payload_bytes) {
    Py_ssize_t count = PyTuple_GET_SIZE(columns);
    form_t *form = form_new((size_t)count);
    if (!form)
        return (form_t *)PyErr_NoMemory();
    form->payload_bytes = payload_bytes < 0 ? ANY_BYTES : (uint64_t)payload_bytes;
    int failed = 0;
    for (Py_ssize_t i = 0; i < count && !failed; i++)
        failed = parse_node(PyTuple_GET_ITEM(columns, i), &form->nodes[i]) != 0;
    if (!failed && !form_check(form)) {
        PyErr_SetString(PyExc_ValueError, "the columns are no tree, or reach beyond the payload");
        failed = 1;
    }
    if (!failed)
        return form;
    form_drop(form);
    return NULL;
}

/* A requested schema may be left aside (the consumer looks at what it gets), but not one that
 * cannot be of this data: another number of columns. */
static int check_request(PyObject *requested, const form_t *form) {
    if (requested == Py_None)
        return 0;
    if (!PyCapsule_IsValid(requested, schema_name)) {
        PyErr_SetString(PyExc_TypeError, "requested_schema must be a capsule named arrow_schema, or None");
        return -1;
    }
    struct ArrowSchema *schema = PyCapsule_GetPointer(requested, schema_name);
    if (!schema->release || strcmp(schema->format, "+s") != 0 ||
        schema->n_children != (int64_t)form->nodes[0].child_count) {
        PyErr_Format(PyExc_ValueError, "the requested schema is not one of %zu columns",
                     form->nodes[0].child_count);
        return -1;
    }
    return 0;
}

/* ------------------------------------------------------------------ batch */

/* Copies of where payloads are and of their sizes, which nobody can change any more once they are
 * checked: each lies in the map, where a view's offset (an int32) can reach it.  NULL with an
 * exception; else to be freed, the sizes follow the places. */
static uint64_t *checked_places(const map_t *map, const uint32_t *sizes, const uint64_t *places,
                                uint64_t count) {
    uint64_t *at = malloc((size_t)count * (sizeof *at + sizeof *sizes) + 1);
    if (!at)
        return (uint64_t *)PyErr_NoMemory();
    uint32_t *bytes = (uint32_t *)(at + count);
    memcpy(at, places, (size_t)count * sizeof *at);
    memcpy(bytes, sizes, (size_t)count * sizeof *bytes);
    for (uint64_t i = 0; i < count; i++)
        if (at[i] > map->bytes || bytes[i] > map->bytes - at[i] || at[i] + bytes[i] > INT32_MAX) {
            PyErr_Format(PyExc_OverflowError, "the payload at %llu, %lu bytes, is out of an Arrow view's reach",
                         (unsigned long long)at[i], (unsigned long)bytes[i]);
            free(at);
            return NULL;
        }
    return at;
}

static PyObject *export_batch(form_t *form, map_t *map, const columns_t *records, const uint64_t *at,
                              uint64_t count) {
    PyObject *schema = capsule_new(schema_name, sizeof(struct ArrowSchema), schema_destroy);
    PyObject *array = capsule_new(array_name, sizeof(struct ArrowArray), array_destroy);
    batch_t *batch = schema && array ? batch_new(form, map, count) : NULL;
    if (batch) {
        Py_BEGIN_ALLOW_THREADS
        batch_add(batch, records, at, count);
        Py_END_ALLOW_THREADS
        batch_move(batch, PyCapsule_GetPointer(array, array_name));
        if (form_schema(form, PyCapsule_GetPointer(schema, schema_name)) == 0)
            return Py_BuildValue("NN", schema, array);
    }
    Py_XDECREF(schema);
    Py_XDECREF(array);
    return PyErr_Occurred() ? NULL : PyErr_NoMemory();
}

static PyObject *py_arrow_array(PyObject *module, PyObject *args) {
    PyObject *described, *mapping, *into, *requested, *result = NULL;
    Py_buffer at;
    if (!PyArg_ParseTuple(args, "O!O!Oy*O", &PyTuple_Type, &described, state_of(module)->mapping_type,
                          &mapping, &into, &at, &requested))
        return NULL;
    map_t *map = ((MappingObject *)mapping)->map;
    uint64_t count = (uint64_t)at.len / sizeof(uint64_t);
    columns_view_t columns = {.held = 0};
    form_t *form = parse_form(described, -1);
    if (form && check_request(requested, form) == 0 && columns_open(into, &columns) == 0) {
        uint64_t *places = NULL;
        if (into == Py_None || columns.to.capacity < count)
            PyErr_SetString(PyExc_ValueError, "the columns are shorter than the list of places");
        else
            places = checked_places(map, columns.to.payload_bytes, at.buf, count);
        if (places) {
            columns.to.payload_bytes = (uint32_t *)(places + count);
            result = export_batch(form, map, &columns.to, places, count);
        }
        free(places);
    }
    columns_close(&columns);
    if (form)
        form_drop(form);
    PyBuffer_Release(&at);
    return result;
}

/* ----------------------------------------------------------------- stream */

/* Own copies of what the arguments lend: the stream outlives them. */
static int scan_own(scan_t *scan, const char *directory, const char *header, Py_ssize_t header_bytes,
                    const char *holes, Py_ssize_t hole_bytes) {
    if (header_bytes != SCAN_HEADER_BYTES || !scan->segment_bytes || scan->segment_bytes % GRANULE_BYTES ||
        scan->begin % GRANULE_BYTES || scan->segment_bytes > INT32_MAX - SEGMENT_HEADER_BYTES ||
        scan->end > NO_LSN - scan->segment_bytes || scan->copy_at > SEGMENT_HEADER_BYTES - SCAN_HEADER_BYTES) {
        PyErr_SetString(PyExc_ValueError, "these are no segments of a log");
        return -1;
    }
    memcpy(scan->header, header, SCAN_HEADER_BYTES);
    uint32_t *set = NULL;
    if (scan->tags.kind == TAGS_SET) {
        set = malloc(scan->tags.set_count * sizeof *set + 1);
        if (set)
            memcpy(set, scan->tags.set, scan->tags.set_count * sizeof *set);
    }
    int no_set = scan->tags.kind == TAGS_SET && !set;
    scan->tags.set = set;
    scan->hole_count = (size_t)hole_bytes / sizeof *scan->holes;
    scan->holes = malloc((size_t)hole_bytes + 1);
    scan->directory = strdup(directory);
    if (no_set || !scan->holes || !scan->directory) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(scan->holes, holes, scan->hole_count * sizeof *scan->holes);
    return 0;
}

static PyObject *py_arrow_stream(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *described, *wanted, *requested;
    const char *directory, *header, *holes;
    Py_ssize_t header_bytes, hole_bytes;
    unsigned long long copy_at, segment_bytes, begin, stop, end, batch_records, batch_bytes;
    long long payload_bytes;
    unsigned int seed, owner;
    int verify;
    if (!PyArg_ParseTuple(args, "O!Lyy#KKIKKKy#IpOKKO", &PyTuple_Type, &described, &payload_bytes, &directory,
                          &header, &header_bytes, &copy_at, &segment_bytes, &owner, &begin, &stop, &end, &holes,
                          &hole_bytes, &seed, &verify, &wanted, &batch_records, &batch_bytes, &requested))
        return NULL;
    scan_t *scan = calloc(1, sizeof *scan);
    if (!scan)
        return PyErr_NoMemory();
    scan->copy_at = copy_at;
    scan->segment_bytes = segment_bytes;
    scan->owner = (uid_t)owner;
    scan->begin = begin;
    scan->stop = stop;
    scan->end = end;
    scan->seed = seed;
    scan->verify = verify;
    scan->batch_records = batch_records ? batch_records : 1;
    scan->batch_bytes = batch_bytes;
    int failed = parse_tags(wanted, &scan->tags) != 0;
    if (failed)
        scan->tags.set = NULL;
    failed = failed || scan_own(scan, directory, header, header_bytes, holes, hole_bytes) != 0 ||
             !(scan->form = parse_form(described, payload_bytes)) || check_request(requested, scan->form) != 0;
    PyObject *capsule =
        failed ? NULL : capsule_new(stream_name, sizeof(struct ArrowArrayStream), stream_destroy);
    if (capsule)
        scan_stream(scan, PyCapsule_GetPointer(capsule, stream_name));
    else
        scan_free(scan);
    return capsule;
}

/* ----------------------------------------------------------------- module */

static PyMethodDef stream_functions[] = {
    {"arrow_array", py_arrow_array, METH_VARARGS,
     "arrow_array(columns, mapping, records, places, requested_schema)\n--\n\n"
     "Records whose payloads begin at these places of a mapping: capsules of an ArrowSchema, an ArrowArray."},
    {"arrow_stream", py_arrow_stream, METH_VARARGS,
     "arrow_stream(columns, payload_bytes, directory, header, header_copy_at, segment_bytes, owner,\n"
     "             begin_lsn, stop_lsn, end_lsn, holes, seed, verify, tags, batch_records, batch_bytes,\n"
     "             requested_schema)\n--\n\n"
     "The records of a range of segment files: a capsule of an ArrowArrayStream."},
    {NULL, NULL, 0, NULL}};

/* NODE_LSN and so on, what a column is made of. */
int stream_exec(PyObject *module) {
#define SHMLOG_NODE(name, number) PyModule_AddIntConstant(module, #name, number) != 0 ||
    int failed = NODE_KINDS(SHMLOG_NODE) 0;
#undef SHMLOG_NODE
    return failed ? -1 : PyModule_AddFunctions(module, stream_functions);
}

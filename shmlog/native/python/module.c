/* Module: the list of what the native module is made of: types, functions, numbers.
 *
 * Initialization has two phases and may run several times in a process, once for each
 * interpreter or fresh import; what the process has once, the core sets up once.
 *
 * This file knows what there is.  It may not know what any of it does.
 */
#include "glue.h"

#include "../core/wait.h"
#include "../core/watch.h"

#include <errno.h>

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

static PyMethodDef steps_functions[] = {
    {"set_step_hook", set_step_hook, METH_O,
     "set_step_hook(hook)\n--\n\nTest build: called before every shared store."},
    {NULL, NULL, 0, NULL}};

static int steps_exec(PyObject *module) { return PyModule_AddFunctions(module, steps_functions); }
#endif

PyTypeObject *add_type(PyObject *module, PyType_Spec *spec) {
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (type && PyModule_AddType(module, type) != 0)
        Py_CLEAR(type);
    return type;
}

/* What the process has once. */
static int core_exec(PyObject *module) {
    (void)module;
    crc_initialize();
    if ((errno = fork_initialize()) == 0)
        return 0;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

static int names_exec(PyObject *module) {
    state_t *state = state_of(module);
    state->name_slow = PyUnicode_InternFromString("_slow");
    state->name_tag = PyUnicode_InternFromString("tag");
    state->name_durable = PyUnicode_InternFromString("durable");
    state->name_timeout = PyUnicode_InternFromString("timeout");
    state->name_atomic = PyUnicode_InternFromString("atomic");
    return state->name_slow && state->name_tag && state->name_durable && state->name_timeout &&
                   state->name_atomic
               ? 0
               : -1;
}

/* ---------------------------------------------------------------- numbers */

typedef struct {
    const char *table, *name;
    unsigned long long number;
} number_t;

#define OFFSET(table, name, offset) {#table, #name, offset},
static const number_t offsets[] = {CB_LAYOUT(OFFSET) PT_LAYOUT(OFFSET) CL_LAYOUT(OFFSET) FR_LAYOUT(OFFSET)};
#define NUMBER(name) {NULL, #name, name},
static const number_t numbers[] = {LAYOUT_NUMBERS(NUMBER)};
#define REASON(name, number) {NULL, #name, number},
#define PROBLEM(name, number, text) {NULL, #name, number},
static const number_t constants[] = {
    SLOW_REASONS(REASON) NUMBER(WAIT_REACHED) NUMBER(WAIT_TIMEOUT) NUMBER(WAIT_RING) NUMBER(WAIT_FAILED)
    NUMBER(WAIT_SLICE_NS) NUMBER(DURABLE_SPIN_NS) NUMBER(WATCH_COMMITTED) NUMBER(WATCH_DURABLE)
    NUMBER(WATCH_ARMED) NUMBER(WATCH_REACHED) NUMBER(WATCH_RING) NUMBER(WATCH_FOREIGN) FRAME_PROBLEMS(PROBLEM)};
#define TEXT(name, number, text) text,
static const char *const problem_texts[] = {FRAME_PROBLEMS(TEXT)};
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Set dict["TABLE_NAME"], or with `only` and of that table dict["NAME"]. */
static int put_number(PyObject *dict, const number_t *n, const char *only) {
    if (only && strcmp(n->table, only) != 0)
        return 0;
    PyObject *name = n->table && !only ? PyUnicode_FromFormat("%s_%s", n->table, n->name)
                                       : PyUnicode_FromString(n->name);
    PyObject *number = PyLong_FromUnsignedLongLong(n->number);
    int failed = !name || !number || PyDict_SetItem(dict, name, number) != 0;
    Py_XDECREF(name);
    Py_XDECREF(number);
    return failed ? -1 : 0;
}

/* Module.TABLE, a types.SimpleNamespace of the table's offsets. */
static int add_table(PyObject *module, PyObject *namespace, const char *table) {
    PyObject *names = PyDict_New(), *nothing = PyTuple_New(0), *made = NULL;
    int failed = !names || !nothing;
    for (size_t i = 0; i < COUNT(offsets) && !failed; i++)
        failed = put_number(names, &offsets[i], table) != 0;
    if (!failed)
        made = PyObject_Call(namespace, nothing, names);
    failed = !made || PyModule_AddObjectRef(module, table, made) != 0;
    Py_XDECREF(names);
    Py_XDECREF(nothing);
    Py_XDECREF(made);
    return failed ? -1 : 0;
}

static int tables_exec(PyObject *module) {
    PyObject *types = PyImport_ImportModule("types");
    PyObject *namespace = types ? PyObject_GetAttrString(types, "SimpleNamespace") : NULL;
    int failed = !namespace || add_table(module, namespace, "CB") != 0 ||
                 add_table(module, namespace, "PT") != 0 || add_table(module, namespace, "CL") != 0;
    Py_XDECREF(types);
    Py_XDECREF(namespace);
    return failed ? -1 : 0;
}

/* FRAME_TEXTS, what each frame problem is called. */
static int texts_exec(PyObject *module) {
    PyObject *texts = PyTuple_New(COUNT(problem_texts));
    for (size_t i = 0; i < COUNT(problem_texts) && texts; i++) {
        PyObject *text = PyUnicode_FromString(problem_texts[i]);
        if (text)
            PyTuple_SET_ITEM(texts, (Py_ssize_t)i, text);
        else
            Py_CLEAR(texts);
    }
    int failed = !texts || PyModule_AddObjectRef(module, "FRAME_TEXTS", texts) != 0;
    Py_XDECREF(texts);
    return failed ? -1 : 0;
}

/* LAYOUT, every number of layout.h by its name, and the constants. */
static int numbers_exec(PyObject *module) {
    PyObject *layout = PyDict_New();
    int failed = !layout;
    for (size_t i = 0; i < COUNT(offsets) && !failed; i++)
        failed = put_number(layout, &offsets[i], NULL) != 0;
    for (size_t i = 0; i < COUNT(numbers) && !failed; i++)
        failed = put_number(layout, &numbers[i], NULL) != 0;
    failed = failed || PyModule_AddObjectRef(module, "LAYOUT", layout) != 0;
    Py_XDECREF(layout);
    for (size_t i = 0; i < COUNT(constants) && !failed; i++)
        failed = put_number(PyModule_GetDict(module), &constants[i], NULL) != 0;
    return failed ? -1 : texts_exec(module);
}

/* ------------------------------------------------------------- the module */

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    state_t *state = state_of(module);
    Py_VISIT(state->mapping_type);
    Py_VISIT(state->control_type);
    Py_VISIT(state->reservation_type);
    Py_VISIT(state->record_type);
    return 0;
}

/* The names stay until the end: an object that outlives this may yet call _slow. */
static int module_clear(PyObject *module) {
    state_t *state = state_of(module);
    Py_CLEAR(state->mapping_type);
    Py_CLEAR(state->control_type);
    Py_CLEAR(state->reservation_type);
    Py_CLEAR(state->record_type);
    return 0;
}

static void module_free(void *module) {
    state_t *state = state_of(module);
    module_clear(module);
    Py_CLEAR(state->name_slow);
    Py_CLEAR(state->name_tag);
    Py_CLEAR(state->name_durable);
    Py_CLEAR(state->name_timeout);
    Py_CLEAR(state->name_atomic);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, core_exec},
    {Py_mod_exec, names_exec},
    {Py_mod_exec, numbers_exec},
    {Py_mod_exec, tables_exec},
    {Py_mod_exec, arguments_exec},
    {Py_mod_exec, mapping_exec},
    {Py_mod_exec, descriptor_exec},
    {Py_mod_exec, control_exec},
    {Py_mod_exec, writer_exec},
    {Py_mod_exec, reservation_exec},
    {Py_mod_exec, record_exec},
    {Py_mod_exec, frames_exec},
    {Py_mod_exec, stream_exec},
    {Py_mod_exec, take_exec},
    {Py_mod_exec, watch_exec},
    {Py_mod_exec, system_exec},
#ifdef SHMLOG_STEPS /* its hook is one for the process */
    {Py_mod_exec, steps_exec},
#else
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
#endif
    {0, NULL}};

struct PyModuleDef shmlog_native = {PyModuleDef_HEAD_INIT,
                                    .m_name = "shmlog._native",
                                    .m_doc = "The native core.",
                                    .m_size = sizeof(state_t),
                                    .m_slots = slots,
                                    .m_traverse = module_traverse,
                                    .m_clear = module_clear,
                                    .m_free = module_free};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&shmlog_native); }

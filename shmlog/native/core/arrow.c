/* Arrow: making and releasing schemas and arrays (arrow.h says what they are).
 *
 * This file knows columns and where payloads are in a map.  It may not know frames' order,
 * files or bounds.
 */
#include "arrow.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { BUFFERS_MAX = 4, ALIGN_BYTES = 64, INLINE_BYTES = 12, VIEW_BYTES = 16 };
enum { PAGE_BYTES = 4096, EAGER_BYTES = 1 << 20 };

/* ------------------------------------------------------------------ form */

form_t *form_new(size_t count) {
    form_t *form = calloc(1, sizeof *form + count * sizeof *form->nodes);
    if (form) {
        atomic_init(&form->holders, 1);
        form->count = count;
    }
    return form;
}

void form_drop(form_t *form) {
    if (atomic_fetch_sub_explicit(&form->holders, 1, memory_order_acq_rel) != 1)
        return;
    for (size_t i = 0; i < form->count; i++) {
        free(form->nodes[i].name);
        free(form->nodes[i].format);
    }
    free(form);
}

/* One more than the last node of the tree that begins at `at`, or 0 if there are too few. */
static size_t tree_end(const form_t *form, size_t at, unsigned depth) {
    if (at >= form->count || depth > 64)
        return 0;
    size_t end = at + 1;
    for (size_t i = 0; i < form->nodes[at].child_count && end; i++)
        end = tree_end(form, end, depth + 1);
    return end;
}

static int is_view(const node_t *n) { return n->kind == NODE_DATA || n->kind == NODE_BYTES; }

/* What each record takes in the node's values; of bits, in bits. */
static size_t node_bytes(const node_t *n) {
    switch (n->kind) {
    case NODE_STRUCT: case NODE_LIST: return 0;
    case NODE_LSN: case NODE_TIME_NS: return 8;
    case NODE_TAG: case NODE_NBYTES: return 4;
    case NODE_WRITER: return 2;
    case NODE_DATA: case NODE_BYTES: return VIEW_BYTES;
    case NODE_BITS: return n->items;
    default: return n->items * n->item_bytes;
    }
}

int form_check(form_t *form) {
    form->row_bytes = 0;
    if (!form->count || form->nodes[0].kind != NODE_STRUCT || tree_end(form, 0, 0) != form->count)
        return 0;
    for (size_t i = 0; i < form->count; i++) {
        const node_t *n = &form->nodes[i];
        size_t parts = n->kind == NODE_LIST ? 1 : 0;
        if (n->kind > NODE_BYTES || (n->kind != NODE_STRUCT && n->child_count != parts))
            return 0;
        if (n->kind >= NODE_COPY &&
            (n->offset > form->payload_bytes || (n->item_bytes && n->items > UINT32_MAX / n->item_bytes) ||
             n->items * n->item_bytes > form->payload_bytes - n->offset ||
             form->payload_bytes == ANY_BYTES))
            return 0;
        form->row_bytes += node_bytes(n);
    }
    return 1;
}

/* ---------------------------------------------------------------- schema */

typedef struct {
    _Atomic size_t holders;
    form_t *form;
    struct ArrowSchema *schemas, **links;
} schema_block_t;

static void schema_release(struct ArrowSchema *schema) {
    schema_block_t *block = schema->private_data;
    for (int64_t i = 0; i < schema->n_children; i++)
        if (schema->children[i]->release)
            schema->children[i]->release(schema->children[i]);
    schema->release = NULL;
    if (atomic_fetch_sub_explicit(&block->holders, 1, memory_order_acq_rel) != 1)
        return;
    form_drop(block->form);
    free(block);
}

int form_schema(form_t *form, struct ArrowSchema *out) {
    size_t count = form->count;
    schema_block_t *block = malloc(sizeof *block + count * (sizeof *block->schemas + sizeof *block->links));
    if (!block)
        return ENOMEM;
    *block = (schema_block_t){.form = form_hold(form), .schemas = (void *)(block + 1)};
    atomic_init(&block->holders, count);
    block->links = (void *)(block->schemas + count);
    struct ArrowSchema **link = block->links;
    for (size_t i = 0; i < count; i++) {
        const node_t *n = &form->nodes[i];
        block->schemas[i] = (struct ArrowSchema){.format = n->format,
                                                 .name = n->name,
                                                 .flags = n->kind == NODE_INSTANTS ? 2 : 0, /* nullable */
                                                 .n_children = (int64_t)n->child_count,
                                                 .children = n->child_count ? link : NULL,
                                                 .release = schema_release,
                                                 .private_data = block};
        for (size_t child = i + 1, k = 0; k < n->child_count; k++, child = tree_end(form, child, 0))
            *link++ = &block->schemas[child];
    }
    *out = block->schemas[0];
    return 0;
}

/* ----------------------------------------------------------------- batch */

struct batch {
    _Atomic size_t holders; /* arrays that are not released yet (D1) */
    form_t *form;
    map_t *map;
    uint64_t count;
    int64_t map_bytes; /* the one size in the last buffer of every view column */
    struct ArrowArray *arrays, **links;
    const void **buffers; /* BUFFERS_MAX for each array */
};

static size_t aligned(size_t bytes) { return (bytes + ALIGN_BYTES - 1) & ~(size_t)(ALIGN_BYTES - 1); }

static size_t bits_bytes(uint64_t bits) { return (size_t)((bits + 7) / 8); }

static size_t values_bytes(const node_t *n, uint64_t records) {
    size_t each = node_bytes(n);
    return n->kind == NODE_BITS ? bits_bytes(each * records) : each * (size_t)records;
}

static void batch_drop(batch_t *batch) {
    if (atomic_fetch_sub_explicit(&batch->holders, 1, memory_order_acq_rel) != 1)
        return;
    form_drop(batch->form);
    map_drop(batch->map);
    free(batch);
}

static void array_release(struct ArrowArray *array) {
    batch_t *batch = array->private_data;
    for (int64_t i = 0; i < array->n_children; i++)
        if (array->children[i]->release) /* not moved away */
            array->children[i]->release(array->children[i]);
    array->release = NULL;
    batch_drop(batch);
}

/* The array of each node: how many buffers, which children. */
static void lay_out_arrays(batch_t *batch) {
    const form_t *form = batch->form;
    struct ArrowArray **link = batch->links;
    for (size_t i = 0; i < form->count; i++) {
        const node_t *n = &form->nodes[i];
        int nested = n->kind == NODE_STRUCT || n->kind == NODE_LIST;
        batch->arrays[i] = (struct ArrowArray){.n_buffers = nested ? 1 : is_view(n) ? 4 : 2,
                                               .n_children = (int64_t)n->child_count,
                                               .buffers = batch->buffers + i * BUFFERS_MAX,
                                               .children = n->child_count ? link : NULL,
                                               .release = array_release,
                                               .private_data = batch};
        for (size_t child = i + 1, k = 0; k < n->child_count; k++, child = tree_end(form, child, 0))
            *link++ = &batch->arrays[child];
    }
}

/* The pages of a large batch in one call: one by one, their faults cost a twentieth of an export. */
static void populate(void *memory, size_t bytes) {
    uintptr_t begin = ((uintptr_t)memory + PAGE_BYTES - 1) & ~(uintptr_t)(PAGE_BYTES - 1);
    uintptr_t end = ((uintptr_t)memory + bytes) & ~(uintptr_t)(PAGE_BYTES - 1);
#ifdef MADV_POPULATE_WRITE
    if (bytes >= EAGER_BYTES)
        madvise((void *)begin, end - begin, MADV_POPULATE_WRITE); /* if it cannot, they come one by one */
#else
    (void)begin, (void)end;
#endif
}

batch_t *batch_new(form_t *form, map_t *map, uint64_t capacity) {
    size_t count = form->count, head = sizeof(batch_t), values = 0;
    head += count * (sizeof(struct ArrowArray) + (1 + BUFFERS_MAX) * sizeof(void *));
    for (size_t i = 0; i < count; i++) {
        const node_t *n = &form->nodes[i];
        values += aligned(values_bytes(n, capacity));
        if (n->kind == NODE_INSTANTS)
            values += aligned(bits_bytes(n->items * capacity));
    }
    batch_t *batch = aligned_alloc(ALIGN_BYTES, aligned(head) + values);
    if (!batch)
        return NULL;
    populate(batch, aligned(head) + values);
    memset(batch, 0, head);
    atomic_init(&batch->holders, count);
    batch->form = form_hold(form);
    batch->map = map_hold(map);
    batch->map_bytes = (int64_t)map->bytes;
    batch->arrays = (void *)(batch + 1);
    batch->links = (void *)(batch->arrays + count);
    batch->buffers = (void *)(batch->links + count);
    lay_out_arrays(batch);
    uint8_t *at = (uint8_t *)batch + aligned(head);
    for (size_t i = 0; i < count; i++) {
        const node_t *n = &form->nodes[i];
        const void **buffers = batch->arrays[i].buffers;
        if (n->kind == NODE_STRUCT || n->kind == NODE_LIST)
            continue;
        buffers[1] = at;
        if (n->kind == NODE_BITS)
            memset(at, 0, values_bytes(n, capacity));
        at += aligned(values_bytes(n, capacity));
        if (is_view(n)) {
            buffers[2] = map->base;
            buffers[3] = &batch->map_bytes;
        }
        if (n->kind == NODE_INSTANTS) {
            buffers[0] = at;
            memset(at, 0, bits_bytes(n->items * capacity));
            at += aligned(bits_bytes(n->items * capacity));
        }
    }
    return batch;
}

uint64_t batch_count(const batch_t *batch) { return batch->count; }

/* A view is its length and either the bytes, or the first four, the buffer (0) and the offset. */
static inline void put_view(uint8_t *view, const uint8_t *base, uint64_t at, uint32_t bytes) {
    uint32_t words[4] = {bytes, 0, 0, 0};
    if (bytes <= INLINE_BYTES) {
        memcpy(&words[1], base + at, bytes);
    } else {
        memcpy(&words[1], base + at, 4);
        words[3] = (uint32_t)at;
    }
    memcpy(view, words, sizeof words);
}

static void add_views(const node_t *n, uint8_t *to, const uint8_t *base, const columns_t *r,
                      const uint64_t *at, uint64_t count) {
    for (uint64_t i = 0; i < count; i++, to += VIEW_BYTES) {
        if (n->kind == NODE_DATA) {
            put_view(to, base, at[i], r->payload_bytes[i]);
            continue;
        }
        const uint8_t *begin = base + at[i] + n->offset;
        size_t bytes = n->item_bytes;
        while (bytes && !begin[bytes - 1])
            bytes--;
        put_view(to, base, at[i] + n->offset, (uint32_t)bytes);
    }
}

/* With the size a constant, each copy is one load and one store. */
#define COPY_EACH(size)                                                                                 \
    for (uint64_t i = 0; i < count; i++)                                                                \
        memcpy(to + i * (size), base + at[i] + offset, (size))

static void add_copies(uint8_t *to, const uint8_t *base, size_t offset, size_t bytes, const uint64_t *at,
                       uint64_t count) {
    switch (bytes) {
    case 1: COPY_EACH(1); break;
    case 2: COPY_EACH(2); break;
    case 4: COPY_EACH(4); break;
    case 8: COPY_EACH(8); break;
    case 16: COPY_EACH(16); break;
    default: COPY_EACH(bytes);
    }
}

static void swap_items(uint8_t *items, size_t item_bytes, uint64_t count) {
    for (uint64_t i = 0; i < count; i++, items += item_bytes)
        for (size_t low = 0, high = item_bytes - 1; low < high; low++, high--) {
            uint8_t byte = items[low];
            items[low] = items[high];
            items[high] = byte;
        }
}

static void add_bits(const node_t *n, uint8_t *to, uint64_t first, const uint8_t *base, const uint64_t *at,
                     uint64_t count) {
    uint64_t bit = first * n->items;
    for (uint64_t i = 0; i < count; i++)
        for (size_t k = 0; k < n->items; k++, bit++)
            if (base[at[i] + n->offset + k])
                to[bit / 8] |= (uint8_t)(1u << bit % 8);
}

static int64_t mark_valid(uint8_t *bits, const uint8_t *values, uint64_t begin, uint64_t end) {
    int64_t nulls = 0;
    for (uint64_t i = begin; i < end; i++) {
        int64_t value;
        memcpy(&value, values + i * 8, 8);
        if (value == INT64_MIN)
            nulls++;
        else
            bits[i / 8] |= (uint8_t)(1u << i % 8);
    }
    return nulls;
}

static void add_part(batch_t *batch, size_t number, const uint64_t *at, uint64_t count) {
    const node_t *n = &batch->form->nodes[number];
    struct ArrowArray *array = &batch->arrays[number];
    uint8_t *values = (uint8_t *)(uintptr_t)array->buffers[1];
    size_t bytes = n->items * n->item_bytes;
    if (n->kind == NODE_BITS) {
        add_bits(n, values, batch->count, batch->map->base, at, count);
        return;
    }
    uint8_t *to = values + batch->count * bytes;
    add_copies(to, batch->map->base, n->offset, bytes, at, count);
    if (n->kind == NODE_SWAPPED)
        swap_items(to, n->item_bytes, count * n->items);
    if (n->kind == NODE_INSTANTS)
        array->null_count += mark_valid((uint8_t *)(uintptr_t)array->buffers[0], values,
                                        batch->count * n->items, (batch->count + count) * n->items);
}

void batch_add(batch_t *batch, const columns_t *r, const uint64_t *at, uint64_t count) {
    for (size_t i = 0; i < batch->form->count; i++) {
        const node_t *n = &batch->form->nodes[i];
        const void *from = NULL;
        switch (n->kind) {
        case NODE_STRUCT: case NODE_LIST: continue;
        case NODE_LSN: from = r->lsn; break;
        case NODE_TIME_NS: from = r->time_ns; break;
        case NODE_TAG: from = r->tag; break;
        case NODE_WRITER: from = r->writer; break;
        case NODE_NBYTES: from = r->payload_bytes; break;
        default: break;
        }
        size_t each = node_bytes(n);
        uint8_t *values = (uint8_t *)(uintptr_t)batch->arrays[i].buffers[1];
        if (from)
            memcpy(values + batch->count * each, from, count * each);
        else if (is_view(n))
            add_views(n, values + batch->count * each, batch->map->base, r, at, count);
        else
            add_part(batch, i, at, count);
    }
    batch->count += count;
}

void batch_move(batch_t *batch, struct ArrowArray *out) {
    for (size_t i = 0; i < batch->form->count; i++) {
        struct ArrowArray *array = &batch->arrays[i];
        array->length = (int64_t)(batch->count * batch->form->nodes[i].items);
        if (array->null_count == 0)
            array->buffers[0] = NULL;
    }
    *out = batch->arrays[0];
}

void batch_free(batch_t *batch) { array_release(&batch->arrays[0]); }

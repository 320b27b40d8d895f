/* The arithmetic of cpu_step.c, included once for each instruction set.
 *
 * Every sum of a row runs in the same order whatever the number of rows: tiles of rows only share
 * what is loaded.
 */

#include "cpu_step_vectors.h"
#include "cpu_step_products.h"

/* LayerNorm of one row; what it is padded with is 0, and its mean is not. */
static TARGET void ISA(layer_norm)(const Run *run, const float *weight, const float *bias,
                                   const float *x, float *out) {
    const int64_t stride = run->hidden_stride, size = run->model->hidden_size;
    vec sum = ISA(set)(0), squares = ISA(set)(0);
    for (int64_t i = 0; i < stride; i += 16) sum = ISA(add)(sum, ISA(load)(x + i));
    const float mean = ISA(sum)(sum) / (float)size;
    for (int64_t i = 0; i < stride; i += 16) {
        vec apart = ISA(add)(ISA(load)(x + i), ISA(set)(-mean));
        squares = ISA(fma)(apart, apart, squares);
    }
    const float padding = (float)(stride - size) * mean * mean;
    const float variance = (ISA(sum)(squares) - padding) / (float)size;
    vec scale = ISA(set)(1 / sqrtf(variance + (float)run->model->eps));
    for (int64_t i = 0; i < stride; i += 16) {
        vec apart = ISA(add)(ISA(load)(x + i), ISA(set)(-mean));
        vec scaled = ISA(mul)(ISA(mul)(apart, scale), ISA(load)(weight + i));
        ISA(store)(out + i, bias ? ISA(add)(scaled, ISA(load)(bias + i)) : scaled);
    }
}

/* The norm of all rows, into the thread's own buffer. */
static TARGET void ISA(normalise)(const Run *run, const float *weight, const float *bias,
                                  float *out) {
    const int64_t stride = run->hidden_stride;
    for (int64_t row = 0; row < run->step->n; row++) {
        const float *x = run->hidden + row * stride;
        if (run->model->layer_norm) {
            ISA(layer_norm)(run, weight, bias, x, out + row * stride);
            continue;
        }
        vec squares = ISA(set)(0);
        for (int64_t i = 0; i < stride; i += 16)
            squares = ISA(fma)(ISA(load)(x + i), ISA(load)(x + i), squares);
        float mean = ISA(sum)(squares) / (float)run->model->hidden_size;
        vec scale = ISA(set)(1 / sqrtf(mean + (float)run->model->eps));
        for (int64_t i = 0; i < stride; i += 16)
            ISA(store)(out + row * stride + i,
                       ISA(mul)(ISA(mul)(ISA(load)(x + i), scale), ISA(load)(weight + i)));
    }
}

/* Rotated queries, keys and values */

/* RMSNorm of one head. */
static TARGET void ISA(norm_head)(const Model *model, const float *weight, float *head) {
    const int64_t dim = model->head_dim;
    vec squares = ISA(set)(0);
    float rest = 0;
    int64_t i = 0;
    for (; i + 16 <= dim; i += 16)
        squares = ISA(fma)(ISA(load)(head + i), ISA(load)(head + i), squares);
    for (; i < dim; i++) rest += head[i] * head[i];
    const float mean = (ISA(sum)(squares) + rest) / (float)dim;
    const float scale = 1 / sqrtf(mean + (float)model->eps);
    for (i = 0; i < dim; i++) head[i] = head[i] * scale * weight[i];
}

static TARGET void ISA(rotate)(const Model *model, const Step *step, int64_t row, float *head) {
    const int64_t half = step->rotary_half;
    const float *cos = step->cos + row * half, *sin = step->sin + row * half;
    const int64_t apart = model->interleaved ? 1 : half, next = model->interleaved ? 2 : 1;
    for (int64_t i = 0; i < half; i++) {
        float first = head[i * next], second = head[i * next + apart];
        head[i * next] = first * cos[i] - second * sin[i];
        head[i * next + apart] = second * cos[i] + first * sin[i];
    }
}

/* One head of queries, keys or values of all rows. */
static TARGET void ISA(project)(Run *run, const Private *own, int64_t layer, int64_t item) {
    const Model *model = run->model;
    const Step *step = run->step;
    const Layer *weights = &model->layers[layer];
    const int64_t dim = model->head_dim, heads = model->num_heads, kv_heads = model->num_kv_heads;
    const int is_query = item < heads, is_key = !is_query && item < heads + kv_heads;
    const int64_t head = is_query ? item : (item - heads) % kv_heads;
    const Matrix *matrix =
        is_query ? &weights->queries : is_key ? &weights->keys : &weights->values;
    ISA(adapted)(run, own, matrix, head * dim, (head + 1) * dim, own->normed, run->hidden_stride,
                 own->tile);
    const float *norm = is_query ? weights->query_norm : is_key ? weights->key_norm : NULL;
    for (int64_t row = 0; row < step->n; row++) {
        float *x = own->tile + row * own->tile_stride;
        if (norm) ISA(norm_head)(model, norm, x);
        if (is_query) {
            ISA(rotate)(model, step, row, x);
            memcpy(run->queries + (row * heads + head) * run->head_stride, x, dim * sizeof *x);
            continue;
        }
        const int64_t at =
            ((layer * kv_heads + head) * step->capacity + step->slots[row]) * dim;
        void *source = is_key ? step->unrotated : step->cached_values;
        /* A key is rounded before it is rotated: turning it later gives the same. */
        for (int64_t i = 0; i < dim; i++) x[i] = store_as(step->cache_kind, source, at + i, x[i]);
        if (!is_key) continue;
        ISA(rotate)(model, step, row, x);
        for (int64_t i = 0; i < dim; i++) store_as(step->cache_kind, step->rotated, at + i, x[i]);
    }
}

#include "cpu_step_attention.h"

/* Products that end in the residual, and the MLP */

static TARGET void ISA(add_product)(Run *run, const Private *own, const Matrix *matrix,
                                    int64_t item, const float *x, int64_t x_stride) {
    const int64_t first = item * rows_of_item(matrix), next = first + rows_of_item(matrix);
    const int64_t end = next < matrix->rows ? next : matrix->rows, n = run->step->n;
    ISA(adapted)(run, own, matrix, first, end, x, x_stride, own->tile);
    for (int64_t row = 0; row < n; row++)
        for (int64_t o = first; o < end; o++)
            run->hidden[row * run->hidden_stride + o] +=
                own->tile[row * own->tile_stride + o - first];
}

static TARGET void ISA(gate)(Run *run, const Private *own, const Layer *layer, int64_t item) {
    const Matrix *in = into_mlp(layer);
    const int64_t first = item * rows_of_item(in), n = run->step->n;
    const int64_t next = first + rows_of_item(in), stride = own->tile_stride;
    const int64_t end = next < in->rows ? next : in->rows;
    const int is_gated = in == &layer->gate, is_gelu = run->model->activation == GELU;
    float *gates = own->tile, *ups = own->tile + n * stride;
    ISA(adapted)(run, own, in, first, end, own->normed, run->hidden_stride, gates);
    if (is_gated)
        ISA(adapted)(run, own, &layer->up, first, end, own->normed, run->hidden_stride, ups);
    for (int64_t row = 0; row < n; row++) {
        float *gate = gates + row * stride;
        const float *up = ups + row * stride;
        for (int64_t o = 0; o < end - first; o += 16) {
            vec x = ISA(load)(gate + o), one = ISA(set)(1), power = ISA(mul)(x, ISA(set)(-1));
            if (is_gelu) { /* 2 sqrt(2 / pi) (x + 0.044715 x^3) */
                vec cubic = ISA(fma)(ISA(mul)(x, x), ISA(set)(0.044715f), one);
                power = ISA(mul)(ISA(mul)(power, ISA(set)(1.5957691216f)), cubic);
            }
            vec active = ISA(div)(x, ISA(add)(one, ISA(exp)(power)));
            ISA(store)(gate + o, is_gated ? ISA(mul)(active, ISA(load)(up + o)) : active);
        }
        memcpy(run->active + row * run->inner_stride + first, gate, (end - first) * sizeof *gate);
    }
}

/* What a thread does */

static TARGET void ISA(item)(Run *run, Private *own, int64_t number, int phase, int64_t item) {
    const Layer *layer = &run->model->layers[number];
    if (phase <= QKV && !own->is_normed)
        ISA(normalise)(run, layer->attention_norm, layer->attention_norm_bias, own->normed);
    if ((phase == MLP_SHRINK || phase == MLP) && !own->is_normed)
        ISA(normalise)(run, layer->mlp_norm, layer->mlp_norm_bias, own->normed);
    own->is_normed = 1;
    switch (phase) {
    case QKV: ISA(project)(run, own, number, item + first_head(run, number)); break;
    case ATTEND: ISA(attend)(run, own, number, item); break;
    case RECORD: ISA(record)(run, number, item); break;
    case OUTPUT:
        ISA(add_product)(run, own, &layer->output, item, run->mixed, run->width_stride);
        break;
    case MLP: ISA(gate)(run, own, layer, item); break;
    case DOWN:
        ISA(add_product)(run, own, &layer->down, item, run->active, run->inner_stride);
        break;
    case QKV_SHRINK:
    case MLP_SHRINK:
        ISA(shrink)(run, shrink_of(layer, phase), item, own->normed, run->hidden_stride);
        break;
    case OUTPUT_SHRINK:
        ISA(shrink)(run, &layer->output_shrink, item, run->mixed, run->width_stride);
        break;
    case DOWN_SHRINK:
        ISA(shrink)(run, &layer->down_shrink, item, run->active, run->inner_stride);
        break;
    }
}

static TARGET void ISA(layers)(void *argument) {
    Run *run = argument;
    Private own = private_of(run);
    for (int64_t number = 0; number < run->model->num_layers; number++) {
        own.num_shrinking = 0;
        for (int kind = 0; kind < NUM_PHASES; kind++) {
            Phase *phase = &run->phases[number * NUM_PHASES + kind];
            const int total = num_items(run, number, kind);
            if (!total) continue;
            int own_items = 0, item;
            own.turn = 0;
            while ((item = take_item(run, &own, number * NUM_PHASES + kind, total)) >= 0) {
                ISA(item)(run, &own, number, kind, item);
                own_items++;
                finish_item(phase, total);
            }
            count_items(run, own_items, total);
            if (shrink_of(&run->model->layers[number], kind)) {
                own.shrinking = phase;
                own.num_shrinking = total;
                continue;
            }
            fetch_ahead(run, number, kind + 1, own.index);
            if (own.num_shrinking) await_items(run, own.shrinking, own.num_shrinking);
            await_items(run, phase, total);
            own.num_shrinking = own.is_normed = 0;
        }
    }
    if (run->caller == &this_thread) run->ended = now();
}

static TARGET void ISA(logits)(void *argument) {
    Run *run = argument;
    Private own = private_of(run);
    const Matrix *head = &run->model->head;
    const int64_t rows = 4 * ITEM_ROWS;
    const int total = (head->rows + rows - 1) / rows;
    int own_items = 0, item;
    ISA(normalise)(run, run->model->norm, run->model->norm_bias, own.normed);
    while ((item = take_item(run, &own, 0, total)) >= 0) {
        const int64_t first = item * rows, next = first + rows;
        const int64_t end = next < head->rows ? next : head->rows;
        own_items++;
        ISA(product)(head, first, end, own.normed, run->hidden_stride, run->step->n,
                     run->step->logits + first, head->rows);
    }
    count_items(run, own_items, total);
    if (run->caller == &this_thread) run->ended = now();
}

#undef vec
#undef BOTH
#undef INLINE
#undef UNROLL
#undef ISA
#undef ISA_LEVEL
#undef TARGET

/* The arithmetic of cpu_step.c, included once for each instruction set.
 *
 * Every sum of a row runs in the same order whatever the number of rows: tiles of rows only share
 * what is loaded.
 */

#include "cpu_step_vectors.h"

/* Matrices */

INLINE float ISA(half)(const uint8_t *p) {
    uint16_t half;
    memcpy(&half, p, 2);
#if ISA_LEVEL == GENERIC
    return from_half(half);
#else
    return _cvtsh_ss(half);
#endif
}

/* A block of 4-bit codes: value = scale * code + minimum. */
INLINE void ISA(nibbles)(const uint8_t *codes, float scale, float minimum, vec *low, vec *high) {
#if ISA_LEVEL == AVX512
    /* All 16 values in one register, looked up by the low 4 bits of each lane. */
    const __m512 ramp = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 table = _mm512_fmadd_ps(_mm512_set1_ps(scale), ramp, _mm512_set1_ps(minimum));
    __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)codes));
    *low = _mm512_permutexvar_ps(wide, table);
    *high = _mm512_permutexvar_ps(_mm512_srli_epi32(wide, 4), table);
#elif ISA_LEVEL == AVX2
    const __m256i mask = _mm256_set1_epi32(15);
    __m256i a = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)codes));
    __m256i b = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + 8)));
    vec d = ISA(set)(scale), m = ISA(set)(minimum);
    *low = ISA(fma)(ISA(floats)(_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)), d, m);
    *high = ISA(fma)(ISA(floats)(_mm256_srli_epi32(a, 4), _mm256_srli_epi32(b, 4)), d, m);
#else
    ISA(bytes) narrow;
    memcpy(&narrow, codes, sizeof narrow);
    ISA(ints) wide = __builtin_convertvector(narrow, ISA(ints));
    *low = __builtin_convertvector(wide & 15, vec) * scale + minimum;
    *high = __builtin_convertvector(wide >> 4 & 15, vec) * scale + minimum;
#endif
}

/* Columns `at` to `at + 32` of a row. */
INLINE void ISA(unpack)(int64_t kind, const uint8_t *row, int64_t at, int64_t left, vec *low,
                        vec *high) {
    if (kind == Q4_1) {
        const uint8_t *block = row + at / 32 * 20;
        __builtin_prefetch(block + PREFETCH);
        ISA(nibbles)(block + 4, ISA(half)(block), ISA(half)(block + 2), low, high);
    } else if (kind == Q4_0) {
        const uint8_t *block = row + at / 32 * 18;
        float scale = ISA(half)(block);
        __builtin_prefetch(block + PREFETCH);
        ISA(nibbles)(block + 2, scale, -8 * scale, low, high);
    } else if (kind == Q8_0) {
        const uint8_t *block = row + at / 32 * 34;
        vec scale = ISA(set)(ISA(half)(block));
        __builtin_prefetch(block + PREFETCH);
        *low = ISA(mul)(ISA(load_int8)(block + 2), scale);
        *high = ISA(mul)(ISA(load_int8)(block + 18), scale);
    } else {
        *low = ISA(load_as)(kind, row, at, left < 16 ? left : 16);
        left -= 16;
        *high = left > 0 ? ISA(load_as)(kind, row, at + 16, left < 16 ? left : 16) : ISA(set)(0);
    }
}

/* `outs` output features of `rows` rows; all but the pointers are known when this is compiled. */
INLINE void ISA(tile)(const int64_t kind, const int outs, const int rows, const Matrix *matrix,
                      int64_t first, const float *x, int64_t x_stride, float *out,
                      int64_t out_stride) {
    vec sums[4][4];
    UNROLL for (int o = 0; o < outs; o++)
        UNROLL for (int r = 0; r < rows; r++) sums[o][r] = ISA(set)(0);
    const uint8_t *row = matrix->data + first * matrix->row_bytes;
    const int64_t columns = matrix->columns, row_bytes = matrix->row_bytes, even = columns & ~31;
#define COLUMNS(at, left)                                                                       \
    UNROLL for (int o = 0; o < outs; o++) {                                                     \
        vec low, high;                                                                          \
        ISA(unpack)(kind, row + o * row_bytes, at, left, &low, &high);                          \
        UNROLL for (int r = 0; r < rows; r++) {                                                 \
            sums[o][r] = ISA(fma)(low, ISA(load)(x + r * x_stride + at), sums[o][r]);           \
            sums[o][r] = ISA(fma)(high, ISA(load)(x + r * x_stride + at + 16), sums[o][r]);     \
        }                                                                                       \
    }
    for (int64_t at = 0; at < even; at += 32) COLUMNS(at, 32)
    if (even < columns) COLUMNS(even, columns - even)
#undef COLUMNS
    UNROLL for (int o = 0; o < outs; o++)
        UNROLL for (int r = 0; r < rows; r++) {
            float bias = matrix->bias ? matrix->bias[first + o] : 0;
            out[r * out_stride + o] = ISA(sum)(sums[o][r]) + bias;
        }
}

INLINE void ISA(product_of)(const int64_t kind, const int rows, const Matrix *matrix,
                            int64_t first, int64_t end, const float *x, int64_t x_stride,
                            float *out, int64_t out_stride) {
    int64_t at = first;
    for (; at + ISA(OUTS) <= end; at += ISA(OUTS))
        ISA(tile)(kind, ISA(OUTS), rows, matrix, at, x, x_stride, out + at - first, out_stride);
    for (; at < end && ISA(OUTS) > 1; at++)
        ISA(tile)(kind, 1, rows, matrix, at, x, x_stride, out + at - first, out_stride);
}

#define PRODUCTS(kind)                                                                        \
    static TARGET void ISA(product_##kind)(const Matrix *matrix, int64_t first, int64_t end,  \
                                           const float *x, int64_t x_stride, int64_t n,       \
                                           float *out, int64_t out_stride) {                  \
        for (; n > 0; n -= ISA(ROWS)) {                                                       \
            if (n >= 4 && ISA(ROWS) == 4)                                                     \
                ISA(product_of)(kind, 4, matrix, first, end, x, x_stride, out, out_stride);   \
            else if (n == 3 && ISA(ROWS) == 4)                                                \
                ISA(product_of)(kind, 3, matrix, first, end, x, x_stride, out, out_stride);   \
            else if (n >= 2 && ISA(ROWS) >= 2)                                              \
                ISA(product_of)(kind, 2, matrix, first, end, x, x_stride, out, out_stride);   \
            else                                                                              \
                ISA(product_of)(kind, 1, matrix, first, end, x, x_stride, out, out_stride);   \
            x += ISA(ROWS) * x_stride;                                                        \
            out += ISA(ROWS) * out_stride;                                                    \
        }                                                                                     \
    }
PRODUCTS(FP32)
PRODUCTS(BF16)
PRODUCTS(FP16)
PRODUCTS(Q4_0)
PRODUCTS(Q4_1)
PRODUCTS(Q8_0)
#undef PRODUCTS

/* out[row, o - first] = sum over columns of matrix[o] * x[row] + bias[o]; x padded with zeros. */
static TARGET void ISA(product)(const Matrix *matrix, int64_t first, int64_t end, const float *x,
                                int64_t x_stride, int64_t n, float *out, int64_t out_stride) {
    switch (matrix->kind) {
    case FP32: ISA(product_FP32)(matrix, first, end, x, x_stride, n, out, out_stride); break;
    case BF16: ISA(product_BF16)(matrix, first, end, x, x_stride, n, out, out_stride); break;
    case FP16: ISA(product_FP16)(matrix, first, end, x, x_stride, n, out, out_stride); break;
    case Q4_0: ISA(product_Q4_0)(matrix, first, end, x, x_stride, n, out, out_stride); break;
    case Q4_1: ISA(product_Q4_1)(matrix, first, end, x, x_stride, n, out, out_stride); break;
    case Q8_0: ISA(product_Q8_0)(matrix, first, end, x, x_stride, n, out, out_stride); break;
    }
}

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
    ISA(product)(matrix, head * dim, (head + 1) * dim, own->normed, run->hidden_stride, step->n,
                 own->tile, own->tile_stride);
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

/* Attention */

/* Scores of four slots for `count` queries. */
INLINE void ISA(score4)(const int64_t kind, const int count, const void *keys, const int64_t *at,
                        int64_t dim, const float *const *queries, float scale, float *out) {
    vec sums[4][4];
    UNROLL for (int q = 0; q < count; q++)
        UNROLL for (int s = 0; s < 4; s++) sums[q][s] = ISA(set)(0);
    for (int64_t d = 0; d < dim; d += 16) {
        const int64_t left = dim - d < 16 ? dim - d : 16;
        vec key[4];
        UNROLL for (int s = 0; s < 4; s++) key[s] = ISA(load_as)(kind, keys, at[s] + d, left);
        UNROLL for (int q = 0; q < count; q++) {
            vec query = ISA(load)(queries[q] + d);
            UNROLL for (int s = 0; s < 4; s++) sums[q][s] = ISA(fma)(key[s], query, sums[q][s]);
        }
    }
    UNROLL for (int q = 0; q < count; q++) {
        float four[4];
        ISA(sum4)(sums[q][0], sums[q][1], sums[q][2], sums[q][3], four);
        for (int s = 0; s < 4; s++) out[q * SLOTS + s] = four[s] * scale;
    }
}

/* `wide` times 16 dimensions of the mixed values, for `count` queries. */
INLINE void ISA(mix)(const int64_t kind, const int count, const int wide, const void *values,
                     int64_t at, int64_t dim, int64_t d, int64_t num_slots, const float *shares,
                     float *const *out) {
    vec sums[4][4];
    UNROLL for (int q = 0; q < count; q++)
        UNROLL for (int w = 0; w < wide; w++) sums[q][w] = ISA(set)(0);
    for (int64_t slot = 0; slot < num_slots; slot++) {
        vec value[4];
        UNROLL for (int w = 0; w < wide; w++) {
            const int64_t left = dim - d - 16 * w;
            value[w] = ISA(load_as)(kind, values, at + slot * dim + d + 16 * w,
                                    wide > 1 || left > 16 ? 16 : left);
        }
        UNROLL for (int q = 0; q < count; q++) {
            vec share = ISA(set)(shares[q * SLOTS + slot]);
            UNROLL for (int w = 0; w < wide; w++)
                sums[q][w] = ISA(fma)(share, value[w], sums[q][w]);
        }
    }
    UNROLL for (int q = 0; q < count; q++)
        UNROLL for (int w = 0; w < wide; w++) ISA(store)(out[q] + d + 16 * w, sums[q][w]);
}

/* Up to four queries over one chunk of slots, from their scores to their part of the result. */
INLINE void ISA(attend_few)(const int64_t kind, const int count, Run *run, const Private *own,
                            int64_t layer, int64_t kv_head, int64_t chunk, int64_t query) {
    const Model *model = run->model;
    const Step *step = run->step;
    const int64_t dim = model->head_dim, n = step->n, group = run->group;
    const int64_t start = chunk * SLOTS;
    const int64_t num_slots = step->num_slots - start < SLOTS ? step->num_slots - start : SLOTS;
    const int64_t base = ((layer * model->num_kv_heads + kv_head) * step->capacity + start) * dim;
    const float scale = 1 / sqrtf((float)dim);
    const int64_t window = model->layers[layer].window;
    const float *queries[4];
    float *parts[4], *scores = own->scores;
    int64_t places[4], rows[4];
    UNROLL for (int q = 0; q < count; q++) {
        rows[q] = (query + q) / group;
        const int64_t head = kv_head * group + (query + q) % group;
        places[q] = head * n + rows[q];
        queries[q] = run->queries + (rows[q] * model->num_heads + head) * run->head_stride;
        parts[q] = run->parts + (places[q] * run->num_chunks + chunk) * run->head_stride;
    }
    for (int64_t slot = 0; slot < num_slots; slot += 4) {
        int64_t at[4];
        for (int s = 0; s < 4; s++)
            at[s] = base + (slot + s < num_slots ? slot + s : num_slots - 1) * dim;
        ISA(score4)(kind, count, step->rotated, at, dim, queries, scale, scores + slot);
    }
    UNROLL for (int q = 0; q < count; q++) {
        float *own_scores = scores + q * SLOTS;
        const int64_t position = step->row_positions[rows[q]];
        for (int64_t slot = num_slots; slot < SLOTS; slot++) own_scores[slot] = -INFINITY;
        if (position < run->last_position)
            for (int64_t slot = 0; slot < num_slots; slot++)
                if (step->slot_positions[start + slot] > position) own_scores[slot] = -INFINITY;
        if (window)
            for (int64_t slot = 0; slot < num_slots; slot++)
                if (position - step->slot_positions[start + slot] >= window)
                    own_scores[slot] = -INFINITY;
        if (step->unseen) {
            const int64_t first_marked = step->num_slots - step->num_marked - start;
            const uint8_t *unseen = step->unseen + rows[q] * step->num_marked - first_marked;
            for (int64_t slot = first_marked > 0 ? first_marked : 0; slot < num_slots; slot++)
                if (unseen[slot]) own_scores[slot] = -INFINITY;
        }
        vec most = ISA(load)(own_scores);
        for (int64_t slot = 16; slot < SLOTS; slot += 16)
            most = ISA(max)(most, ISA(load)(own_scores + slot));
        const float top = ISA(largest)(most);
        const vec offset = ISA(set)(top == -INFINITY ? 0 : -top);
        vec sum = ISA(set)(0);
        for (int64_t slot = 0; slot < SLOTS; slot += 16) {
            vec share = ISA(exp)(ISA(add)(ISA(load)(own_scores + slot), offset));
            ISA(store)(own_scores + slot, share);
            sum = ISA(add)(sum, share);
        }
        run->part_max[places[q] * run->chunk_stride + chunk] = top;
        run->part_sum[places[q] * run->chunk_stride + chunk] = ISA(sum)(sum);
        if (step->weights && step->weights[layer])
            memcpy(run->recorded + (places[q] * run->num_chunks + chunk) * SLOTS, own_scores,
                   SLOTS * sizeof(float));
    }
    int64_t d = 0;
    for (; d + 64 <= dim; d += 64)
        ISA(mix)(kind, count, 4, step->cached_values, base, dim, d, num_slots, scores, parts);
    for (; d < dim; d += 16)
        ISA(mix)(kind, count, 1, step->cached_values, base, dim, d, num_slots, scores, parts);
}

/* Join the chunks' parts of all queries of a key head, in the order of the chunks. */
static TARGET void ISA(merge)(Run *run, int64_t kv_head) {
    const Model *model = run->model;
    const int64_t n = run->step->n, dim = model->head_dim;
    for (int64_t head = kv_head * run->group; head < (kv_head + 1) * run->group; head++)
        for (int64_t row = 0; row < n; row++) {
            const int64_t place = head * n + row;
            float *most = run->part_max + place * run->chunk_stride;
            float *sums = run->part_sum + place * run->chunk_stride;
            float top = -INFINITY, total = 0;
            for (int64_t c = 0; c < run->num_chunks; c++) top = most[c] > top ? most[c] : top;
            for (int64_t c = run->num_chunks; c < run->chunk_stride; c++) most[c] = top;
            for (int64_t c = 0; c < run->chunk_stride; c += 16)
                ISA(store)(most + c, ISA(exp)(ISA(add)(ISA(load)(most + c), ISA(set)(-top))));
            for (int64_t c = 0; c < run->num_chunks; c++) total += sums[c] * most[c];
            for (int64_t c = 0; c < run->num_chunks; c++) sums[c] = most[c] / total;
            const float *parts = run->parts + place * run->num_chunks * run->head_stride;
            float *out = run->mixed + row * run->width_stride + head * dim;
            for (int64_t d = 0; d < dim; d += 16) {
                vec sum = ISA(set)(0);
                for (int64_t c = 0; c < run->num_chunks; c++)
                    sum = ISA(fma)(ISA(load)(parts + c * run->head_stride + d),
                                   ISA(set)(sums[c]), sum);
                if (dim - d >= 16) {
                    ISA(store)(out + d, sum);
                } else {
                    float last[16];
                    ISA(store)(last, sum);
                    memcpy(out + d, last, (dim - d) * sizeof(float));
                }
            }
        }
}

INLINE void ISA(attend_all)(const int64_t kind, Run *run, const Private *own, int64_t layer,
                            int64_t kv_head, int64_t chunk) {
    const int64_t num_queries = run->step->n * run->group;
    int64_t query = 0;
    for (; query + ISA(QUERIES) <= num_queries; query += ISA(QUERIES))
        ISA(attend_few)(kind, ISA(QUERIES), run, own, layer, kv_head, chunk, query);
    if (ISA(QUERIES) == 1) return;
    switch (num_queries - query) {
    case 3: ISA(attend_few)(kind, 3, run, own, layer, kv_head, chunk, query); break;
    case 2: ISA(attend_few)(kind, 2, run, own, layer, kv_head, chunk, query); break;
    case 1: ISA(attend_few)(kind, 1, run, own, layer, kv_head, chunk, query); break;
    }
}

static TARGET void ISA(attend)(Run *run, const Private *own, int64_t layer, int64_t item) {
    const int64_t kv_head = item / run->num_chunks, chunk = item % run->num_chunks;
    switch (run->step->cache_kind) {
    case FP32: ISA(attend_all)(FP32, run, own, layer, kv_head, chunk); break;
    case BF16: ISA(attend_all)(BF16, run, own, layer, kv_head, chunk); break;
    case FP16: ISA(attend_all)(FP16, run, own, layer, kv_head, chunk); break;
    }
    atomic_int *done = &run->head_done[layer * run->model->num_kv_heads + kv_head];
    if (atomic_fetch_add(done, 1) + 1 == run->num_chunks) ISA(merge)(run, kv_head);
}

/* One row's attention weights over one chunk, mean over heads. */
static TARGET void ISA(record)(Run *run, int64_t layer, int64_t item) {
    const Step *step = run->step;
    const int64_t row = item / run->num_chunks, chunk = item % run->num_chunks;
    const int64_t heads = run->model->num_heads, n = step->n, start = chunk * SLOTS;
    const int64_t num_slots = step->num_slots - start < SLOTS ? step->num_slots - start : SLOTS;
    float *out = step->weights[layer] + row * step->num_slots + start;
    for (int64_t slot = 0; slot < num_slots; slot++) {
        float sum = 0;
        for (int64_t head = 0; head < heads; head++) {
            const int64_t place = head * n + row;
            sum += run->recorded[(place * run->num_chunks + chunk) * SLOTS + slot] *
                   run->part_sum[place * run->chunk_stride + chunk];
        }
        out[slot] = sum / (float)heads;
    }
}

/* Products that end in the residual, and the MLP */

static TARGET void ISA(add_product)(Run *run, const Private *own, const Matrix *matrix,
                                    int64_t item, const float *x, int64_t x_stride) {
    const int64_t first = item * rows_of_item(matrix), next = first + rows_of_item(matrix);
    const int64_t end = next < matrix->rows ? next : matrix->rows, n = run->step->n;
    ISA(product)(matrix, first, end, x, x_stride, n, own->tile, own->tile_stride);
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
    ISA(product)(in, first, end, own->normed, run->hidden_stride, n, gates, stride);
    if (is_gated)
        ISA(product)(&layer->up, first, end, own->normed, run->hidden_stride, n, ups, stride);
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

static TARGET void ISA(layers)(void *argument) {
    Run *run = argument;
    Private own = private_of(run);
    for (int64_t number = 0; number < run->model->num_layers; number++) {
        const Layer *layer = &run->model->layers[number];
        for (int kind = 0; kind < NUM_PHASES; kind++) {
            Phase *phase = &run->phases[number * NUM_PHASES + kind];
            const int total = num_items(run, number, kind);
            int own_items = 0, item;
            own.turn = 0;
            while ((item = take_item(run, &own, number * NUM_PHASES + kind, total)) >= 0) {
                if (!own_items && kind == QKV)
                    ISA(normalise)(run, layer->attention_norm, layer->attention_norm_bias,
                                   own.normed);
                if (!own_items && kind == MLP)
                    ISA(normalise)(run, layer->mlp_norm, layer->mlp_norm_bias, own.normed);
                own_items++;
                switch (kind) {
                case QKV:
                    ISA(project)(run, &own, number, item + first_head(run, number));
                    break;
                case ATTEND: ISA(attend)(run, &own, number, item); break;
                case RECORD: ISA(record)(run, number, item); break;
                case OUTPUT:
                    ISA(add_product)(run, &own, &layer->output, item, run->mixed,
                                     run->width_stride);
                    break;
                case MLP: ISA(gate)(run, &own, layer, item); break;
                case DOWN:
                    ISA(add_product)(run, &own, &layer->down, item, run->active,
                                     run->inner_stride);
                    break;
                }
                finish_item(phase, total);
            }
            fetch_ahead(run, number, kind + 1, own.index);
            await_items(run, phase, total);
            count_items(run, own_items, total);
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

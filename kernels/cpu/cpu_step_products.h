/* Products with matrices for one instruction set: included by cpu_step_ops.h. */

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

/* Low-rank updates */

/* What an update adds to features `from` to `to` of a panel of 16, of `rows` rows; `out` is that of
 * `from`. Even and odd columns are summed apart: a sum alone would wait for itself. */
INLINE void ISA(expand_panel)(const int64_t kind, const int rows, const uint8_t *panel,
                              int64_t rank, int from, int to, const float *shrunk,
                              int64_t shrunk_stride, float *out, int64_t out_stride) {
    vec even[4], odd[4];
    UNROLL for (int r = 0; r < rows; r++) even[r] = odd[r] = ISA(set)(0);
    int64_t k = 0;
    for (; k + 2 <= rank; k += 2) {
        const vec one = ISA(load_as)(kind, panel, 16 * k, 16);
        const vec two = ISA(load_as)(kind, panel, 16 * k + 16, 16);
        UNROLL for (int r = 0; r < rows; r++) {
            const float *x = shrunk + r * shrunk_stride + k;
            even[r] = ISA(fma)(one, ISA(set)(x[0]), even[r]);
            odd[r] = ISA(fma)(two, ISA(set)(x[1]), odd[r]);
        }
    }
    if (k < rank) {
        const vec one = ISA(load_as)(kind, panel, 16 * k, 16);
        UNROLL for (int r = 0; r < rows; r++)
            even[r] = ISA(fma)(one, ISA(set)(shrunk[r * shrunk_stride + k]), even[r]);
    }
    UNROLL for (int r = 0; r < rows; r++) {
        const vec sum = ISA(add)(even[r], odd[r]);
        float *at = out + r * out_stride;
        if (to - from == 16) {
            ISA(store)(at, ISA(add)(ISA(load)(at), sum));
            continue;
        }
        float all[16];
        ISA(store)(all, sum);
        for (int o = from; o < to; o++) at[o - from] += all[o];
    }
}

INLINE void ISA(expand_of)(const int64_t kind, const Update *update, int64_t first, int64_t end,
                           const float *shrunk, int64_t shrunk_stride, int64_t n, float *out,
                           int64_t out_stride) {
    const int64_t panel_bytes = 16 * update->rank * (kind == FP32 ? 4 : 2);
    for (int64_t at = first / 16 * 16; at < end; at += 16) {
        const uint8_t *panel = update->expand + at / 16 * panel_bytes;
        const int from = at < first ? (int)(first - at) : 0;
        const int to = at + 16 > end ? (int)(end - at) : 16;
        const float *x = shrunk;
        float *sum = out + at + from - first;
        int64_t left = n;
        for (; left >= ISA(ROWS); left -= ISA(ROWS)) {
            ISA(expand_panel)(kind, ISA(ROWS), panel, update->rank, from, to, x, shrunk_stride,
                              sum, out_stride);
            x += ISA(ROWS) * shrunk_stride;
            sum += ISA(ROWS) * out_stride;
        }
        for (; left > 0 && ISA(ROWS) > 1; left--) {
            ISA(expand_panel)(kind, 1, panel, update->rank, from, to, x, shrunk_stride, sum,
                              out_stride);
            x += shrunk_stride;
            sum += out_stride;
        }
    }
}

/* out[row, o - first] += sum over k of expand[o, k] * shrunk[row, k] */
static TARGET void ISA(expand)(const Run *run, const Update *update, int64_t first, int64_t end,
                               float *out, int64_t out_stride) {
    const float *shrunk = run->shrunk + update->first;
    const int64_t stride = run->shrunk_stride, n = run->step->n;
    switch (update->kind) {
    case FP32: ISA(expand_of)(FP32, update, first, end, shrunk, stride, n, out, out_stride); break;
    case BF16: ISA(expand_of)(BF16, update, first, end, shrunk, stride, n, out, out_stride); break;
    case FP16: ISA(expand_of)(FP16, update, first, end, shrunk, stride, n, out, out_stride); break;
    }
}

/* A part of the first product of a phase's updates, of all rows. */
static TARGET void ISA(shrink)(const Run *run, const Matrix *matrix, int64_t item, const float *x,
                               int64_t x_stride) {
    const int64_t first = item * rows_of_item(matrix), next = first + rows_of_item(matrix);
    const int64_t end = next < matrix->rows ? next : matrix->rows;
    ISA(product)(matrix, first, end, x, x_stride, run->step->n, run->shrunk + first,
                 run->shrunk_stride);
}

/* The product with a layer's matrix and its update, into a tile of the thread's own. */
static TARGET void ISA(adapted)(Run *run, const Private *own, const Matrix *matrix, int64_t first,
                                int64_t end, const float *x, int64_t x_stride, float *tile) {
    const Update *update = matrix->update;
    if (update) fetch_update(update, first, end);
    ISA(product)(matrix, first, end, x, x_stride, run->step->n, tile, own->tile_stride);
    if (!update) return;
    await_items(run, own->shrinking, own->num_shrinking);
    ISA(expand)(run, update, first, end, tile, own->tile_stride);
}

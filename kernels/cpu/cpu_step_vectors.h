/* Vectors of 16 floats for one instruction set: included by cpu_step_ops.h, which undefines the macros
 * again. A `vec` has 16 floats on every set, so that sums run in the same order everywhere.
 */

#define INLINE static inline __attribute__((always_inline)) TARGET
#define UNROLL _Pragma("GCC unroll 4")
#define vec ISA(vec_t)

/* Sixteen floats */

#if ISA_LEVEL == AVX512

typedef __m512 vec;
enum { ISA(OUTS) = 4, ISA(ROWS) = 4, ISA(QUERIES) = 4 }; /* of a tile: 32 registers */
INLINE vec ISA(set)(float a) { return _mm512_set1_ps(a); }
INLINE vec ISA(load)(const float *p) { return _mm512_loadu_ps(p); }
INLINE void ISA(store)(float *p, vec a) { _mm512_storeu_ps(p, a); }
INLINE vec ISA(add)(vec a, vec b) { return _mm512_add_ps(a, b); }
INLINE vec ISA(mul)(vec a, vec b) { return _mm512_mul_ps(a, b); }
INLINE vec ISA(div)(vec a, vec b) { return _mm512_div_ps(a, b); }
INLINE vec ISA(fma)(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec ISA(max)(vec a, vec b) { return _mm512_max_ps(a, b); }
INLINE vec ISA(min)(vec a, vec b) { return _mm512_min_ps(a, b); }
INLINE vec ISA(round)(vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
INLINE vec ISA(two_to)(vec a) {
    __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}
INLINE vec ISA(zero_below)(vec a, vec limit, vec value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, limit, _CMP_GE_OQ), value);
}
INLINE vec ISA(load_bf16)(const uint16_t *p) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
INLINE vec ISA(load_fp16)(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
INLINE vec ISA(load_int8)(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
INLINE __m128 ISA(fold)(vec a) { /* to four lanes */
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

#elif ISA_LEVEL == AVX2

typedef struct {
    __m256 a, b;
} vec;
enum { ISA(OUTS) = 2, ISA(ROWS) = 2, ISA(QUERIES) = 1 };
#define BOTH(first, second) ((vec){(first), (second)})
INLINE vec ISA(set)(float a) { return BOTH(_mm256_set1_ps(a), _mm256_set1_ps(a)); }
INLINE vec ISA(load)(const float *p) { return BOTH(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
INLINE void ISA(store)(float *p, vec a) {
    _mm256_storeu_ps(p, a.a);
    _mm256_storeu_ps(p + 8, a.b);
}
INLINE vec ISA(add)(vec a, vec b) { return BOTH(_mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b)); }
INLINE vec ISA(mul)(vec a, vec b) { return BOTH(_mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b)); }
INLINE vec ISA(div)(vec a, vec b) { return BOTH(_mm256_div_ps(a.a, b.a), _mm256_div_ps(a.b, b.b)); }
INLINE vec ISA(fma)(vec a, vec b, vec c) {
    return BOTH(_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b));
}
INLINE vec ISA(max)(vec a, vec b) { return BOTH(_mm256_max_ps(a.a, b.a), _mm256_max_ps(a.b, b.b)); }
INLINE vec ISA(min)(vec a, vec b) { return BOTH(_mm256_min_ps(a.a, b.a), _mm256_min_ps(a.b, b.b)); }
INLINE vec ISA(round)(vec a) {
    return BOTH(_mm256_round_ps(a.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                _mm256_round_ps(a.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE __m256 ISA(half_two_to)(__m256 a) {
    __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
INLINE vec ISA(two_to)(vec a) { return BOTH(ISA(half_two_to)(a.a), ISA(half_two_to)(a.b)); }
INLINE vec ISA(zero_below)(vec a, vec limit, vec value) {
    return BOTH(_mm256_and_ps(_mm256_cmp_ps(a.a, limit.a, _CMP_GE_OQ), value.a),
                _mm256_and_ps(_mm256_cmp_ps(a.b, limit.b, _CMP_GE_OQ), value.b));
}
INLINE __m256 ISA(half_bf16)(const uint16_t *p) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE vec ISA(load_bf16)(const uint16_t *p) {
    return BOTH(ISA(half_bf16)(p), ISA(half_bf16)(p + 8));
}
INLINE vec ISA(load_fp16)(const uint16_t *p) {
    return BOTH(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))));
}
INLINE vec ISA(floats)(__m256i a, __m256i b) {
    return BOTH(_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b));
}
INLINE vec ISA(load_int8)(const uint8_t *p) {
    return ISA(floats)(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)),
                       _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8))));
}
INLINE __m128 ISA(fold)(vec a) {
    __m256 half = _mm256_add_ps(a.a, a.b);
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

#else

typedef float vec __attribute__((vector_size(64)));
typedef int32_t ISA(ints) __attribute__((vector_size(64)));
typedef uint16_t ISA(shorts) __attribute__((vector_size(32)));
typedef int8_t ISA(bytes) __attribute__((vector_size(16)));
enum { ISA(OUTS) = 1, ISA(ROWS) = 1, ISA(QUERIES) = 1 };
/* Lanes of `b` where the mask is set, else of `a`. */
INLINE vec ISA(blend)(vec a, vec b, ISA(ints) mask) {
    return (vec)(((ISA(ints))a & ~mask) | ((ISA(ints))b & mask));
}
INLINE vec ISA(set)(float a) { return a - (vec){0}; }
INLINE vec ISA(load)(const float *p) {
    vec a;
    memcpy(&a, p, sizeof a);
    return a;
}
INLINE void ISA(store)(float *p, vec a) { memcpy(p, &a, sizeof a); }
INLINE vec ISA(add)(vec a, vec b) { return a + b; }
INLINE vec ISA(mul)(vec a, vec b) { return a * b; }
INLINE vec ISA(div)(vec a, vec b) { return a / b; }
INLINE vec ISA(fma)(vec a, vec b, vec c) { return a * b + c; }
INLINE vec ISA(max)(vec a, vec b) { return ISA(blend)(b, a, a > b); }
INLINE vec ISA(min)(vec a, vec b) { return ISA(blend)(b, a, a < b); }
INLINE vec ISA(round)(vec a) { /* of numbers far below 2^22: their fraction does not fit */
    return (a + 12582912.0f) - 12582912.0f;
}
INLINE vec ISA(two_to)(vec a) {
    return (vec)((__builtin_convertvector(a, ISA(ints)) + 127) << 23);
}
INLINE vec ISA(zero_below)(vec a, vec limit, vec value) {
    return ISA(blend)((vec){0}, value, a >= limit);
}
INLINE vec ISA(load_bf16)(const uint16_t *p) {
    ISA(shorts) narrow;
    memcpy(&narrow, p, sizeof narrow);
    return (vec)(__builtin_convertvector(narrow, ISA(ints)) << 16);
}
static vec ISA(load_fp16)(const uint16_t *p) {
    float wide[16];
    for (int i = 0; i < 16; i++) wide[i] = from_half(p[i]);
    return ISA(load)(wide);
}
INLINE vec ISA(load_int8)(const uint8_t *p) {
    ISA(bytes) narrow;
    memcpy(&narrow, p, sizeof narrow);
    return __builtin_convertvector(narrow, vec);
}

#endif

/* The sums of four vectors, each in the same order as the others. */
INLINE void ISA(sum4)(vec a, vec b, vec c, vec d, float *out) {
#if ISA_LEVEL == GENERIC
    const vec all[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++) {
        float half[8];
        for (int j = 0; j < 8; j++) half[j] = all[i][j] + all[i][j + 8];
        for (int j = 0; j < 4; j++) half[j] += half[j + 4];
        out[i] = (half[0] + half[2]) + (half[1] + half[3]);
    }
#else
    __m128 w = ISA(fold)(a), x = ISA(fold)(b), y = ISA(fold)(c), z = ISA(fold)(d);
    _MM_TRANSPOSE4_PS(w, x, y, z);
    _mm_storeu_ps(out, _mm_add_ps(_mm_add_ps(w, y), _mm_add_ps(x, z)));
#endif
}

INLINE float ISA(sum)(vec a) {
    float all[4];
    ISA(sum4)(a, a, a, a, all); /* the repeats cost nothing */
    return all[0];
}

INLINE float ISA(largest)(vec a) {
    float all[16], most;
    ISA(store)(all, a);
    most = all[0];
    for (int i = 1; i < 16; i++) most = all[i] > most ? all[i] : most;
    return most;
}

/* e^a to about one unit in the last place; 0 below -87. Source: Cephes, expf. */
INLINE vec ISA(exp)(vec a) {
    const vec lowest = ISA(set)(-87.0f);
    vec x = ISA(min)(ISA(max)(a, lowest), ISA(set)(88.0f));
    vec k = ISA(round)(ISA(mul)(x, ISA(set)(1.44269504f)));
    vec r = ISA(fma)(k, ISA(set)(-0.693359375f), x);
    r = ISA(fma)(k, ISA(set)(2.12194440e-4f), r);
    vec p = ISA(set)(1.9875691500e-4f);
    p = ISA(fma)(p, r, ISA(set)(1.3981999507e-3f));
    p = ISA(fma)(p, r, ISA(set)(8.3334519073e-3f));
    p = ISA(fma)(p, r, ISA(set)(4.1665795894e-2f));
    p = ISA(fma)(p, r, ISA(set)(1.6666665459e-1f));
    p = ISA(fma)(p, r, ISA(set)(5.0000001201e-1f));
    p = ISA(add)(ISA(fma)(p, ISA(mul)(r, r), r), ISA(set)(1.0f));
    return ISA(zero_below)(a, lowest, ISA(mul)(p, ISA(two_to)(k)));
}

/* Sixteen values of fp32, bf16 or fp16 from element `at` on; zeros from `count` on. */
INLINE vec ISA(load_as)(int64_t kind, const void *base, int64_t at, int64_t count) {
    if (count < 16) {
        union {
            float wide[16];
            uint16_t narrow[16];
        } padded = {{0}};
        int64_t size = kind == FP32 ? 4 : 2;
        memcpy(&padded, (const uint8_t *)base + at * size, count * size);
        if (kind == FP32) return ISA(load)(padded.wide);
        return kind == BF16 ? ISA(load_bf16)(padded.narrow) : ISA(load_fp16)(padded.narrow);
    }
    if (kind == FP32) return ISA(load)((const float *)base + at);
    const uint16_t *narrow = (const uint16_t *)base + at;
    return kind == BF16 ? ISA(load_bf16)(narrow) : ISA(load_fp16)(narrow);
}

/* Attention for one instruction set: included by cpu_step_ops.h. */

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
